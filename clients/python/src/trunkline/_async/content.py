"""Articles, FAQs and training material: `client.content`."""

from collections.abc import Sequence

from trunkline._async.pages import AsyncPager
from trunkline._async.session import AsyncSession
from trunkline._shared.enums import value_of
from trunkline._shared.requests import Time, mask, new_request_id, timestamp
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.api.content.v1 import content_service_pb2_grpc as stubs

_SERVICE = pb.DESCRIPTOR.services_by_name["ContentService"]


class AsyncContent:
    """What agents read while the caller waits, and how it gets there."""

    def __init__(self, session: AsyncSession) -> None:
        stub: stubs.ContentServiceAsyncStub = stubs.ContentServiceStub(session.channel)
        methods = session.methods(_SERVICE)
        self._create = methods.unary(stub.CreateArticle, "CreateArticle")
        self._get = methods.unary(stub.GetArticle, "GetArticle")
        self._update = methods.unary(stub.UpdateArticle, "UpdateArticle")
        self._list = methods.unary(stub.ListArticles, "ListArticles")
        self._search = methods.unary(stub.SearchArticles, "SearchArticles")
        self._submit = methods.unary(stub.SubmitArticle, "SubmitArticle")
        self._approve = methods.unary(stub.ApproveArticle, "ApproveArticle")
        self._reject = methods.unary(stub.RejectArticle, "RejectArticle")
        self._publish = methods.unary(stub.PublishArticle, "PublishArticle")
        self._unpublish = methods.unary(stub.UnpublishArticle, "UnpublishArticle")
        self._archive = methods.unary(stub.ArchiveArticle, "ArchiveArticle")
        self._delete = methods.unary(stub.DeleteArticle, "DeleteArticle")
        self._undelete = methods.unary(stub.UndeleteArticle, "UndeleteArticle")
        self._list_revisions = methods.unary(stub.ListRevisions, "ListRevisions")
        self._diff = methods.unary(stub.DiffRevisions, "DiffRevisions")
        self._rollback = methods.unary(stub.RollbackArticle, "RollbackArticle")
        self._rate = methods.unary(stub.RateArticle, "RateArticle")
        self._top = methods.unary(stub.ListTopArticles, "ListTopArticles")
        self._misses = methods.unary(stub.ListSearchMisses, "ListSearchMisses")
        self._suggest = methods.unary(stub.SuggestSearches, "SuggestSearches")
        self._uncovered = methods.unary(stub.ListUncoveredReasons, "ListUncoveredReasons")
        self._create_category = methods.unary(stub.CreateCategory, "CreateCategory")
        self._update_category = methods.unary(stub.UpdateCategory, "UpdateCategory")
        self._list_categories = methods.unary(stub.ListCategories, "ListCategories")
        self._delete_category = methods.unary(stub.DeleteCategory, "DeleteCategory")

    # -- reading

    async def get(
        self,
        article_id: str,
        *,
        view: pb.ArticleView.ValueType | str = pb.ARTICLE_VIEW_UNSPECIFIED,
        locale: str = "",
        fields: Sequence[str] = (),
        if_none_match: str = "",
        timeout_s: float | None = None,
    ) -> pb.GetArticleResponse:
        """An article in `.article`; agents get the live text, writers choose by `view`.

        With the etag of a copy in `if_none_match`, `.not_modified` says that it still serves.
        """
        request = pb.GetArticleRequest(
            article_id=article_id,
            view=value_of(pb.ArticleView, view),
            locale=locale,
            read_mask=mask(*fields),
            if_none_match=if_none_match,
        )
        return await self._get(request, timeout_s)

    def list(
        self,
        filter: pb.ArticleFilter | None = None,
        *,
        kinds: Sequence[pb.ArticleKind.ValueType | str] = (),
        states: Sequence[pb.ArticleState.ValueType | str] = (),
        order: pb.ArticleOrder.ValueType | str = pb.ARTICLE_ORDER_UNSPECIFIED,
        view: pb.ArticleView.ValueType | str = pb.ARTICLE_VIEW_UNSPECIFIED,
        fields: Sequence[str] = (),
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.Article, pb.ListArticlesResponse]:
        """Articles, without their bodies unless `fields` names them."""
        request = pb.ListArticlesRequest(
            page_size=page_size,
            filter=_filter(filter, kinds, states, ()),
            order=value_of(pb.ArticleOrder, order),
            view=value_of(pb.ArticleView, view),
            read_mask=mask(*fields),
        )
        return AsyncPager(self._list, request, lambda reply: reply.articles, timeout_s)

    def search(
        self,
        query: str,
        *,
        filter: pb.ArticleFilter | None = None,
        kinds: Sequence[pb.ArticleKind.ValueType | str] = (),
        locales: Sequence[str] = (),
        view: pb.ArticleView.ValueType | str = pb.ARTICLE_VIEW_UNSPECIFIED,
        with_facets: bool = False,
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.ArticleMatch, pb.SearchArticlesResponse]:
        """Articles by words, best first, with highlights. Facets and totals are in the
        `response` of its pages."""
        request = pb.SearchArticlesRequest(
            page_size=page_size,
            query=query,
            filter=_filter(filter, kinds, (), locales),
            view=value_of(pb.ArticleView, view),
            with_facets=with_facets,
        )
        return AsyncPager(self._search, request, lambda reply: reply.matches, timeout_s)

    async def suggest(
        self, prefix: str, *, locale: str = "", limit: int = 0, timeout_s: float | None = None
    ) -> Sequence[pb.SearchSuggestion]:
        """How the beginning of a search may go on."""
        request = pb.SuggestSearchesRequest(prefix=prefix, locale=locale, limit=limit)
        return (await self._suggest(request, timeout_s)).suggestions

    async def rate(
        self,
        article_id: str,
        vote: pb.Vote.ValueType | str,
        *,
        comment: str = "",
        timeout_s: float | None = None,
    ) -> pb.RateArticleResponse:
        """Say whether an article helped: `HELPFUL`, `NOT_HELPFUL`, or `UNSPECIFIED` to take the
        vote back."""
        request = pb.RateArticleRequest(
            article_id=article_id, vote=value_of(pb.Vote, vote), comment=comment
        )
        return await self._rate(request, timeout_s)

    def top(
        self,
        *,
        filter: pb.ArticleFilter | None = None,
        days: int = 0,
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.TopArticle, pb.ListTopArticlesResponse]:
        """The articles that are read most."""
        request = pb.ListTopArticlesRequest(page_size=page_size, filter=filter, days=days)
        return AsyncPager(self._top, request, lambda reply: reply.articles, timeout_s)

    # -- writing

    async def create(
        self,
        kind: pb.ArticleKind.ValueType | str,
        title: str,
        body: str,
        *,
        summary: str = "",
        locale: str = "",
        slug: str = "",
        category_id: str = "",
        tags: Sequence[str] = (),
        translation_of_id: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Create an article as a draft; `body` is Markdown."""
        article = pb.Article(
            kind=value_of(pb.ArticleKind, kind),
            title=title,
            body=body,
            summary=summary,
            locale=locale,
            slug=slug,
            category_id=category_id,
            tags=tags,
            translation_of_id=translation_of_id,
        )
        request = pb.CreateArticleRequest(
            request_id=request_id or new_request_id(), article=article
        )
        return (await self._create(request, timeout_s)).article

    async def update(
        self,
        article: pb.Article,
        fields: Sequence[str],
        *,
        note: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Change the named fields of the draft. What agents read stays as it is."""
        request = pb.UpdateArticleRequest(
            request_id=request_id or new_request_id(),
            article=article,
            update_mask=mask(*fields),
            note=note,
        )
        return (await self._update(request, timeout_s)).article

    async def submit(
        self,
        article_id: str,
        revision: int,
        *,
        note: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Offer the draft for review; the revision is pinned."""
        request = pb.SubmitArticleRequest(
            request_id=request_id or new_request_id(),
            article_id=article_id,
            revision=revision,
            note=note,
        )
        return (await self._submit(request, timeout_s)).article

    async def approve(
        self,
        article_id: str,
        revision: int,
        *,
        note: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Approve the pinned revision."""
        request = pb.ApproveArticleRequest(
            request_id=request_id or new_request_id(),
            article_id=article_id,
            revision=revision,
            note=note,
        )
        return (await self._approve(request, timeout_s)).article

    async def reject(
        self,
        article_id: str,
        revision: int,
        reason: str,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Send the draft back with a reason."""
        request = pb.RejectArticleRequest(
            request_id=request_id or new_request_id(),
            article_id=article_id,
            revision=revision,
            reason=reason,
        )
        return (await self._reject(request, timeout_s)).article

    async def publish(
        self,
        article_id: str,
        revision: int,
        *,
        at: Time | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Make the approved revision live, now or at a time."""
        request = pb.PublishArticleRequest(
            request_id=request_id or new_request_id(),
            article_id=article_id,
            revision=revision,
            publish_time=timestamp(at),
        )
        return (await self._publish(request, timeout_s)).article

    async def unpublish(
        self,
        article_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Take the live text away, or call off a publication that is scheduled."""
        request = pb.UnpublishArticleRequest(
            request_id=request_id or new_request_id(), article_id=article_id, etag=etag
        )
        return (await self._unpublish(request, timeout_s)).article

    async def archive(
        self,
        article_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Take an article out of use without deleting it."""
        request = pb.ArchiveArticleRequest(
            request_id=request_id or new_request_id(), article_id=article_id, etag=etag
        )
        return (await self._archive(request, timeout_s)).article

    async def delete(
        self,
        article_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Delete an article, which can be undeleted until the `purge_time` of the reply."""
        request = pb.DeleteArticleRequest(
            request_id=request_id or new_request_id(), article_id=article_id, etag=etag
        )
        return (await self._delete(request, timeout_s)).article

    async def undelete(
        self,
        article_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Restore a deleted article as a draft."""
        request = pb.UndeleteArticleRequest(
            request_id=request_id or new_request_id(), article_id=article_id, etag=etag
        )
        return (await self._undelete(request, timeout_s)).article

    # -- revisions

    def revisions(
        self, article_id: str, *, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncPager[pb.Revision, pb.ListRevisionsResponse]:
        """The revisions of an article, newest first."""
        request = pb.ListRevisionsRequest(page_size=page_size, article_id=article_id)
        return AsyncPager(self._list_revisions, request, lambda reply: reply.revisions, timeout_s)

    async def diff(
        self,
        article_id: str,
        from_revision: int,
        to_revision: int,
        *,
        context_lines: int = 0,
        timeout_s: float | None = None,
    ) -> Sequence[pb.FieldDiff]:
        """What changed between two revisions, field by field."""
        request = pb.DiffRevisionsRequest(
            article_id=article_id,
            from_revision=from_revision,
            to_revision=to_revision,
            context_lines=context_lines,
        )
        return (await self._diff(request, timeout_s)).fields

    async def rollback(
        self,
        article_id: str,
        revision: int,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Article:
        """Make an old revision the draft again, as a new revision."""
        request = pb.RollbackArticleRequest(
            request_id=request_id or new_request_id(),
            article_id=article_id,
            revision=revision,
            etag=etag,
        )
        return (await self._rollback(request, timeout_s)).article

    # -- what is missing

    def search_misses(
        self,
        *,
        days: int = 0,
        locale: str = "",
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.SearchMiss, pb.ListSearchMissesResponse]:
        """The searches that found nothing, most frequent first."""
        request = pb.ListSearchMissesRequest(page_size=page_size, days=days, locale=locale)
        return AsyncPager(self._misses, request, lambda reply: reply.misses, timeout_s)

    async def uncovered_reasons(
        self, *, days: int = 0, timeout_s: float | None = None
    ) -> Sequence[pb.UncoveredReason]:
        """The validation reasons that no published article helps with."""
        request = pb.ListUncoveredReasonsRequest(days=days)
        return (await self._uncovered(request, timeout_s)).reasons

    # -- categories

    async def create_category(
        self,
        display_name: str,
        *,
        parent_id: str = "",
        sort_order: int = 0,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Category:
        """Create a category."""
        category = pb.Category(
            display_name=display_name, parent_id=parent_id, sort_order=sort_order
        )
        request = pb.CreateCategoryRequest(
            request_id=request_id or new_request_id(), category=category
        )
        return (await self._create_category(request, timeout_s)).category

    async def update_category(
        self,
        category: pb.Category,
        fields: Sequence[str],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Category:
        """Rename, move or reorder a category."""
        request = pb.UpdateCategoryRequest(
            request_id=request_id or new_request_id(),
            category=category,
            update_mask=mask(*fields),
        )
        return (await self._update_category(request, timeout_s)).category

    def categories(
        self, *, under_id: str = "", page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncPager[pb.Category, pb.ListCategoriesResponse]:
        """Categories, parents before children."""
        request = pb.ListCategoriesRequest(page_size=page_size, under_id=under_id)
        return AsyncPager(self._list_categories, request, lambda reply: reply.categories, timeout_s)

    async def delete_category(
        self,
        category_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Delete a category that is empty."""
        request = pb.DeleteCategoryRequest(
            request_id=request_id or new_request_id(), category_id=category_id, etag=etag
        )
        await self._delete_category(request, timeout_s)


def _filter(
    given: pb.ArticleFilter | None,
    kinds: Sequence[pb.ArticleKind.ValueType | str],
    states: Sequence[pb.ArticleState.ValueType | str],
    locales: Sequence[str],
) -> pb.ArticleFilter:
    made = pb.ArticleFilter(
        kinds=[value_of(pb.ArticleKind, kind) for kind in kinds],
        states=[value_of(pb.ArticleState, state) for state in states],
        locales=locales,
    )
    if given is not None:
        made.MergeFrom(given)
    return made
