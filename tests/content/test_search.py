"""What a search finds, in which order, and that nothing anybody types breaks it."""

from __future__ import annotations

import random
import re
from typing import Any

import grpc
import pytest

from tests.content.desk import Desk, refused
from tests.content.test_workflow import set_rules
from tests.running import Running
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.content import render
from trunkline_server.rpc.caller import Role

Code = grpc.StatusCode
ONLY_MARKS = re.compile(r"</?mark>|&[a-z#0-9x]+;|[^<>&]")


@pytest.fixture
async def library(desk: Desk) -> Desk:
    """Five articles that agents can read."""
    for title, body, tags in (
        ("Resetting a password", "Open the portal and follow the link.", ["login"]),
        ("Expired membership", "The member renews, then resets the password.", ["renewal"]),
        ("Running late payments", "Payments that ran late are chased after ten days.", ["billing"]),
        ("Portal outage", "When the portal is down, take a call-back number.", ["password"]),
        ("Annual leave", "Nothing of interest here.", ["staff"]),
    ):
        await desk.published(title, body=body, tags=tags)
    return desk


@pytest.mark.parametrize(
    ("query", "titles"),
    [
        # In the title before in a tag before in the text.
        ("password", ["Resetting a password", "Portal outage", "Expired membership"]),
        ("passwords", ["Resetting a password", "Portal outage", "Expired membership"]),
        ("payment run", ["Running late payments"]),
        ('"renews then resets"', ["Expired membership"]), ('"resets then renews"', []),
        ("password -portal", ["Expired membership"]),
        ("renewal or billing", ["Running late payments", "Expired membership"]),
        ("passwrod", ["Resetting a password", "Portal outage", "Expired membership"]),
        ("anual leaev", ["Annual leave"]), ("membershp", ["Expired membership"]),
        ("xyzzy", []),
    ],
)  # fmt: skip
async def test_what_is_found(library: Desk, query: str, titles: list[str]) -> None:
    found = await library.search(query)
    if len(titles) == 2:
        assert sorted(found) == sorted(titles)  # both by their tag: age decides
    else:
        assert found == titles


SYNTAX = [
    '"', '"""', "(", ")))", "a & | b", "!!!", "<->", "a <-> ", ":*", "a:*B", "' OR 1=1 --", "-",
    "--", "- -", "or", "or or", "the", "the of and", "\\", "\\\\'", "%", "_", "100%", "a" * 500,
    "-a -b", "…", "日本語", "\u202e", "𝕏", "x" * 499 + "'", "🙂 or", '-"', "$1",
    "{}",
]  # fmt: skip


@pytest.mark.parametrize("view", [pb.ARTICLE_VIEW_PUBLISHED, pb.ARTICLE_VIEW_DRAFT])
async def test_nothing_is_a_syntax_error(library: Desk, view: pb.ArticleView.ValueType) -> None:
    for query in SYNTAX:
        await library.found(query, Role.TRAINER, view=view, with_facets=True)
        request = pb.SuggestSearchesRequest(prefix=query[:100])
        await library.call("SuggestSearches", request)


async def test_nothing_at_all_is_a_syntax_error(library: Desk) -> None:
    dice = random.Random(7)
    pieces = [*SYNTAX[:24], "password", " ", " ", '"', "-", "or", "é", "\u200b", "\ud7ff", "<b>"]
    for _ in range(150):
        text = "".join(dice.choice(pieces) for _ in range(dice.randrange(1, 8)))[:500]
        await library.found(text, with_facets=dice.random() < 0.3)


async def test_a_stop_word_alone_is_looked_for_in_vain(library: Desk) -> None:
    reply = await library.found("the")
    assert not reply.matches
    assert reply.total == 0


async def test_highlights_are_safe_to_show(desk: Desk) -> None:
    attack = '<script>alert("x")</script> <img src=x onerror=alert(1)> & password \ue000b\ue001'
    await desk.published(f"Password {attack}", body=f"{attack}\n\nThe password <b>is</b> secret.")
    reply = await desk.found("password")
    (match,) = reply.matches
    assert match.title_highlight.startswith("<mark>Password</mark> &lt;script&gt;")
    assert "<mark>password</mark>" in " ".join(match.highlights)
    for shown in (match.title_highlight, *match.highlights):
        assert re.fullmatch(f"(?:{ONLY_MARKS.pattern})*", shown), shown
        assert shown.count("<mark>") == shown.count("</mark>")


async def test_a_draft_is_found_by_writers_only(library: Desk) -> None:
    draft = await library.create("Quarterly numbers", body="draftword")
    assert await library.search("draftword") == []
    assert await library.search("draftword", Role.TRAINER) == ["Quarterly numbers"]
    assert await library.search("draftword", Role.ADMIN, view=pb.ARTICLE_VIEW_PUBLISHED) == []
    published = await library.publish(draft)
    assert await library.search("draftword") == ["Quarterly numbers"]
    changed = await library.update(published, body="otherword")
    assert await library.search("draftword") == ["Quarterly numbers"]
    assert await library.search("otherword") == []
    assert await library.search("draftword", Role.TRAINER) == []
    await library.step("Delete", changed)
    assert await library.search("draftword") == []
    assert await library.search("otherword", Role.TRAINER) == []


async def test_filters_and_facets(desk: Desk) -> None:
    claims = await desk.category("Claims")
    dental = await desk.category("Dental", claims.category_id)
    for number in range(3):
        await desk.published(
            f"Refund {number}",
            kind=pb.ARTICLE_KIND_FAQ,
            category_id=dental.category_id,
            tags=["money", f"tag{number}"],
        )
    await desk.published("Refund training", kind=pb.ARTICLE_KIND_TRAINING, tags=["money"])
    reply = await desk.found("refund", with_facets=True)
    assert (reply.total, reply.total_is_lower_bound) == (4, False)
    facets = {each.field: {c.value: c.count for c in each.counts} for each in reply.facets}
    assert facets == {
        pb.FACET_FIELD_KIND: {"FAQ": 3, "TRAINING": 1},
        pb.FACET_FIELD_CATEGORY: {dental.category_id: 3},
        pb.FACET_FIELD_TAG: {"money": 4, "tag0": 1, "tag1": 1, "tag2": 1},
        pb.FACET_FIELD_LOCALE: {"en": 4},
    }
    for given_filter, count in (
        (pb.ArticleFilter(category_ids=[claims.category_id]), 3),
        (pb.ArticleFilter(kinds=[pb.ARTICLE_KIND_TRAINING]), 1),
        (pb.ArticleFilter(tags=["money", "Tag1"]), 1),
        (pb.ArticleFilter(tags=["tag1", "tag2"]), 0),
        (pb.ArticleFilter(locales=["de"]), 0),
        (pb.ArticleFilter(author_id=desk.org.slug and claims.category_id), 0),
    ):
        assert len(await desk.search("refund", filter=given_filter)) == count
        assert len(await desk.listed(filter=given_filter)) == count


async def test_pages_continue_where_they_ended(desk: Desk) -> None:
    for number in range(9):
        await desk.published(f"Refund {number}", body="refund " * number)
    whole = await desk.search("refund")
    assert len(set(whole)) == 9
    paged: list[str] = []
    token = ""
    while True:
        reply = await desk.found("refund", page_size=2, page_token=token)
        paged += [match.article.title for match in reply.matches]
        token = reply.next_page_token
        if not token:
            break
    assert sorted(paged) == sorted(whole)
    reply = await desk.found("refund", page_size=2)
    with refused(Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await desk.found("refunds", page_token=reply.next_page_token)


async def test_votes_move_what_is_equal(desk: Desk) -> None:
    first = await desk.published("Refund one")
    await desk.published("Refund two")
    for role in (Role.AGENT, Role.TRAINER, Role.REGISTRAR, Role.ADMIN):
        rating = pb.RateArticleRequest(article_id=first.article_id, vote=pb.VOTE_NOT_HELPFUL)
        await desk.call("RateArticle", rating, role)
    assert await desk.search("refund") == ["Refund two", "Refund one"]
    for role in (Role.AGENT, Role.TRAINER, Role.REGISTRAR, Role.ADMIN):
        rating = pb.RateArticleRequest(article_id=first.article_id, vote=pb.VOTE_HELPFUL)
        await desk.call("RateArticle", rating, role)
    assert await desk.search("refund") == ["Refund one", "Refund two"]


async def test_words_are_those_of_the_locale(server: Running, desk: Desk) -> None:
    await set_rules(server, desk, default_locale="en", locales=["en", "de", "ja"])
    await desk.published("Verträge kündigen", locale="de", body="Die Häuser der Mitglieder.")
    await desk.published("Cancelling contracts", body="The houses of members.")
    await desk.published("契約 解約", locale="ja", body="会員")
    assert await desk.search("vertrag") == ["Verträge kündigen"]
    assert await desk.search("haus") == ["Verträge kündigen"]
    assert await desk.search("house") == ["Cancelling contracts"]
    assert await desk.search("解約") == ["契約 解約"]
    german = pb.ArticleFilter(locales=["de"])
    assert await desk.search("house", filter=german) == []


async def test_suggestions(library: Desk) -> None:
    async def suggest(prefix: str, role: Role = Role.AGENT, **given: Any) -> list[str]:
        request = pb.SuggestSearchesRequest(prefix=prefix, **given)
        reply = await library.call("SuggestSearches", request, role)
        return [each.text for each in reply.suggestions]

    await library.create("Portal draft")
    assert await suggest("por") == ["Portal outage"]
    assert await suggest("POR", Role.TRAINER) == ["Portal draft", "Portal outage"]
    assert await suggest("pass") == ["password", "Resetting a password"]
    assert await suggest("late pay") == ["Running late payments"]
    assert await suggest("p", limit=1) == ["Portal outage"]
    assert await suggest("por", locale="de") == []
    assert await suggest("%") == []


async def test_searches_without_a_result_are_kept(server: Running, library: Desk) -> None:
    for query in ("Blue form", "blue  form", "xyzzy", "ada@example.com"):
        assert await library.search(query) == []
    await library.search("xyzzyq", filter=pb.ArticleFilter(locales=["en"]))
    await library.search("password")
    await server.server.content.tallies.flush()

    async def misses(**given: Any) -> list[tuple[str, int, str]]:
        reply = await library.call("ListSearchMisses", pb.ListSearchMissesRequest(**given))
        return [(each.query, each.count, each.locale) for each in reply.misses]

    assert await misses() == [("blue form", 2, ""), ("xyzzy", 1, ""), ("xyzzyq", 1, "en")]
    assert await misses(locale="en") == [("xyzzyq", 1, "en")]
    request = pb.ListSearchMissesRequest(page_size=1)
    first = await library.call("ListSearchMisses", request)
    request.page_token = first.next_page_token
    second = await library.call("ListSearchMisses", request)
    assert [each.query for each in second.misses] == ["xyzzy"]


def test_plain_words_are_made_in_no_time() -> None:
    for attack in ("[" * 256_000, "[a](" * 64_000, "`" * 256_000, "![" * 128_000):
        render.plain("", attack)
    assert render.plain("Sum", "# A [link](https://x.example) in `code`") == "Sum A link in code"
