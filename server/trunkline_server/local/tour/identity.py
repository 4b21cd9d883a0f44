"""Who may do what: a key, a user, a refusal with its reason, and the audit of it all."""

from trunkline import AsyncClient, PermissionDenied, Unauthenticated
from trunkline_server.local.tour.guide import Tour


async def visit(tour: Tour) -> None:
    async with tour.client("ADMIN") as admin:
        me = await admin.identity.who_am_i()
        tour.say(f"This key belongs to {me.actor_name!r} of {me.org_display_name}.")
        await _give_and_take_a_key(tour, admin)
        await _read_the_audit(tour, admin)


async def _give_and_take_a_key(tour: Tour, admin: AsyncClient) -> None:
    made = await admin.identity.create_api_key("nightly", "AGENT")
    tour.say("A key for an agent's desktop is made; its secret is shown once.")
    async with AsyncClient(tour.address, api_key=made.secret) as agent:
        try:
            await agent.identity.get_org()
        except PermissionDenied as refused:
            tour.say(f"An agent may not read the settings: {refused.reason}.")
        else:
            tour.expect(False, "an agent was let in to the settings")
        await admin.identity.revoke_api_key(made.api_key.key_id)
        try:
            await agent.identity.who_am_i()
        except Unauthenticated:
            tour.say("The key is revoked, and refused at once.")
        else:
            tour.expect(False, "a revoked key was accepted")


async def _read_the_audit(tour: Tour, admin: AsyncClient) -> None:
    actions = [event.action async for event in admin.identity.list_audit_events(page_size=10)]
    tour.expect("identity.RevokeApiKey" in actions, "the revocation is not in the audit log")
    tour.say(f"The audit log tells of it: {actions[1]}, {actions[0]}.")
    verified = await admin.identity.verify_audit()
    tour.expect(verified.intact, "the audit log's chain does not verify")
    tour.say("Its chain of hashes verifies.")
