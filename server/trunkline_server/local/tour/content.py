"""An article is written, reviewed, published and found: with a draft beside what agents read."""

from datetime import UTC, datetime, timedelta

from trunkline import AsyncClient, TrunklineError
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.local.tour.guide import Tour

TITLE = "A caller's membership has expired"
BODY = """
Tell the caller **when** it expired, and offer the renewal.

1. Open the portal.
2. Send the renewal link.

<script>alert("never shown")</script>
"""


async def visit(tour: Tour) -> None:
    async with (
        tour.client("TRAINER") as trainer,
        tour.client("ADMIN") as admin,
        tour.client("AGENT") as agent,
    ):
        article = await _write_and_review(tour, trainer, admin)
        await _read(tour, agent, article.article_id)
        await _write_beside_it(tour, trainer, agent, article)
        await _search(tour, agent)
        await _schedule(tour, trainer, admin)


async def _write_and_review(tour: Tour, trainer: AsyncClient, admin: AsyncClient) -> pb.Article:
    article = await trainer.content.create("ARTICLE", TITLE, BODY, locale="en", tags=["renewal"])
    tour.say(f"A trainer writes {TITLE!r}; it is a draft.")
    try:
        await admin.content.publish(article.article_id, article.draft_revision)
    except TrunklineError as refused:
        tour.say(f"Nobody publishes what was not approved: {refused.reason}.")
    else:
        tour.expect(False, "a draft was published without an approval")
    await trainer.content.submit(article.article_id, article.draft_revision)
    await admin.content.approve(article.article_id, article.draft_revision)
    published = await admin.content.publish(article.article_id, article.draft_revision)
    tour.say(f"It is submitted, approved and published: revision {published.published_revision}.")
    return published


async def _read(tour: Tour, agent: AsyncClient, article_id: str) -> None:
    got = await agent.content.get(article_id, fields=["title", "body_html", "etag"])
    tour.expect("<script" not in got.article.body_html, "a script reached the agents' desktops")
    again = await agent.content.get(article_id, if_none_match=got.article.etag)
    tour.expect(again.not_modified, "an unchanged article was sent again")
    tour.say("An agent reads it as safe HTML; asked again, the answer is 'not modified'.")
    await agent.content.rate(article_id, "HELPFUL")


async def _write_beside_it(
    tour: Tour, trainer: AsyncClient, agent: AsyncClient, article: pb.Article
) -> None:
    article.title = "A membership that has expired"
    draft = await trainer.content.update(article, ["title"], note="shorter")
    live = (await agent.content.get(article.article_id)).article
    tour.expect(live.title == TITLE, "a draft changed what agents read")
    tour.say(f"Revision {draft.draft_revision} is written beside it; agents go on reading 1.")
    try:
        await trainer.content.update(article, ["title"])
    except TrunklineError as refused:
        tour.say(f"Who writes on an older copy is told so, and loses nothing: {refused.reason}.")
    else:
        tour.expect(False, "an older copy overwrote a newer draft")


async def _search(tour: Tour, agent: AsyncClient) -> None:
    async for match in agent.content.search("expierd membership"):
        tour.say(f"A search for 'expierd membership' finds: {match.title_highlight}")
        tour.expect(match.article.title == TITLE, "the search found something else")
        return
    tour.expect(False, "the search found nothing")


async def _schedule(tour: Tour, trainer: AsyncClient, admin: AsyncClient) -> None:
    article = await trainer.content.create("FAQ", "New opening hours", "From Monday.", locale="en")
    await trainer.content.submit(article.article_id, article.draft_revision)
    await admin.content.approve(article.article_id, article.draft_revision)
    at = datetime.now(UTC) + timedelta(days=1)
    later = await admin.content.publish(article.article_id, article.draft_revision, at=at)
    tour.expect(later.state == pb.ARTICLE_STATE_SCHEDULED, "the article is not scheduled")
    tour.say("Another one is approved for tomorrow; a worker publishes it then.")
