"""ContentService: one method for each RPC, and the parts that do the work."""

from __future__ import annotations

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.cache import Cache
from trunkline_server.content.categories import Categories
from trunkline_server.content.gaps import Gaps
from trunkline_server.content.reading import Live, Prepared, Reading
from trunkline_server.content.search import Searching
from trunkline_server.content.shelf import Shelf
from trunkline_server.content.tallies import Tallies
from trunkline_server.content.writing import Writing
from trunkline_server.db import Database
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens
from trunkline_server.valkey import Valkey


class ContentService:
    """What agents read while the caller waits."""

    def __init__(
        self,
        *,
        db: Database,
        orgs: Orgs,
        link: Link | None,
        valkey: Valkey | None,
        pages: PageTokens,
    ) -> None:
        self.tallies = Tallies(db, orgs)
        self.shelf = Shelf(db, valkey, link)
        self._writing = Writing(db=db, orgs=orgs, link=link, pages=pages)
        self._reading = Reading(
            db=db, orgs=orgs, link=link, pages=pages, shelf=self.shelf, tallies=self.tallies
        )
        self._searching = Searching(db=db, pages=pages, tallies=self.tallies)
        self._categories = Categories(db=db, link=link, pages=pages)
        self._gaps = Gaps(db=db, orgs=orgs, pages=pages)

    async def start(self) -> None:
        self.tallies.start()

    async def close(self) -> None:
        await self.shelf.close()
        await self.tallies.close()

    @property
    def cache(self) -> Cache[tuple[str, str], Live]:
        return self._reading.cache

    async def CreateArticle(
        self, request: pb.CreateArticleRequest, context: object
    ) -> pb.CreateArticleResponse:
        return await self._writing.create(request)

    async def GetArticle(
        self, request: pb.GetArticleRequest, context: object
    ) -> pb.GetArticleResponse | Prepared:
        return await self._reading.get(request)

    async def UpdateArticle(
        self, request: pb.UpdateArticleRequest, context: object
    ) -> pb.UpdateArticleResponse:
        return await self._writing.update(request)

    async def ListArticles(
        self, request: pb.ListArticlesRequest, context: object
    ) -> pb.ListArticlesResponse:
        return await self._reading.list_articles(request)

    async def SearchArticles(
        self, request: pb.SearchArticlesRequest, context: object
    ) -> pb.SearchArticlesResponse:
        return await self._searching.search(request)

    async def SubmitArticle(
        self, request: pb.SubmitArticleRequest, context: object
    ) -> pb.SubmitArticleResponse:
        return await self._writing.submit(request)

    async def ApproveArticle(
        self, request: pb.ApproveArticleRequest, context: object
    ) -> pb.ApproveArticleResponse:
        return await self._writing.approve(request)

    async def RejectArticle(
        self, request: pb.RejectArticleRequest, context: object
    ) -> pb.RejectArticleResponse:
        return await self._writing.reject(request)

    async def PublishArticle(
        self, request: pb.PublishArticleRequest, context: object
    ) -> pb.PublishArticleResponse:
        return await self._writing.publish(request)

    async def UnpublishArticle(
        self, request: pb.UnpublishArticleRequest, context: object
    ) -> pb.UnpublishArticleResponse:
        return await self._writing.unpublish(request)

    async def ArchiveArticle(
        self, request: pb.ArchiveArticleRequest, context: object
    ) -> pb.ArchiveArticleResponse:
        return await self._writing.archive(request)

    async def DeleteArticle(
        self, request: pb.DeleteArticleRequest, context: object
    ) -> pb.DeleteArticleResponse:
        return await self._writing.delete(request)

    async def UndeleteArticle(
        self, request: pb.UndeleteArticleRequest, context: object
    ) -> pb.UndeleteArticleResponse:
        return await self._writing.undelete(request)

    async def ListRevisions(
        self, request: pb.ListRevisionsRequest, context: object
    ) -> pb.ListRevisionsResponse:
        return await self._writing.list_revisions(request)

    async def DiffRevisions(
        self, request: pb.DiffRevisionsRequest, context: object
    ) -> pb.DiffRevisionsResponse:
        return await self._writing.diff(request)

    async def RollbackArticle(
        self, request: pb.RollbackArticleRequest, context: object
    ) -> pb.RollbackArticleResponse:
        return await self._writing.rollback(request)

    async def RateArticle(
        self, request: pb.RateArticleRequest, context: object
    ) -> pb.RateArticleResponse:
        return await self._writing.rate(request)

    async def ListTopArticles(
        self, request: pb.ListTopArticlesRequest, context: object
    ) -> pb.ListTopArticlesResponse:
        return await self._reading.top(request)

    async def ListSearchMisses(
        self, request: pb.ListSearchMissesRequest, context: object
    ) -> pb.ListSearchMissesResponse:
        return await self._gaps.list_misses(request)

    async def SuggestSearches(
        self, request: pb.SuggestSearchesRequest, context: object
    ) -> pb.SuggestSearchesResponse:
        return await self._searching.suggest(request)

    async def ListUncoveredReasons(
        self, request: pb.ListUncoveredReasonsRequest, context: object
    ) -> pb.ListUncoveredReasonsResponse:
        return await self._gaps.list_uncovered(request)

    async def CreateCategory(
        self, request: pb.CreateCategoryRequest, context: object
    ) -> pb.CreateCategoryResponse:
        return await self._categories.create(request)

    async def UpdateCategory(
        self, request: pb.UpdateCategoryRequest, context: object
    ) -> pb.UpdateCategoryResponse:
        return await self._categories.update(request)

    async def ListCategories(
        self, request: pb.ListCategoriesRequest, context: object
    ) -> pb.ListCategoriesResponse:
        return await self._categories.list(request)

    async def DeleteCategory(
        self, request: pb.DeleteCategoryRequest, context: object
    ) -> pb.DeleteCategoryResponse:
        return await self._categories.delete(request)
