"""Articles as they are read: live texts from memory, drafts and lists from the database.

A live text is prepared once for each process as the bytes that go on the wire; a publication drops
it wherever it is kept (docs/adr/0026).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.cache import MISS, Cache
from trunkline_server.content import categories, present, queries, render, rules
from trunkline_server.content.errors import ArticleNotFound
from trunkline_server.content.queries import Filter
from trunkline_server.content.shelf import Shelf
from trunkline_server.content.tallies import Tallies
from trunkline_server.content.writing import TOPIC_ARTICLE
from trunkline_server.db import Database, Executor, Record
from trunkline_server.errors import PermissionDenied
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import Caller, Role, caller

ENTRIES_MAX = 20_000
TTL_S = 60.0
NEGATIVE_TTL_S = 2.0
# With the link down nothing read is older than this.
SHORT_TTL_S = 1.0
# A page with bodies must fit one message: ten of 256 KiB.
BODIES_PAGE_MAX = 10
TOP_DAYS = 7
_OF_THE_PAGE = {"page_token", "page_size", "if_none_match"}


class Prepared:
    """A reply that is bytes already; the wrapper asks a reply for nothing else."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self._content


_NOT_MODIFIED = Prepared(pb.GetArticleResponse(not_modified=True).SerializeToString())


class Live:
    """An article's live text as readers get it."""

    __slots__ = ("article", "article_key", "etag", "html", "locale", "others", "reply")

    def __init__(self, article: pb.Article, others: dict[str, str]) -> None:
        self.article = article
        self.article_key = article.article_id
        self.etag = article.etag
        self.locale = article.locale
        self.others = others  # its live translations by locale, itself among them
        self.reply = Prepared(pb.GetArticleResponse(article=article).SerializeToString())
        self.html = ""  # rendered when somebody asks


@dataclass(frozen=True, slots=True)
class Page:
    """What a list's page is made of, beside its filter."""

    order: str
    size: int
    after: tuple[Any, UUID] | None
    paths: tuple[str, ...]


class Reading:
    def __init__(
        self,
        *,
        db: Database,
        orgs: Orgs,
        link: Link | None,
        pages: PageTokens,
        shelf: Shelf,
        tallies: Tallies,
    ) -> None:
        self._db = db
        self._orgs = orgs
        self._pages = pages
        self._shelf = shelf
        self._tallies = tallies
        self.cache: Cache[tuple[str, str], Live] = Cache(
            "articles",
            entries_max=ENTRIES_MAX,
            ttl_s=TTL_S,
            negative_ttl_s=NEGATIVE_TTL_S,
            short_ttl_s=SHORT_TTL_S,
        )
        if link is None:
            self.cache.distrust()
        else:
            link.subscribe(TOPIC_ARTICLE, self._changed)
            link.on_loss(self.cache.distrust)
            link.on_recovery(self.cache.restore)

    def _changed(self, payload: str) -> None:
        org_key, _, article_key = payload.partition(" ")
        self.cache.invalidate((org_key, article_key))

    # -- one article

    async def get(self, request: pb.GetArticleRequest) -> pb.GetArticleResponse | Prepared:
        who = caller()
        if not is_live_view(request.view, who.role):
            return await self._get_for_writer(request, who, live=False)
        if who.role in rules.WRITERS:
            return await self._get_for_writer(request, who, live=True)
        key = request.article_id.lower()
        found = self.cache.get((who.org_key, key))
        if found is MISS:
            found = await self._load_live(who, key)
        if request.locale and (found is None or found.locale != request.locale):  # type: ignore[union-attr]
            found = await self._translated(who, key, found, request.locale)  # type: ignore[arg-type]
        if found is None:
            raise ArticleNotFound
        assert isinstance(found, Live)
        if request.if_none_match and request.if_none_match == found.etag:
            return _NOT_MODIFIED
        self._tallies.viewed(who, found.article_key)
        if not request.HasField("read_mask"):
            return found.reply
        return pb.GetArticleResponse(
            article=await self._masked(found, list(request.read_mask.paths))
        )

    async def _masked(self, found: Live, paths: list[str]) -> pb.Article:
        message = present.masked(found.article, paths)
        if "body_html" in paths:
            found.html = found.html or await render.rendered(found.article.body)
            if message is found.article:
                message = pb.Article()
                message.CopyFrom(found.article)
            message.body_html = found.html
        return message

    async def _load_live(self, who: Caller, key: str) -> Live | None:
        return await self.cache.load(
            who.org_id, (who.org_key, key), lambda: self._read_live(who.org_id, UUID(key))
        )

    async def _read_live(self, org_id: UUID, article_id: UUID) -> Live | None:
        async with self._db.tenant_tx(org_id) as tx:
            try:
                row = await queries.get(tx, org_id, article_id, live=True)
            except ArticleNotFound:
                return None
            others = await queries.translations(tx, org_id, article_id, live=True)
        message = present.article(row, Role.AGENT, live=True)
        return Live(message, {locale: str(each) for locale, each in others.items()})

    async def _translated(
        self, who: Caller, key: str, found: Live | None, wanted: str
    ) -> Live | None:
        """The live text of the group that is nearest to the wanted locale."""
        if found is not None:
            there = found.others
        else:
            # The article itself is not live, but a translation of it may be.
            async with self._db.tenant_tx(who.org_id) as tx:
                original = await self._original(tx, who.org_id, UUID(key))
                others = await queries.translations(tx, who.org_id, original, live=True)
            there = {locale: str(each) for locale, each in others.items()}
        settings = await self._orgs.get(who.org_id)
        default = settings.content_rules.default_locale
        best = rules.nearest_locale(wanted, there, default)
        if not best or there[best] == key:
            return found
        other = self.cache.get((who.org_key, there[best]))
        other = await self._load_live(who, there[best]) if other is MISS else other
        return other or found  # type: ignore[return-value]

    async def _original(self, tx: Executor, org_id: UUID, article_id: UUID) -> UUID:
        return await queries.original_of(tx, org_id, article_id)

    async def _get_for_writer(
        self, request: pb.GetArticleRequest, who: Caller, *, live: bool
    ) -> pb.GetArticleResponse:
        article_id = UUID(request.article_id)
        async with self._db.tenant_tx(who.org_id) as tx:
            if request.locale:
                article_id = await self._nearest(tx, who.org_id, article_id, request.locale, live)
            row = await queries.get(tx, who.org_id, article_id, live=live)
        if row["deleted_at"] is not None and who.role is not Role.ADMIN:
            raise ArticleNotFound
        if request.if_none_match and request.if_none_match == present.etag(row):
            return pb.GetArticleResponse(not_modified=True)
        message = present.article(row, who.role, live=live)
        paths = list(request.read_mask.paths)
        if "body_html" in paths:
            message.body_html = await render.rendered(row["body"])
        return pb.GetArticleResponse(article=present.masked(message, paths))

    async def _nearest(
        self, tx: Executor, org_id: UUID, article_id: UUID, wanted: str, live: bool
    ) -> UUID:
        original = await queries.original_of(tx, org_id, article_id)
        there = await queries.translations(tx, org_id, original, live=live)
        default = (await self._orgs.get(org_id)).content_rules.default_locale
        own = await queries.locale_of(tx, org_id, article_id)
        best = rules.nearest_locale(wanted, there, default)
        return article_id if not best or best == own else there[best]

    # -- lists

    async def list_articles(self, request: pb.ListArticlesRequest) -> pb.ListArticlesResponse:
        who, paths = caller(), tuple(request.read_mask.paths)
        size = page_size(request.page_size)
        if {"body", "body_html"} & set(paths):
            size = min(size, BODIES_PAGE_MAX)
        live = is_live_view(request.view, who.role)
        order = pb.ArticleOrder.Name(request.order).removeprefix("ARTICLE_ORDER_")
        if order == "UNSPECIFIED" or (live and order == "UPDATE_TIME_DESC"):
            # Readers' articles change when they are published, not when somebody writes.
            order = "PUBLISH_TIME_DESC" if live else "UPDATE_TIME_DESC"
        position = self._pages.open(request.page_token, request_of(request))
        page = Page(order, size, _after(order, position), paths)
        if live and who.role not in rules.WRITERS:
            # One list for all readers; page tokens are sealed for each caller's request anyway.
            what = f"list:{size}:{position}:".encode() + _bare(request)
            content = await self._shelf.get(
                who.org_id, what, lambda: self._listed_bytes(request, who, page, live)
            )
        else:
            content = await self._listed_bytes(request, who, page, live)
        reply = pb.ListArticlesResponse.FromString(content)
        if request.if_none_match and request.if_none_match == reply.etag:
            return pb.ListArticlesResponse(etag=reply.etag, not_modified=True)
        return reply

    async def _listed_bytes(
        self, request: pb.ListArticlesRequest, who: Caller, page: Page, live: bool
    ) -> bytes:
        async with self._db.tenant_tx(who.org_id) as tx:
            asked = await filter_of(tx, who, request.filter, live=live)
            rows = await queries.list_articles(
                tx, who.org_id, asked,
                order=page.order,
                with_body=bool({"body", "body_html"} & set(page.paths)),
                after=page.after,
                limit=page.size + 1,
            )  # fmt: skip
        reply = pb.ListArticlesResponse()
        for row in rows[: page.size]:
            message = present.article(row, who.role, live=live)
            if "body_html" in page.paths:
                message.body_html = await render.rendered(row["body"])
            reply.articles.append(present.masked(message, page.paths))
        reply.etag = hashlib.sha256(reply.SerializeToString()).hexdigest()[:32]
        if len(rows) > page.size:
            last = _position(page.order, rows[page.size - 1])
            reply.next_page_token = self._pages.seal(last, request_of(request))
        return reply.SerializeToString()

    async def top(self, request: pb.ListTopArticlesRequest) -> pb.ListTopArticlesResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        today = (await self._orgs.get(who.org_id)).today(datetime.now(UTC))
        role = Role.AGENT  # the same for everybody
        what = f"top:{size}:{position}:{today}:".encode() + _bare(request)
        content = await self._shelf.get(
            who.org_id, what, lambda: self._top_bytes(request, who, role, size, position, today)
        )
        return pb.ListTopArticlesResponse.FromString(content)

    async def _top_bytes(
        self,
        request: pb.ListTopArticlesRequest,
        who: Caller,
        role: Role,
        size: int,
        position: Sequence[Any] | None,
        today: date,
    ) -> bytes:
        before = (position[0], UUID(position[1])) if position else None
        async with self._db.tenant_tx(who.org_id) as tx:
            asked = await filter_of(tx, who, request.filter, live=True)
            rows = await queries.top(
                tx, who.org_id, asked,
                today=today, days=request.days or TOP_DAYS, before=before, limit=size + 1,
            )  # fmt: skip
            shown = rows[:size]
            articles = await queries.many(
                tx, who.org_id, [row["article_id"] for row in shown], live=True
            )
        reply = pb.ListTopArticlesResponse(
            articles=[
                pb.TopArticle(
                    article=present.article(articles[row["article_id"]], role, live=True),
                    views=row["views"],
                )
                for row in shown
                if row["article_id"] in articles
            ],
            as_of=present.timestamp(datetime.now(UTC)),
        )
        if len(rows) > size:
            last = rows[size - 1]
            reply.next_page_token = self._pages.seal(
                [last["views"], str(last["article_id"])], request
            )
        return reply.SerializeToString()


def is_live_view(view: pb.ArticleView.ValueType, role: Role) -> bool:
    """Whether the live texts are asked for. Drafts are for writers."""
    if role in rules.WRITERS:
        return view == pb.ARTICLE_VIEW_PUBLISHED
    if view == pb.ARTICLE_VIEW_DRAFT:
        raise PermissionDenied("Drafts are for trainers and administrators.")
    return True


async def filter_of(tx: Executor, who: Caller, asked: pb.ArticleFilter, *, live: bool) -> Filter:
    if asked.show_deleted and who.role is not Role.ADMIN:
        raise PermissionDenied("Deleted articles are for administrators.")
    states = [present.state_name(state) for state in asked.states]
    if who.role not in rules.WRITERS and states:
        # To readers every live text is published, whatever its draft is doing.
        states = [] if "PUBLISHED" in states else ["NONE"]
    category_ids = None
    if asked.category_ids:
        tops = [UUID(each) for each in asked.category_ids]
        category_ids = sorted(await categories.with_all_below(tx, who.org_id, tops))
    return Filter(
        live=live,
        deleted=asked.show_deleted,
        kinds=[present.kind_name(kind) for kind in asked.kinds] or None,
        states=states or None,
        category_ids=category_ids,
        tags=rules.tags_of(asked.tags) or None,
        locales=list(asked.locales) or None,
        author_id=UUID(asked.author_id) if asked.author_id else None,
    )


def request_of(request: pb.ListArticlesRequest) -> pb.ListArticlesRequest:
    """What a page token is bound to: not to the copy that a caller happens to have."""
    bound = pb.ListArticlesRequest()
    bound.CopyFrom(request)
    bound.ClearField("if_none_match")
    return bound


def _bare(request: Message) -> bytes:
    """The list without the page: what all who ask for it have in common."""
    bare: Any = type(request)()
    bare.CopyFrom(request)
    for name in _OF_THE_PAGE & set(bare.DESCRIPTOR.fields_by_name):
        bare.ClearField(name)
    content: bytes = bare.SerializeToString(deterministic=True)
    return content


def _after(order: str, position: Sequence[Any] | None) -> tuple[Any, UUID] | None:
    if position is None:
        return None
    key = position[0] if order == "TITLE" else datetime.fromisoformat(position[0])
    return key, UUID(position[1])


def _position(order: str, row: Record) -> list[Any]:
    article_id = str(row["article_id"])
    match order:
        case "TITLE":
            return [row["title_key"], article_id]
        case "PUBLISH_TIME_DESC":
            return [row["live_at"].isoformat(), article_id]
        case _:
            return [row["updated_at"].isoformat(), article_id]
