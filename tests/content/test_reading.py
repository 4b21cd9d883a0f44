"""What readers get: live texts, translations, lists, votes, views; and how fast it is not stale."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.content.desk import Desk, refused
from tests.content.test_workflow import set_rules
from tests.running import Running, running
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline.api.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline.api.members.v1 import validation_reason_pb2 as validation
from trunkline.api.members.v1.members_service_pb2_grpc import MemberServiceStub
from trunkline_server.content import render
from trunkline_server.rpc.caller import Role

Code = grpc.StatusCode

ATTACKS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))", "[x](data:text/html,<script>alert(1)</script>)",
    "![x](javascript:alert(1))", '<a href="x" onclick="alert(1)">x</a>', "<svg/onload=alert(1)>",
    '[x](http://a "onmouseover=alert(1)")', "<javascript:alert(1)>",
    "<style>*{display:none}</style>",
    "```html\n<script>alert(1)</script>\n```", "| <b onclick=x> |\n|---|\n| <script> |",
    "<iframe src=//evil>", "[x](vbscript:msgbox(1))", "<!--<script>-->",
    '"><script>alert(1)</script>',
    "[x]: javascript:alert(1)\n\n[x]", "&lt;script&gt;alert(1)&lt;/script&gt;",
]  # fmt: skip


class Seen(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, (value or "").strip().lower()) for name, value in attrs]

    def handle_comment(self, text: str) -> None:
        self.tags.add("comment")


@pytest.mark.parametrize("markdown", ATTACKS)
def test_html_is_safe_to_show(markdown: str) -> None:
    seen = Seen()
    seen.feed(render.to_html(markdown))
    assert not seen.tags & {"script", "svg", "style", "iframe", "b", "comment", "object"}
    for name, value in seen.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src") or ":" not in value or value.startswith("http")


def test_what_markdown_makes_is_kept() -> None:
    shown = render.to_html("# A\n\n*b* ~~c~~ [d](https://e.example)\n\n| f |\n|---|\n| g |")
    for kept in ("<h1>A</h1>", "<em>b</em>", "<s>c</s>", "<td>g</td>", 'rel="noopener'):
        assert kept in shown


async def test_html_only_where_it_is_asked_for(desk: Desk) -> None:
    article = await desk.published(body="**bold** <script>x</script>")
    assert (await desk.get(article)).body_html == ""
    mask = FieldMask(paths=["title", "body_html"])
    for role in (Role.AGENT, Role.TRAINER):
        asked = await desk.get(article, role, read_mask=mask)
        assert asked.body_html.startswith("<p><strong>bold</strong>")
        assert "<script" not in asked.body_html
        assert (asked.title, asked.body, asked.etag) == ("Password reset", "", "")
    reply = await desk.call(
        "ListArticles", pb.ListArticlesRequest(read_mask=mask, page_size=1000), Role.AGENT
    )
    assert reply.articles[0].body_html.startswith("<p><strong>bold</strong>")
    with refused(Code.INVALID_ARGUMENT):
        await desk.get(article, read_mask=FieldMask(paths=["no_such_field"]))


async def test_who_has_the_text_does_not_get_it_again(desk: Desk) -> None:
    article = await desk.published(body="one")
    for role in (Role.AGENT, Role.TRAINER):
        mine = await desk.get(article, role)
        again = await desk.reply(article, role, if_none_match=mine.etag)
        assert again.not_modified
        assert not again.HasField("article")
    mine = await desk.get(article)
    changed = await desk.update(article, body="two")
    assert (await desk.reply(article, if_none_match=mine.etag)).not_modified
    await desk.publish(changed)
    fresh = await desk.reply(article, if_none_match=mine.etag)
    assert fresh.article.body == "two"


async def test_a_publication_is_seen_by_other_processes_at_once(
    desk: Desk, start_server: Any
) -> None:
    article = await desk.published(body="one")
    async with start_server() as other:
        there = Desk(other.channel, desk.org, desk.database_url)
        assert (await there.get(article)).body == "one"
        assert await there.listed() == ["Password reset"]
        changed = await desk.update(article, title="New title", body="two")
        await desk.publish(changed)
        async with asyncio.timeout(1):
            while (await there.get(article)).body != "two":
                await asyncio.sleep(0.01)
        assert await there.listed() == ["New title"]
        await desk.step("Archive", changed)
        async with asyncio.timeout(1):
            while await there.listed():
                await asyncio.sleep(0.01)
        with refused(Code.NOT_FOUND):
            await there.get(article)


async def test_lists_are_kept_and_made_again_for_a_publication(server: Running, desk: Desk) -> None:
    await desk.published("One")
    shelf = server.server.content.shelf
    made = shelf.made
    for _ in range(3):
        assert await desk.listed() == ["One"]
    assert (shelf.made - made, shelf.hits) == (1, 2)
    await desk.create("Unseen")
    assert await desk.listed() == ["One"]
    assert shelf.made - made == 1
    await desk.published("Two")
    assert await desk.listed() == ["Two", "One"]
    assert shelf.made - made == 2


async def test_an_old_list_is_answered_while_one_process_makes_it_again(
    server: Running, desk: Desk
) -> None:
    await desk.published("One")
    shelf = server.server.content.shelf
    assert await desk.listed() == ["One"]
    made, now = shelf.made, datetime.now(UTC).timestamp()
    shelf._clock = lambda: now + 301
    replies = await asyncio.gather(*(desk.listed() for _ in range(10)))
    assert all(reply == ["One"] for reply in replies)
    async with asyncio.timeout(2):
        while shelf.made == made:
            await asyncio.sleep(0.01)
    await desk.listed()
    assert shelf.made == made + 1


async def test_without_valkey_lists_come_from_the_database(database_url: str, valkey: Any) -> None:
    async with running(database_url, valkey.url()) as server:
        desk = Desk(server.channel, await server.org("north"), database_url)
        article = await desk.published("One")
        assert await desk.listed() == ["One"]
        valkey.kill()
        assert await desk.listed() == ["One"]
        await desk.get(article)
        await desk.published("Two")
        assert await desk.listed() == ["Two", "One"]


async def test_pages_of_lists(desk: Desk) -> None:
    for letter in "cab":
        await desk.published(letter)
    assert await desk.listed() == ["b", "a", "c"]
    assert await desk.listed(order=pb.ARTICLE_ORDER_TITLE) == ["a", "b", "c"]
    for role, order in (
        (Role.AGENT, pb.ARTICLE_ORDER_TITLE), (Role.TRAINER, pb.ARTICLE_ORDER_UPDATE_TIME_DESC),
        (Role.AGENT, pb.ARTICLE_ORDER_PUBLISH_TIME_DESC), (Role.TRAINER, pb.ARTICLE_ORDER_TITLE),
    ):  # fmt: skip
        request = pb.ListArticlesRequest(order=order, page_size=1)
        seen = []
        while True:
            reply = await desk.call("ListArticles", request, role)
            seen += [each.title for each in reply.articles]
            if not reply.next_page_token:
                break
            request.page_token = reply.next_page_token
        assert seen == await desk.listed(role, order=order)
    page = await desk.call("ListArticles", pb.ListArticlesRequest(), Role.AGENT)
    same = pb.ListArticlesRequest(if_none_match=page.etag)
    again = await desk.call("ListArticles", same, Role.AGENT)
    assert again.not_modified
    assert not again.articles
    with refused(Code.INVALID_ARGUMENT):
        await desk.listed(page_size=-1)


async def test_the_nearest_translation_is_read(server: Running, desk: Desk) -> None:
    await set_rules(server, desk, default_locale="en", locales=["en", "de", "fr", "pt-BR"])
    english = await desk.published("Leave", body="english")
    german = await desk.published(
        "Urlaub", locale="de", body="deutsch", translation_of_id=english.article_id
    )
    draft = await desk.create("Congé", locale="fr", translation_of_id=german.article_id)
    assert draft.translation_of_id == english.article_id  # the original's, not a chain
    for role in (Role.AGENT, Role.ADMIN):
        given: dict[str, Any] = {"view": pb.ARTICLE_VIEW_PUBLISHED}
        for named in (english, german):
            for wanted, body in (
                ("de", "deutsch"), ("de-AT", "deutsch"), ("en", "english"), ("fr", "english")
            ):  # fmt: skip
                found = await desk.get(named, role, locale=wanted, **given)
                assert found.body == body, (role, wanted)
    assert (await desk.get(english, Role.ADMIN, locale="fr")).title == "Congé"
    await desk.publish(draft)
    assert (await desk.get(english, locale="fr")).title == "Congé"
    await desk.step("Unpublish", english)
    assert (await desk.get(english, locale="de")).title == "Urlaub"
    with refused(Code.INVALID_ARGUMENT):
        await desk.create("Again", translation_of_id=english.article_id)
    with refused(Code.INVALID_ARGUMENT):
        await desk.update(
            await desk.get(english, Role.ADMIN),
            Role.ADMIN,
            translation_of_id=english.article_id,
        )


async def test_one_vote_for_each_user(desk: Desk, database: Any) -> None:
    article = await desk.published()

    async def rate(vote: pb.Vote.ValueType, role: Role) -> tuple[int, int]:
        request = pb.RateArticleRequest(article_id=article.article_id, vote=vote)
        reply = await desk.call("RateArticle", request, role)
        return reply.helpful_votes, reply.not_helpful_votes

    assert await rate(pb.VOTE_HELPFUL, Role.AGENT) == (1, 0)
    assert await rate(pb.VOTE_HELPFUL, Role.AGENT) == (1, 0)
    assert await rate(pb.VOTE_NOT_HELPFUL, Role.TRAINER) == (1, 1)
    assert await rate(pb.VOTE_NOT_HELPFUL, Role.AGENT) == (0, 2)
    assert await rate(pb.VOTE_UNSPECIFIED, Role.AGENT) == (0, 1)
    assert await rate(pb.VOTE_UNSPECIFIED, Role.AGENT) == (0, 1)
    votes = [rate(pb.VOTE_HELPFUL, role) for role in (Role.AGENT, Role.ADMIN, Role.REGISTRAR)]
    assert max(await asyncio.gather(*votes)) == (3, 1)
    assert (await desk.get(article, Role.TRAINER)).helpful_votes == 3
    draft = await desk.create("Draft")
    request = pb.RateArticleRequest(article_id=draft.article_id, vote=pb.VOTE_HELPFUL)
    with refused(Code.FAILED_PRECONDITION, "ARTICLE_NOT_PUBLISHED"):
        await desk.call("RateArticle", request, Role.TRAINER)
    with refused(Code.NOT_FOUND, "ARTICLE_NOT_FOUND"):
        await desk.call("RateArticle", request, Role.AGENT)


async def test_the_most_read(server: Running, desk: Desk, database: Any) -> None:
    articles = [await desk.published(title) for title in ("One", "Two", "Three")]
    for article, reads in zip(articles, (1, 3, 2), strict=True):
        for _ in range(reads):
            await desk.get(article)
        await desk.reply(article, if_none_match=(await desk.get(article, Role.ADMIN)).etag)
    await server.server.content.tallies.flush()
    # A poll that found nothing new... is a read with a stale copy here, hence one more each.
    assert (await desk.get(articles[1], Role.ADMIN)).views == 4
    reply = await desk.call("ListTopArticles", pb.ListTopArticlesRequest(), Role.AGENT)
    assert [(each.article.title, each.views) for each in reply.articles] == [
        ("Two", 4), ("Three", 3), ("One", 2)
    ]  # fmt: skip
    request = pb.ListTopArticlesRequest(page_size=2)
    first = await desk.call("ListTopArticles", request, Role.AGENT)
    request.page_token = first.next_page_token
    rest = await desk.call("ListTopArticles", request, Role.AGENT)
    assert [each.article.title for each in rest.articles] == ["One"]
    await database.execute("UPDATE article_views SET day = day - 8")
    recent = pb.ListTopArticlesRequest(days=7, page_size=3)
    assert not (await desk.call("ListTopArticles", recent, Role.AGENT)).articles
    recorded = await database.fetchval(
        "SELECT sum(quantity) FROM events WHERE kind = 'ARTICLE_VIEW'"
    )
    assert recorded == 9


async def test_categories_are_a_tree(desk: Desk) -> None:
    top = await desk.category("Claims", sort_order=2)
    dental = await desk.category("Dental", top.category_id)
    other = await desk.category("About", sort_order=1)
    with refused(Code.ALREADY_EXISTS, "CATEGORY_NAME_TAKEN"):
        await desk.category("Dental", top.category_id)

    async def move(category: pb.Category, **fields: Any) -> pb.Category:
        moved = pb.Category(category_id=category.category_id, etag=category.etag, **fields)
        request = pb.UpdateCategoryRequest(category=moved, update_mask=FieldMask(paths=fields))
        changed: pb.Category = (await desk.call("UpdateCategory", request)).category
        return changed

    for parent in (top, dental):
        with refused(Code.FAILED_PRECONDITION, "CATEGORY_CYCLE"):
            await move(top, parent_id=parent.category_id)
    await desk.published(category_id=dental.category_id)
    reply = await desk.call("ListCategories", pb.ListCategoriesRequest(), Role.AGENT)
    assert [(each.display_name, each.published_articles) for each in reply.categories] == [
        ("About", 0), ("Claims", 1), ("Dental", 1)
    ]  # fmt: skip
    for category in (top, dental):
        with refused(Code.FAILED_PRECONDITION, "CATEGORY_NOT_EMPTY"):
            request = pb.DeleteCategoryRequest(category_id=category.category_id)
            await desk.call("DeleteCategory", request)
    renamed = await move(dental, display_name="Teeth", parent_id=other.category_id)
    with refused(Code.ABORTED, "ETAG_MISMATCH") as refusal:
        await move(dental, display_name="Mouth")
    assert refusal.metadata["etag"] == renamed.etag
    await desk.call("DeleteCategory", pb.DeleteCategoryRequest(category_id=top.category_id))
    above = renamed.category_id
    with refused(Code.FAILED_PRECONDITION, "CATEGORY_TOO_DEEP"):
        for level in range(10):
            above = (await desk.category(f"Level {level}", above)).category_id
    under = pb.ListCategoriesRequest(under_id=renamed.category_id, page_size=1)
    first = await desk.call("ListCategories", under, Role.AGENT)
    assert [each.display_name for each in first.categories] == ["Teeth"]
    under.page_token = first.next_page_token
    second = await desk.call("ListCategories", under, Role.AGENT)
    assert [each.display_name for each in second.categories] == ["Level 0"]


async def test_two_moves_at_once_make_no_ring(desk: Desk) -> None:
    one, other = await desk.category("One"), await desk.category("Other")
    moves = []
    for category, parent in ((one, other), (other, one)):
        moved = pb.Category(category_id=category.category_id, parent_id=parent.category_id)
        request = pb.UpdateCategoryRequest(
            category=moved, update_mask=FieldMask(paths=["parent_id"])
        )
        moves.append(desk.call("UpdateCategory", request))
    outcomes = await asyncio.gather(*moves, return_exceptions=True)
    (failed,) = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert failed.code() is Code.FAILED_PRECONDITION


async def test_reasons_without_an_article(server: Running, desk: Desk) -> None:
    article, draft = await desk.published("Unknown numbers"), await desk.create("Renewals")
    entries = [
        identity.ReasonArticles(reason=validation.VALIDATION_REASON_NOT_FOUND,
                                article_ids=[article.article_id]),
        identity.ReasonArticles(reason=validation.VALIDATION_REASON_EXPIRED,
                                article_ids=[draft.article_id]),
    ]  # fmt: skip
    org = identity.Org(member_rules=identity.MemberRules(reason_articles=entries))
    request = identity.UpdateOrgRequest(org=org, update_mask=FieldMask(paths=["member_rules"]))
    stub: Any = IdentityServiceStub(server.channel)
    admin = {"metadata": desk.org.as_(Role.ADMIN)}
    await stub.UpdateOrg(request, **admin)
    callers: Any = MemberServiceStub(server.channel)
    ended = (datetime.now(UTC) - timedelta(days=9)).date().isoformat()
    member = members.Member(member_number="M-1", status=members.MEMBER_STATUS_ACTIVE,
                            effective_from="2020-01-01", effective_to=ended)  # fmt: skip
    await callers.CreateMember(members.CreateMemberRequest(member=member), **admin)
    for number in ("M-1", "M-1", "M-2"):
        await callers.ValidateMember(members.ValidateMemberRequest(member_number=number), **admin)

    async def uncovered() -> dict[int, tuple[int, list[str]]]:
        reply = await desk.call("ListUncoveredReasons", pb.ListUncoveredReasonsRequest())
        return {
            each.reason: (each.validations, list(each.unpublished_article_ids))
            for each in reply.reasons
        }

    async with asyncio.timeout(5):
        while not (await uncovered())[validation.VALIDATION_REASON_EXPIRED][0]:
            await asyncio.sleep(0.05)
    found = await uncovered()
    assert next(iter(found)) == validation.VALIDATION_REASON_EXPIRED
    assert found[validation.VALIDATION_REASON_EXPIRED] == (2, [draft.article_id])
    assert validation.VALIDATION_REASON_NOT_FOUND not in found
    await desk.step("Archive", article)
    assert (await uncovered())[validation.VALIDATION_REASON_NOT_FOUND] == (1, [article.article_id])
