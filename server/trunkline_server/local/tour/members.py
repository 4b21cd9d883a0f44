"""A caller is on the line: a validation, a refusal with its next step, a search, a history."""

from datetime import date, timedelta

from trunkline import AsyncClient
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.local.tour.guide import Tour


async def visit(tour: Tour) -> None:
    async with tour.client("ADMIN") as admin, tour.client("AGENT") as agent:
        await _register(tour, admin)
        await _validate(tour, agent)
        await _search(tour, agent)
        await _history(tour, admin)


async def _register(tour: Tour, admin: AsyncClient) -> None:
    today = date.today()  # noqa: DTZ011 - the day of the demo's reader
    await admin.members.create(
        "AC-1001",
        given_name="Ada",
        family_name="Lovelock",
        email="ada.lovelock@example.com",
        phone="+442079460123",
        date_of_birth=date(1980, 2, 29),
        plan="gold",
        effective_from=today - timedelta(days=400),
    )
    await admin.members.create(
        "AC-1002",
        given_name="Grace",
        family_name="Harper",
        plan="silver",
        effective_from=today - timedelta(days=800),
        effective_to=today - timedelta(days=30),
    )
    tour.say("Two members are registered.")


async def _validate(tour: Tour, agent: AsyncClient) -> None:
    good = await agent.members.validate("AC-1001")
    tour.expect(good.decision == pb.DECISION_ELIGIBLE, "a good member is not eligible")
    tour.say(
        f"AC-1001 is ELIGIBLE: plan {good.plan}, since {good.effective_from};"
        f" {good.provenance.summary}."
    )
    tour.say(
        f"The agent sees {good.member.given_name} {good.member.family_name},"
        f" {good.member.phone}: the rest is masked."
    )
    expired = await agent.members.validate("AC-1002")
    tour.expect(expired.decision == pb.DECISION_NOT_ELIGIBLE, "an expired member is eligible")
    tour.say(f"AC-1002 is NOT ELIGIBLE: {expired.reasons[0].text}")
    tour.say(f"  Next step: {expired.reasons[0].next_step}")
    doubtful = await agent.members.validate("AC-1001", date_of_birth=date(1981, 1, 1))
    tour.expect(not doubtful.HasField("member"), "a wrong second factor disclosed the member")
    tour.say(f"With a wrong date of birth: {doubtful.reasons[0].text}")


async def _search(tour: Tour, agent: AsyncClient) -> None:
    async for match in agent.members.search("ada lovelok"):
        tour.say(f"A search for 'ada lovelok' finds {match.member.member_number}.")
        tour.expect(match.member.member_number == "AC-1001", "the search found somebody else")
        return
    tour.expect(False, "the search found nobody")


async def _history(tour: Tour, admin: AsyncClient) -> None:
    member = await admin.members.get("AC-1001")
    member.plan = "platinum"
    await admin.members.update(member, ["plan"])
    lines = [
        f"version {version.version}: plan {version.member.plan}, {version.provenance.summary}"
        async for version in admin.members.history(member.member_id)
    ]
    tour.expect(len(lines) == 2, "the history has not two versions")
    tour.say("Its history: " + "; ".join(lines) + ".")
