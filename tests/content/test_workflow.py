"""Drafts, reviews, publications and what is refused on the way, through a real channel."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.content.desk import Desk, refused
from tests.running import Running
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline.api.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from trunkline_server.rpc.caller import Role

Code = grpc.StatusCode
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def at(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


async def set_rules(server: Running, desk: Desk, **rules: Any) -> None:
    stub: Any = IdentityServiceStub(server.channel)
    request = identity.UpdateOrgRequest(
        org=identity.Org(content_rules=identity.ContentRules(**rules))
    )
    request.update_mask.paths.append("content_rules")
    await stub.UpdateOrg(request, metadata=desk.org.as_(Role.ADMIN))


async def test_an_article_on_its_way_to_readers(desk: Desk, database: Any) -> None:
    article = await desk.create(body="Ask the *caller*.", tags=["Login", "login"])
    assert (article.state, article.slug) == (pb.ARTICLE_STATE_DRAFT, "password-reset")
    assert list(article.tags) == ["login"]
    with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
        await desk.get(article)
    submitted = await desk.step("Submit", article, Role.TRAINER)
    assert submitted.state == pb.ARTICLE_STATE_IN_REVIEW
    assert submitted.reviewed_revision == 1
    approved = await desk.step("Approve", article)
    assert approved.state == pb.ARTICLE_STATE_APPROVED
    with refused(Code.NOT_FOUND):
        await desk.get(article)
    published = await desk.step("Publish", article)
    assert published.state == pb.ARTICLE_STATE_PUBLISHED
    live = await desk.get(article)
    assert (live.body, live.revision) == ("Ask the *caller*.", 1)
    # The next draft stands beside it.
    changed = await desk.update(published, body="Ask twice.")
    assert (changed.state, changed.draft_revision) == (pb.ARTICLE_STATE_DRAFT, 2)
    assert (await desk.get(article)).body == "Ask the *caller*."
    assert (await desk.get(article, Role.TRAINER)).body == "Ask twice."
    await desk.publish(changed)
    assert (await desk.get(article)).body == "Ask twice."
    actions = await database.fetch(
        "SELECT action FROM audit_log WHERE resource_id = $1 ORDER BY at", article.article_id
    )
    assert [row["action"].removeprefix("content.") for row in actions] == [
        "CreateArticle", "SubmitArticle", "ApproveArticle", "PublishArticle",
        "UpdateArticle", "SubmitArticle", "ApproveArticle", "PublishArticle",
    ]  # fmt: skip


async def test_two_trainers_at_one_article_lose_nothing(desk: Desk) -> None:
    article = await desk.create(body="from the beginning")
    changes = [desk.update(article, body=f"by trainer {number}") for number in range(2)]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    (winner,) = [each for each in outcomes if isinstance(each, pb.Article)]
    (loser,) = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert loser.code() is Code.ABORTED
    with refused(Code.ABORTED, "ETAG_MISMATCH") as refusal:
        await desk.update(article, body="once more")
    assert refusal.metadata == {"etag": winner.etag, "revision": "2"}
    # With what the refusal told, the other trainer sees what was written, and goes on from there.
    theirs = await desk.get(article, Role.TRAINER)
    assert theirs.etag == refusal.metadata["etag"]
    merged = await desk.update(theirs, body=theirs.body + " and by the other")
    assert merged.draft_revision == 3
    revisions = await desk.call(
        "ListRevisions", pb.ListRevisionsRequest(article_id=article.article_id)
    )
    assert [each.revision for each in revisions.revisions] == [3, 2, 1]


async def test_steps_out_of_order_name_the_allowed_ones(desk: Desk) -> None:
    article = await desk.create()
    with refused(Code.FAILED_PRECONDITION, "ARTICLE_TRANSITION_NOT_ALLOWED") as refusal:
        await desk.step("Publish", article)
    assert refusal.metadata["allowed_actions"] == "EDIT,SUBMIT,ARCHIVE,DELETE"
    assert refusal.details is not None
    (violation,) = refusal.details["PreconditionFailure"].violations
    assert violation.type == "ARTICLE_STATE"
    assert "SUBMIT" in violation.description
    with refused(Code.FAILED_PRECONDITION, "ARTICLE_TRANSITION_NOT_ALLOWED"):
        await desk.step("Unpublish", article)
    await desk.step("Submit", article)
    with refused(Code.FAILED_PRECONDITION, "ARTICLE_REVISION_CHANGED") as refusal:
        await desk.step("Approve", article, revision=2)
    assert refusal.metadata["revision"] == "1"


async def test_an_edit_takes_back_what_was_submitted_or_approved(desk: Desk) -> None:
    article = await desk.create()
    approved = await desk.approved(article)
    changed = await desk.update(approved, title="Another title")
    assert (changed.state, changed.reviewed_revision) == (pb.ARTICLE_STATE_DRAFT, 0)
    for revision in (1, 2):
        with refused(Code.FAILED_PRECONDITION):
            await desk.step("Publish", article, revision=revision)


async def test_nobody_approves_their_own_unless_allowed(server: Running, desk: Desk) -> None:
    article = await desk.create(role=Role.ADMIN)
    await desk.step("Submit", article)
    with refused(Code.PERMISSION_DENIED, "ARTICLE_SELF_APPROVAL"):
        await desk.step("Approve", article)
    await set_rules(server, desk, allow_self_approval=True)
    approved = await desk.step("Approve", article)
    assert approved.state == pb.ARTICLE_STATE_APPROVED


async def test_a_rejection_says_why(desk: Desk) -> None:
    article = await desk.create()
    await desk.step("Submit", article, Role.TRAINER, note="please look at the table")
    rejected = await desk.step("Reject", article, reason="too long")
    assert rejected.state == pb.ARTICLE_STATE_DRAFT
    assert rejected.rejection_reason == "too long"
    reply = await desk.call("ListRevisions", pb.ListRevisionsRequest(article_id=article.article_id))
    assert reply.revisions[0].rejection_reason == "too long"
    assert reply.revisions[0].note == "please look at the table"
    assert (await desk.step("Submit", article, Role.TRAINER)).rejection_reason == ""


async def test_unpublish_archive_delete_and_undelete(desk: Desk) -> None:
    article = await desk.published()
    away = await desk.step("Unpublish", article)
    assert (away.state, away.published_revision) == (pb.ARTICLE_STATE_APPROVED, 0)
    with refused(Code.NOT_FOUND):
        await desk.get(article)
    await desk.step("Publish", article)
    await desk.get(article)
    archived = await desk.step("Archive", article)
    assert archived.state == pb.ARTICLE_STATE_ARCHIVED
    with refused(Code.NOT_FOUND):
        await desk.get(article)
    deleted = await desk.step("Delete", article)
    assert deleted.HasField("delete_time")
    days = deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime()
    assert days == timedelta(days=30)
    with refused(Code.NOT_FOUND):
        await desk.get(article, Role.TRAINER)
    assert list((await desk.get(article, Role.ADMIN)).allowed_actions) == [
        pb.ARTICLE_ACTION_UNDELETE
    ]
    assert await desk.listed(Role.ADMIN) == []
    shown = pb.ArticleFilter(show_deleted=True)
    assert await desk.listed(Role.ADMIN, filter=shown) == ["Password reset"]
    with refused(Code.PERMISSION_DENIED):
        await desk.listed(Role.TRAINER, filter=shown)
    with refused(Code.FAILED_PRECONDITION, "ARTICLE_DELETED"):
        await desk.update(deleted, title="x")
    restored = await desk.step("Undelete", article)
    assert restored.state == pb.ARTICLE_STATE_DRAFT
    assert not restored.HasField("purge_time")
    with refused(Code.FAILED_PRECONDITION, "NOT_UNDELETABLE"):
        await desk.step("Undelete", article)


async def test_a_stale_etag_stops_every_step_that_takes_one(desk: Desk) -> None:
    article = await desk.published()
    for method in ("Unpublish", "Archive", "Delete", "Rollback"):
        with refused(Code.ABORTED, "ETAG_MISMATCH") as refusal:
            await desk.step(method, article, etag="1")
        assert refusal.metadata["etag"] == article.etag


async def test_publishing_times_that_do_not_fit(desk: Desk) -> None:
    article = await desk.create()
    await desk.approved(article)
    now = datetime.now(UTC)
    for moment in (LONG_AGO, now - timedelta(seconds=1), now + timedelta(days=400)):
        with refused(Code.INVALID_ARGUMENT, "PUBLISH_TIME_INVALID"):
            await desk.step("Publish", article, publish_time=at(moment))
    later = await desk.step("Publish", article, publish_time=at(now + timedelta(hours=1)))
    assert later.state == pb.ARTICLE_STATE_SCHEDULED
    with refused(Code.FAILED_PRECONDITION, "ARTICLE_TRANSITION_NOT_ALLOWED") as refusal:
        await desk.update(later, Role.ADMIN, title="sneaked in")
    assert "UNPUBLISH" in refusal.metadata["allowed_actions"]
    called_off = await desk.step("Unpublish", article)
    assert called_off.state == pb.ARTICLE_STATE_APPROVED
    assert not called_off.HasField("publish_time")


async def test_revisions_differ_and_come_back(desk: Desk) -> None:
    article = await desk.create(body="one\ntwo\nthree", tags=["a"])
    changed = await desk.update(article, body="one\n2\nthree", tags=["a", "b"])
    request = pb.DiffRevisionsRequest(article_id=article.article_id, from_revision=1, to_revision=2)
    diff = {each.field: each.unified for each in (await desk.call("DiffRevisions", request)).fields}
    assert set(diff) == {"tags", "body"}
    assert "-two" in diff["body"].split("\n")
    assert "+2" in diff["body"].split("\n")
    back = await desk.step("Rollback", changed, Role.TRAINER, revision=1, etag=changed.etag)
    assert (back.draft_revision, back.body, list(back.tags)) == (3, "one\ntwo\nthree", ["a"])
    reply = await desk.call(
        "ListRevisions", pb.ListRevisionsRequest(article_id=article.article_id, page_size=2)
    )
    assert [each.rollback_of for each in reply.revisions] == [1, 0]
    rest = pb.ListRevisionsRequest(
        article_id=article.article_id, page_size=2, page_token=reply.next_page_token
    )
    assert [each.revision for each in (await desk.call("ListRevisions", rest)).revisions] == [1]
    with refused(Code.NOT_FOUND, "REVISION_NOT_FOUND"):
        await desk.step("Rollback", changed, revision=9)


async def test_slugs_stay_with_their_article(desk: Desk) -> None:
    first, second = await desk.create("Müller & Söhne"), await desk.create("Muller Sohne")
    assert (first.slug, second.slug) == ("muller-sohne", "muller-sohne-2")
    with refused(Code.ALREADY_EXISTS, "ARTICLE_SLUG_TAKEN"):
        await desk.create("Other", slug="muller-sohne")
    renamed = await desk.update(first, slug="partners")
    with refused(Code.ALREADY_EXISTS, "ARTICLE_SLUG_TAKEN"):
        await desk.update(second, slug="muller-sohne")  # it may come back, or be linked to
    assert (await desk.update(renamed, slug="muller-sohne")).slug == "muller-sohne"


async def test_what_cannot_be_written(desk: Desk) -> None:
    with refused(Code.INVALID_ARGUMENT, "LOCALE_UNKNOWN") as refusal:
        await desk.create(locale="xx")
    assert refusal.metadata["locales"] == "en"
    for fields in (
        {"title": " "}, {"kind": pb.ARTICLE_KIND_UNSPECIFIED}, {"locale": "english"},
        {"body": "x" * (256 * 1024 + 1)}, {"title": "x" * 301}, {"slug": "Not A Slug"},
        {"tags": ["x"] * 51}, {"category_id": "no uuid"}, {"body": "a\x00b"},
    ):  # fmt: skip
        with refused(Code.INVALID_ARGUMENT):
            await desk.create(**fields)
    with refused(Code.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        await desk.create(category_id=str(uuid4()))
    article = await desk.create(body="y" * (256 * 1024))
    unread = pb.Article(article_id=article.article_id)
    with refused(Code.INVALID_ARGUMENT):
        await desk.update(unread, title="no etag")
    star = pb.UpdateArticleRequest(article=article)
    star.update_mask.paths.append("*")
    with refused(Code.INVALID_ARGUMENT):
        await desk.call("UpdateArticle", star)


async def test_a_repeat_gets_the_first_answer(desk: Desk) -> None:
    request_id = str(uuid4())
    given = pb.Article(kind=pb.ARTICLE_KIND_FAQ, locale="en", title="Once")
    request = pb.CreateArticleRequest(request_id=request_id, article=given)
    replies = await asyncio.gather(*(desk.call("CreateArticle", request) for _ in range(4)))
    assert len({reply.article.article_id for reply in replies}) == 1
    assert await desk.listed(Role.TRAINER) == ["Once"]
    request.article.title = "Twice"
    with refused(Code.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await desk.call("CreateArticle", request)
    article = await desk.create()
    await desk.step("Submit", article, Role.TRAINER)
    request_id = str(uuid4())
    for _ in range(2):  # the second time it is no step out of order
        approved = await desk.step("Approve", article, request_id=request_id)
        assert approved.state == pb.ARTICLE_STATE_APPROVED


async def test_the_quota_counts_what_is_not_purged(
    server: Running, desk: Desk, database: Any
) -> None:
    await database.execute(
        "UPDATE orgs SET quotas = '{\"articles\": 2}' WHERE org_id = $1", desk.org.org_id
    )
    first = await desk.create("One")
    await desk.create("Two")
    await desk.step("Delete", first)
    with refused(Code.RESOURCE_EXHAUSTED, "ARTICLE_QUOTA_REACHED") as refusal:
        await desk.create("Three")
    assert refusal.details is not None
    assert refusal.details["QuotaFailure"].violations[0].description == "articles: 2"
    counted = await database.fetchval("SELECT articles FROM content_states")
    assert counted == 2


async def test_another_organisation_sees_nothing(desk: Desk, server: Running) -> None:
    theirs = Desk(server.channel, await server.org("south"), desk.database_url)
    article = await desk.published("Secret canary", body="canary", tags=["canary"])
    category = await desk.category("Canaries")
    for role in (Role.AGENT, Role.TRAINER, Role.ADMIN):
        with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
            await theirs.get(article, role)
        with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
            await theirs.get(article, role, locale="en")
        assert await theirs.search("canary", role) == []
        assert await theirs.search("canray", role) == []
        assert await theirs.listed(role) == []
        suggestions = await theirs.call(
            "SuggestSearches", pb.SuggestSearchesRequest(prefix="can"), role
        )
        assert not suggestions.suggestions
    for method in (
        "Submit", "Approve", "Publish", "Unpublish", "Archive", "Delete", "Undelete", "Rollback"
    ):  # fmt: skip
        with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
            await theirs.step(method, article)
    with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
        await theirs.update(article, title="mine")
    with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
        await theirs.create(locale="en", translation_of_id=article.article_id)
    with refused(Code.NOT_FOUND, "CATEGORY_NOT_FOUND"):
        await theirs.create(category_id=category.category_id)
    rating = pb.RateArticleRequest(article_id=article.article_id, vote=pb.VOTE_HELPFUL)
    with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
        await theirs.call("RateArticle", rating, Role.AGENT)
    for method in ("ListRevisions", "DiffRevisions"):
        request = getattr(pb, f"{method}Request")(article_id=article.article_id)
        if method == "DiffRevisions":
            request.from_revision = request.to_revision = 1
        with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
            await theirs.call(method, request)


@pytest.mark.parametrize("role", [Role.AGENT, Role.REGISTRAR, Role.SYSTEM])
async def test_readers_learn_nothing_of_drafts(desk: Desk, role: Role) -> None:
    article = await desk.published(body="live")
    draft = await desk.update(article, body="draft", title="Draft title")
    await desk.create("Unpublished")
    with refused(Code.PERMISSION_DENIED):
        await desk.get(article, role, view=pb.ARTICLE_VIEW_DRAFT)
    with refused(Code.PERMISSION_DENIED):
        await desk.listed(role, view=pb.ARTICLE_VIEW_DRAFT)
    with refused(Code.PERMISSION_DENIED):
        await desk.search("draft", role, view=pb.ARTICLE_VIEW_DRAFT)
    seen = await desk.get(draft, role)
    assert (seen.body, seen.state) == ("live", pb.ARTICLE_STATE_PUBLISHED)
    assert (seen.draft_revision, seen.reviewed_revision) == (0, 0)
    assert not seen.allowed_actions
    assert await desk.listed(role) == ["Password reset"]
    states = pb.ArticleFilter(states=[pb.ARTICLE_STATE_DRAFT])
    assert await desk.listed(role, filter=states) == []
