"""The workflow's promises, for every sequence of steps; names, locales, trees, near words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import content_workflow
from trunkline_server.content import rules
from trunkline_server.content.rules import WORKFLOW, Action, Actor, Standing, State
from trunkline_server.rpc.caller import Role

PEOPLE = [Actor(role, uuid4()) for role in Role for _ in range(2)]
CLOCK = Actor(None)
steps = st.lists(
    st.tuples(st.sampled_from(Action), st.sampled_from([*PEOPLE, CLOCK]), st.integers(0, 6)),
    max_size=40,
)


class Story:
    """An article through any steps, with what the workflow must not lose sight of."""

    def __init__(self, author: Actor) -> None:
        self.standing = Standing(State.DRAFT, 1)
        self.authors = {1: author.actor_id}
        self.approvers: dict[int, UUID | None] = {}

    def take(self, action: Action, actor: Actor, revision: int, *, own_allowed: bool) -> None:
        before = self.standing
        author = self.authors.get(before.reviewed)
        try:
            after = rules.take(
                before, action, actor,
                revision=revision, author_id=author, own_allowed=own_allowed,
            )  # fmt: skip
        except (rules.NotAllowed, rules.OtherRevision, rules.OwnRevision):
            return
        if action is Action.APPROVE:
            self.approvers[before.reviewed] = actor.actor_id
        if action is Action.EDIT:
            self.authors[after.draft] = actor.actor_id
        self.standing = after


@given(steps, st.sampled_from(PEOPLE), st.booleans())
def test_no_path_publishes_what_nobody_approved(
    taken: list[tuple[Action, Actor, int]], author: Actor, own_allowed: bool
) -> None:
    story = Story(author)
    for action, actor, revision in taken:
        # Half of the time the right revision, or few stories would get anywhere.
        revision = revision or story.standing.reviewed or story.standing.draft
        story.take(action, actor, revision, own_allowed=own_allowed)
        live = story.standing.published
        assert not live or live in story.approvers
        if not own_allowed:
            assert all(
                approver != story.authors[revision]
                for revision, approver in story.approvers.items()
            )
        assert live <= story.standing.draft
        assert not live or story.standing.state not in (State.DELETED, State.ARCHIVED)


@given(steps, st.sampled_from(PEOPLE))
def test_who_may_only_read_changes_nothing(
    taken: list[tuple[Action, Actor, int]], author: Actor
) -> None:
    story = Story(author)
    for action, actor, revision in taken:
        if actor.role in (Role.AGENT, Role.REGISTRAR, Role.SYSTEM):
            before = story.standing
            story.take(action, actor, revision, own_allowed=True)
            assert story.standing == before


def test_stories_do_reach_publication() -> None:
    """Or the promises above would hold for want of anything happening."""
    trainer, admin = Actor(Role.TRAINER, uuid4()), Actor(Role.ADMIN, uuid4())
    story = Story(trainer)
    for action, actor in (
        (Action.SUBMIT, trainer), (Action.APPROVE, admin), (Action.SCHEDULE, admin),
        (Action.GO_LIVE, CLOCK), (Action.EDIT, trainer),
    ):  # fmt: skip
        story.take(action, actor, 1, own_allowed=False)
    assert story.standing == Standing(State.DRAFT, 2, published=1)


@pytest.mark.parametrize(("state", "action"), sorted(WORKFLOW))
def test_what_the_table_allows_is_offered_to_its_roles_only(state: State, action: Action) -> None:
    standing = Standing(state, draft=2, published=1, reviewed=2)
    for role in Role:
        offered = action in standing.actions(role)
        assert offered == (role in WORKFLOW[state, action].roles)


def test_every_other_pair_is_refused() -> None:
    admin = Actor(Role.ADMIN, uuid4())
    for state in State:
        for action in Action:
            if (state, action) not in WORKFLOW:
                with pytest.raises(rules.NotAllowed):
                    rules.take(Standing(state, 1, reviewed=1), action, admin, revision=1)


def test_a_publication_that_is_called_off_leaves_the_live_text() -> None:
    admin = Actor(Role.ADMIN, uuid4())
    scheduled = Standing(State.SCHEDULED, draft=3, published=1, reviewed=3)
    after = rules.take(scheduled, Action.UNPUBLISH, admin)
    assert after == Standing(State.APPROVED, draft=3, published=1, reviewed=3)
    assert rules.take(after, Action.UNPUBLISH, admin).published == 0


def test_publishing_times() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert rules.publish_time_fits(now + timedelta(seconds=1), now)
    assert rules.publish_time_fits(now + timedelta(days=366), now)
    assert not rules.publish_time_fits(now, now)
    assert not rules.publish_time_fits(now + timedelta(days=367), now)


@given(st.text(max_size=400))
def test_a_slug_is_readable_or_empty(title: str) -> None:
    slug = rules.slug_of(title)
    assert len(slug) <= rules.SLUG_CHARS_MAX
    assert all(part and part.isalnum() and part.isascii() for part in slug.split("-")) or not slug
    assert len(rules.numbered_slug(slug or "a", 1000)) <= rules.SLUG_CHARS_MAX


def test_slugs_and_tags() -> None:
    assert rules.slug_of("Über Größe & Maß!") == "uber-grosse-mass"
    assert rules.slug_of("Пароль") == ""
    assert rules.tags_of([" Billing ", "billing", "Ｃｒｅｄｉｔ  Card", " "]) == [
        "billing", "credit card"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "there", "default", "best"),
    [
        ("de", {"de", "en"}, "en", "de"), ("de-AT", {"de", "en"}, "en", "de"),
        ("de", {"de-AT", "de-CH", "en"}, "en", "de-AT"), ("fr", {"de", "en"}, "en", "en"),
        ("zh-Hant-TW", {"zh-Hant", "zh"}, "en", "zh-Hant"), ("fr", {"de"}, "en", ""),
        ("pt-BR", {"pt-PT"}, "", "pt-PT"),
    ],
)  # fmt: skip
def test_the_nearest_locale(wanted: str, there: set[str], default: str, best: str) -> None:
    assert rules.nearest_locale(wanted, there, default) == best


@given(st.lists(st.integers(0, 200), max_size=12), st.data())
def test_no_move_that_is_allowed_makes_a_cycle(parents: list[int], data: st.DataObject) -> None:
    ids = [UUID(int=number + 1) for number in range(len(parents) + 1)]
    tree: dict[UUID, UUID | None] = {ids[0]: None}
    for number, parent in enumerate(parents, start=1):
        tree[ids[number]] = ids[parent % number]
    moved, target = data.draw(st.sampled_from(ids)), data.draw(st.sampled_from([*ids, None]))
    cycle = rules.makes_cycle(tree, moved, target)
    assert cycle == (target in rules.below(tree, {moved}))
    if not cycle:
        assert rules.depth_with(tree, moved, target) <= len(ids)
        tree[moved] = target
        assert rules.below(tree, {each for each, parent in tree.items() if parent is None}) == set(
            ids
        )


@pytest.mark.parametrize(
    ("one", "other", "errors"),
    [("", "", 0), ("ab", "ba", 1), ("password", "passwrod", 1), ("kitten", "sittin", 2)],
)  # fmt: skip
def test_typing_errors_are_counted(one: str, other: str, errors: int) -> None:
    assert rules.distance(one, other) == rules.distance(other, one) == errors


def test_a_query_is_corrected_word_by_word() -> None:
    near = {"passwrod": ["password", "passport"], "reset": ["reset"], "xyzzy": []}
    assert rules.corrected('"passwrod" reset -xyzzy', near) == '"password" reset -xyzzy'
    assert rules.corrected("reset xyzzy", near) == ""


@pytest.mark.parametrize("query", ["ada@example.com", "M-0012 3456", "+49 30 123456", ""])
def test_searches_with_somebodys_data_are_not_kept(query: str) -> None:
    assert not rules.worth_noting(query)
    assert rules.worth_noting("form 1040")


def test_the_page_of_the_workflow_is_fresh() -> None:
    assert content_workflow.TARGET.read_text() == content_workflow.page(), (
        "run `python -m tools.content_workflow`"
    )
