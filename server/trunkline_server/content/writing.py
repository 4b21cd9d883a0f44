"""Drafts, reviews and publications: each step in one transaction with its audit."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server import audit, facts
from trunkline_server.content import present, queries, rules
from trunkline_server.content.errors import (
    ArticleDeleted,
    ArticleNotDeleted,
    ArticleNotFound,
    ArticleNotPublished,
    ArticleQuotaReached,
    ArticleStepNotAllowed,
    EtagMismatch,
    FieldInvalid,
    LocaleUnknown,
    PublishTimeInvalid,
    RevisionChanged,
    SelfApproval,
)
from trunkline_server.content.queries import Text
from trunkline_server.content.rules import Action, Actor, Standing, State
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.errors import FieldViolation, QuotaViolation
from trunkline_server.idempotency import Write, once
from trunkline_server.ids import uuid7
from trunkline_server.jobs import enqueue
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import Caller, caller

TOPIC_ARTICLE = "article"  # payload: organisation, article
TOPIC_ARTICLES = "articles"  # payload: organisation, version; what its readers see has changed
GO_LIVE = "content.go_live"
DIFF_CONTEXT_LINES = 3
_COMPARED = ("slug", "title", "summary", "category_id", "tags", "translation_of_id", "body")

Reply = TypeVar("Reply", bound=Message)


@dataclass(slots=True)
class Told:
    """What other processes have to hear once the transaction is committed."""

    version: int = 0
    article_ids: list[UUID] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """A step as its RPC asks for it."""

    action: Action
    method: str
    revision: int = 0
    etag: str = ""
    publish_at: datetime | None = None
    reason: str | None = None
    note: str = ""


async def live_changed(tx: Executor, org_id: UUID, article_id: UUID, told: Told) -> None:
    """Before the article's texts are touched: whoever changes categories locks this first."""
    told.version = await queries.bump_version(tx, org_id)
    # Its translations name it as one of theirs, in the old group and in a new one.
    original = await queries.original_of(tx, org_id, article_id)
    told.article_ids = list(
        {
            article_id,
            original,
            *(await queries.translations(tx, org_id, article_id, live=True)).values(),
            *(await queries.translations(tx, org_id, original, live=True)).values(),
        }
    )


async def move_texts(
    tx: Executor, org_id: UUID, article_id: UUID, before: Standing, after: Standing
) -> None:
    """After the article's row says so."""
    if after.published:
        await queries.put_live(tx, org_id, article_id, after.published)
    elif before.published:
        await queries.take_live_away(tx, org_id, article_id)


async def announce(link: Link | None, org_id: UUID, told: Told) -> None:
    if link is None or not told.version:
        return
    for article_id in told.article_ids:
        await link.publish(TOPIC_ARTICLE, f"{org_id} {article_id}")
    await link.publish(TOPIC_ARTICLES, f"{org_id} {told.version}")


class Writing:
    def __init__(self, *, db: Database, orgs: Orgs, link: Link | None, pages: PageTokens) -> None:
        self._db = db
        self._orgs = orgs
        self._link = link
        self._pages = pages

    # -- drafts

    async def create(self, request: pb.CreateArticleRequest) -> pb.CreateArticleResponse:
        who, given = caller(), request.article
        settings = await self._orgs.get(who.org_id)
        known = rules.locales_of(
            settings.content_rules.default_locale, settings.content_rules.locales
        )
        locale = given.locale or known[0]
        if locale not in known:
            raise LocaleUnknown(metadata={"locales": ",".join(known)})
        if not given.kind:
            raise _invalid("article.kind", "is required")
        title = _title(given.title)

        async def create(tx: Connection) -> pb.CreateArticleResponse:
            article_id = uuid7()
            await self._take_place(tx, who.org_id, settings.quotas.articles)
            await queries.create(tx, who.org_id, article_id, present.kind_name(given.kind), locale)
            text = Text(
                slug=await self._slug(tx, who.org_id, locale, given.slug, title, article_id),
                title=title,
                summary=given.summary,
                body=given.body,
                category_id=_uuid(given.category_id),
                tags=rules.tags_of(given.tags),
                translation_of_id=await _original(
                    tx, who.org_id, article_id, locale, given.translation_of_id
                ),
            )
            await queries.write_revision(
                tx, who.org_id, article_id, 1, text,
                note="", author_id=who.actor_id, author_name=who.actor_name,
            )  # fmt: skip
            await _audit(tx, who, "CreateArticle", article_id, {"revision": "1"})
            return pb.CreateArticleResponse(article=await _draft(tx, who, article_id))

        return await self._write(request, pb.CreateArticleResponse, create)

    async def _take_place(self, tx: Executor, org_id: UUID, quota: int) -> None:
        if await queries.count_article(tx, org_id, 1) > quota:
            raise ArticleQuotaReached(
                quota=[QuotaViolation(f"organisation:{org_id}", f"articles: {quota}")]
            )

    async def _slug(
        self, tx: Executor, org_id: UUID, locale: str, asked: str, title: str, article_id: UUID
    ) -> str:
        slug = asked
        if not slug:
            made = rules.slug_of(title) or f"article-{article_id.hex[-8:]}"
            taken = await queries.slugs_like(tx, org_id, locale, made)
            numbered = (rules.numbered_slug(made, n) for n in range(1, len(taken) + 2))
            slug = next((free for free in numbered if free not in taken), made)
        await queries.take_slug(tx, org_id, locale, slug, article_id)
        return slug

    async def update(self, request: pb.UpdateArticleRequest) -> pb.UpdateArticleResponse:
        who, given, paths = caller(), request.article, set(request.update_mask.paths)
        article_id = _required_uuid(given.article_id, "article.article_id")
        if not given.etag:
            raise _invalid("article.etag", "is required")

        async def update(tx: Connection) -> pb.UpdateArticleResponse:
            row = await queries.lock(tx, who.org_id, article_id)
            before = await queries.revision_row(tx, who.org_id, article_id, row["draft_revision"])
            # The state first: who may not edit at all need not fetch a newer etag.
            after = _taken(row, Change(Action.EDIT, "UpdateArticle", etag=given.etag), who)
            text = await self._changed(tx, who.org_id, row, queries.text(before), given, paths)
            await self._revise(tx, who, row, after, text, "UpdateArticle", note=request.note)
            return pb.UpdateArticleResponse(article=await _draft(tx, who, article_id))

        return await self._write(request, pb.UpdateArticleResponse, update)

    async def _changed(
        self,
        tx: Executor,
        org_id: UUID,
        row: Record,
        text: Text,
        given: pb.Article,
        paths: set[str],
    ) -> Text:
        article_id, locale = row["article_id"], row["locale"]
        if "title" in paths:
            text = replace(text, title=_title(given.title))
        if "summary" in paths:
            text = replace(text, summary=given.summary)
        if "body" in paths:
            text = replace(text, body=given.body)
        if "tags" in paths:
            text = replace(text, tags=rules.tags_of(given.tags))
        if "category_id" in paths:
            text = replace(text, category_id=_uuid(given.category_id))
        if "slug" in paths:
            slug = await self._slug(tx, org_id, locale, given.slug, text.title, article_id)
            text = replace(text, slug=slug)
        if "translation_of_id" in paths:
            original = await _original(tx, org_id, article_id, locale, given.translation_of_id)
            text = replace(text, translation_of_id=original)
        return text

    async def _revise(
        self,
        tx: Executor,
        who: Caller,
        row: Record,
        after: Standing,
        text: Text,
        method: str,
        *,
        note: str,
        rollback_of: int = 0,
    ) -> None:
        article_id = row["article_id"]
        await queries.move(tx, who.org_id, article_id, after)
        await queries.write_revision(
            tx, who.org_id, article_id, after.draft, text,
            note=note, author_id=who.actor_id, author_name=who.actor_name,
            rollback_of=rollback_of,
        )  # fmt: skip
        details = {"revision": str(after.draft)}
        if rollback_of:
            details["rollback_of"] = str(rollback_of)
        if row["state"] != after.state:
            details |= {"from": row["state"], "to": after.state}
        await _audit(tx, who, method, article_id, details)

    async def rollback(self, request: pb.RollbackArticleRequest) -> pb.RollbackArticleResponse:
        who, article_id = caller(), UUID(request.article_id)

        async def roll_back(tx: Connection) -> pb.RollbackArticleResponse:
            row = await queries.lock(tx, who.org_id, article_id)
            change = Change(Action.EDIT, "RollbackArticle", etag=request.etag)
            after = _taken(row, change, who)
            old = await queries.revision_row(tx, who.org_id, article_id, request.revision)
            text = queries.text(old)
            if not await queries.category_exists(tx, who.org_id, text.category_id):
                text = replace(text, category_id=None)
            await self._revise(
                tx, who, row, after, text, "RollbackArticle",
                note="", rollback_of=request.revision,
            )  # fmt: skip
            return pb.RollbackArticleResponse(article=await _draft(tx, who, article_id))

        return await self._write(request, pb.RollbackArticleResponse, roll_back)

    # -- the way to readers

    async def submit(self, request: pb.SubmitArticleRequest) -> pb.SubmitArticleResponse:
        change = Change(Action.SUBMIT, "SubmitArticle", request.revision, note=request.note)
        return await self._step(request, pb.SubmitArticleResponse, change)

    async def approve(self, request: pb.ApproveArticleRequest) -> pb.ApproveArticleResponse:
        change = Change(Action.APPROVE, "ApproveArticle", request.revision, note=request.note)
        return await self._step(request, pb.ApproveArticleResponse, change)

    async def reject(self, request: pb.RejectArticleRequest) -> pb.RejectArticleResponse:
        change = Change(Action.REJECT, "RejectArticle", request.revision, reason=request.reason)
        return await self._step(request, pb.RejectArticleResponse, change)

    async def publish(self, request: pb.PublishArticleRequest) -> pb.PublishArticleResponse:
        change = Change(Action.PUBLISH, "PublishArticle", request.revision)
        if request.HasField("publish_time"):
            at = request.publish_time.ToDatetime(UTC)
            change = replace(change, action=Action.SCHEDULE, publish_at=at)
        return await self._step(request, pb.PublishArticleResponse, change)

    async def unpublish(self, request: pb.UnpublishArticleRequest) -> pb.UnpublishArticleResponse:
        change = Change(Action.UNPUBLISH, "UnpublishArticle", etag=request.etag)
        return await self._step(request, pb.UnpublishArticleResponse, change)

    async def archive(self, request: pb.ArchiveArticleRequest) -> pb.ArchiveArticleResponse:
        change = Change(Action.ARCHIVE, "ArchiveArticle", etag=request.etag)
        return await self._step(request, pb.ArchiveArticleResponse, change)

    async def delete(self, request: pb.DeleteArticleRequest) -> pb.DeleteArticleResponse:
        change = Change(Action.DELETE, "DeleteArticle", etag=request.etag)
        return await self._step(request, pb.DeleteArticleResponse, change)

    async def undelete(self, request: pb.UndeleteArticleRequest) -> pb.UndeleteArticleResponse:
        change = Change(Action.UNDELETE, "UndeleteArticle", etag=request.etag)
        return await self._step(request, pb.UndeleteArticleResponse, change)

    async def _step(self, request: StepRequest, reply_type: type[Reply], change: Change) -> Reply:
        who, article_id = caller(), UUID(request.article_id)
        settings = await self._orgs.get(who.org_id)
        told = Told()

        async def step(tx: Connection) -> Reply:
            row = await queries.lock(tx, who.org_id, article_id)
            own_allowed = settings.content_rules.allow_self_approval
            author_id = None
            if change.action is Action.APPROVE and row["reviewed_revision"]:
                reviewed = await queries.revision_row(
                    tx, who.org_id, article_id, row["reviewed_revision"]
                )
                author_id = reviewed["author_id"]
            after = _taken(row, change, who, author_id=author_id, own_allowed=own_allowed)
            if change.publish_at and not rules.publish_time_fits(
                change.publish_at, datetime.now(UTC)
            ):
                raise PublishTimeInvalid(
                    violations=[FieldViolation("publish_time", "in the next year")]
                )
            kept = timedelta(days=settings.retention.deleted_articles_days)
            await _carry_out(tx, who, row, change, after, kept, told)
            return reply_type(article=await _draft(tx, who, article_id))

        reply = await self._write(request, reply_type, step)
        await announce(self._link, who.org_id, told)
        return reply

    async def _write(
        self,
        request: Write,
        reply_type: type[Reply],
        produce: Callable[[Connection], Awaitable[Reply]],
    ) -> Reply:
        async with self._db.tenant_tx(caller().org_id) as tx:
            return await once(tx, request, reply_type, lambda: produce(tx))

    # -- revisions

    async def list_revisions(self, request: pb.ListRevisionsRequest) -> pb.ListRevisionsResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        article_id = UUID(request.article_id)
        async with self._db.tenant_tx(who.org_id) as tx:
            await queries.locale_of(tx, who.org_id, article_id)
            rows = await queries.revisions(
                tx, who.org_id, article_id, position[0] if position else None, size + 1
            )
        more = len(rows) > size
        return pb.ListRevisionsResponse(
            revisions=[present.revision(row) for row in rows[:size]],
            next_page_token=(
                self._pages.seal([rows[size - 1]["revision"]], request) if more else ""
            ),
        )

    async def diff(self, request: pb.DiffRevisionsRequest) -> pb.DiffRevisionsResponse:
        who, article_id = caller(), UUID(request.article_id)
        async with self._db.tenant_tx(who.org_id) as tx:
            await queries.locale_of(tx, who.org_id, article_id)
            rows = [
                await queries.revision_row(tx, who.org_id, article_id, revision)
                for revision in (request.from_revision, request.to_revision)
            ]
        texts = [queries.text(row) for row in rows]
        names = (f"revision {request.from_revision}", f"revision {request.to_revision}")
        context = request.context_lines or DIFF_CONTEXT_LINES
        # Beside the event loop: two long texts with little in common take a while.
        fields = await asyncio.to_thread(_differences, texts[0], texts[1], names, context)
        return pb.DiffRevisionsResponse(fields=fields)

    # -- votes

    async def rate(self, request: pb.RateArticleRequest) -> pb.RateArticleResponse:
        who, article_id = caller(), UUID(request.article_id)
        vote = "" if not request.vote else pb.Vote.Name(request.vote).removeprefix("VOTE_")
        async with self._db.tenant_tx(who.org_id) as tx:
            live = await queries.is_live(tx, who.org_id, article_id)
            if not live:
                # Readers do not learn of what is not published.
                hidden = live is None or who.role not in rules.WRITERS
                raise ArticleNotFound if hidden else ArticleNotPublished
            counts = await queries.vote(
                tx, who.org_id, article_id, who.actor_id, vote, request.comment
            )
            if vote:
                fact = facts.Fact("ARTICLE_VOTE", datetime.now(UTC), who.actor_id, vote.lower())
                await facts.append(tx, who.org_id, [fact])
        return pb.RateArticleResponse(
            helpful_votes=counts["helpful"], not_helpful_votes=counts["not_helpful"]
        )


StepRequest = (
    pb.SubmitArticleRequest
    | pb.ApproveArticleRequest
    | pb.RejectArticleRequest
    | pb.PublishArticleRequest
    | pb.UnpublishArticleRequest
    | pb.ArchiveArticleRequest
    | pb.DeleteArticleRequest
    | pb.UndeleteArticleRequest
)


def _taken(
    row: Record,
    change: Change,
    who: Caller,
    *,
    author_id: UUID | None = None,
    own_allowed: bool = False,
) -> Standing:
    """The workflow's word on it, in the words of the API."""
    before = queries.standing(row)
    if before.state is State.DELETED and change.action is not Action.UNDELETE:
        raise ArticleDeleted
    if before.state is not State.DELETED and change.action is Action.UNDELETE:
        raise ArticleNotDeleted
    try:
        after = rules.take(
            before, change.action, Actor(who.role, who.actor_id),
            revision=change.revision, author_id=author_id, own_allowed=own_allowed,
        )  # fmt: skip
    except rules.NotAllowed as refused:
        raise ArticleStepNotAllowed.naming(str(row["article_id"]), refused.allowed) from None
    except rules.OtherRevision as other:
        raise RevisionChanged(metadata={"revision": str(other.current)}) from None
    except rules.OwnRevision:
        raise SelfApproval from None
    if change.etag and change.etag != present.etag(row):
        raise EtagMismatch(
            metadata={"etag": present.etag(row), "revision": str(row["draft_revision"])}
        )
    return after


async def _carry_out(
    tx: Executor,
    who: Caller,
    row: Record,
    change: Change,
    after: Standing,
    kept: timedelta,
    told: Told,
) -> None:
    org_id, article_id, before = who.org_id, row["article_id"], queries.standing(row)
    goes = before.published != after.published
    if goes:
        await live_changed(tx, org_id, article_id, told)
    await queries.move(
        tx, org_id, article_id, after,
        publish_at=change.publish_at, text_goes_live=goes, rejection_reason=change.reason,
        kept=kept if after.state is State.DELETED else None,
    )  # fmt: skip
    if goes:
        await move_texts(tx, org_id, article_id, before, after)
    if change.action is Action.APPROVE:
        await queries.note_approval(tx, org_id, article_id, before.reviewed, who.actor_id)
    if change.action is Action.REJECT:
        await queries.note_rejection(tx, org_id, article_id, before.reviewed, change.reason or "")
    if change.note:
        await queries.add_note(tx, org_id, article_id, change.revision, change.note)
    if change.publish_at is not None:
        await enqueue(
            tx, org_id, GO_LIVE, subject_id=article_id, run_after=change.publish_at,
            payload={"revision": after.reviewed, "at": change.publish_at.isoformat()},
        )  # fmt: skip
    details = {"from": before.state.value, "to": after.state.value}
    if pinned := change.revision or after.published or before.published:
        details["revision"] = str(pinned)
    if change.publish_at is not None:
        details["publish_time"] = change.publish_at.isoformat()
    await _audit(tx, who, change.method, article_id, details)


async def _audit(
    tx: Executor, who: Caller, method: str, article_id: UUID, details: dict[str, str]
) -> None:
    await audit.append(
        tx, who.org_id, f"content.{method}",
        resource_type="article", resource_id=article_id, details=details,
    )  # fmt: skip


async def _draft(tx: Executor, who: Caller, article_id: UUID) -> pb.Article:
    row = await queries.get(tx, who.org_id, article_id, live=False)
    return present.article(row, who.role, live=False)


async def _original(
    tx: Executor, org_id: UUID, article_id: UUID, locale: str, asked: str
) -> UUID | None:
    """The original of the article that was named, which may itself be a translation."""
    if not asked:
        return None
    original = await queries.original_of(tx, org_id, UUID(asked))
    field_name = "article.translation_of_id"
    if original == article_id:
        raise _invalid(field_name, "an article does not translate itself")
    if await queries.locale_of(tx, org_id, original) == locale:
        raise _invalid(field_name, "the original has the same locale")
    if await queries.has_translations(tx, org_id, article_id):
        raise _invalid(field_name, "the article is an original that has translations")
    return original


def _differences(
    before: Text, after: Text, names: tuple[str, str], context: int
) -> list[pb.FieldDiff]:
    found = []
    for name in _COMPARED:
        one, other = (_lines(getattr(text, name)) for text in (before, after))
        if one != other:
            lines = difflib.unified_diff(one, other, *names, n=context, lineterm="")
            found.append(pb.FieldDiff(field=name, unified="\n".join(lines)))
    return found


def _lines(value: object) -> list[str]:
    if isinstance(value, list):
        return value
    return [] if value in (None, "") else str(value).split("\n")


def _title(given: str) -> str:
    title = given.strip()
    if not title:
        raise _invalid("article.title", "is required")
    return title


def _invalid(name: str, description: str) -> FieldInvalid:
    return FieldInvalid(violations=[FieldViolation(name, description)])


def _required_uuid(value: str, name: str) -> UUID:
    if not value:
        raise _invalid(name, "is required")
    return UUID(value)


def _uuid(value: str) -> UUID | None:
    return UUID(value) if value else None
