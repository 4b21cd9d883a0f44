"""The workflow as one table, and what else needs no I/O: slugs, tags, locales, near words."""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

from trunkline_server.rpc.caller import Role

SLUG_CHARS_MAX = 120
TAG_CHARS_MAX = 60
TAGS_MAX = 50
PUBLISH_AHEAD_MAX = timedelta(days=366)
CATEGORY_DEPTH_MAX = 8
DEFAULT_LOCALE = "en"
# A search for one of these would be kept with somebody's data in it.
_PERSONAL = re.compile(r"@|\d[\d .\-/()]{3,}\d")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_WORD = re.compile(r"[^\W_]+")


class State(enum.StrEnum):
    """Where the newest revision stands; DELETED stands beside the six of the contract."""

    DRAFT = "DRAFT"
    IN_REVIEW = "IN_REVIEW"
    APPROVED = "APPROVED"
    SCHEDULED = "SCHEDULED"
    PUBLISHED = "PUBLISHED"
    ARCHIVED = "ARCHIVED"
    DELETED = "DELETED"


class Action(enum.StrEnum):
    EDIT = "EDIT"
    SUBMIT = "SUBMIT"
    APPROVE = "APPROVE"
    REJECT = "REJECT"
    PUBLISH = "PUBLISH"
    SCHEDULE = "SCHEDULE"
    UNPUBLISH = "UNPUBLISH"
    ARCHIVE = "ARCHIVE"
    DELETE = "DELETE"
    UNDELETE = "UNDELETE"
    GO_LIVE = "GO_LIVE"  # the clock's: what was scheduled is due


WRITERS = frozenset({Role.TRAINER, Role.ADMIN})
_ADMIN = frozenset({Role.ADMIN})
CLOCK: frozenset[Role] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """What one action does in one state. `roles` is empty where only the clock may do it."""

    to: State
    roles: frozenset[Role]
    only_with_live_text: bool = False


_S, _A = State, Action
_SENT_BACK = Step(_S.DRAFT, _ADMIN)
_GOES_LIVE = Step(_S.PUBLISHED, _ADMIN)
_WRITTEN = Step(_S.DRAFT, WRITERS)
_PUT_AWAY = Step(_S.ARCHIVED, _ADMIN)
_DELETED = Step(_S.DELETED, _ADMIN)

# THE workflow: state x action -> roles and state. What is not in here is not allowed. A scheduled
# revision is called off before its article is edited: an edit must not cancel a date unnoticed.
WORKFLOW: Mapping[tuple[State, Action], Step] = MappingProxyType({
    (_S.DRAFT, _A.EDIT): _WRITTEN,
    (_S.IN_REVIEW, _A.EDIT): _WRITTEN,
    (_S.APPROVED, _A.EDIT): _WRITTEN,
    (_S.PUBLISHED, _A.EDIT): _WRITTEN,
    (_S.ARCHIVED, _A.EDIT): _WRITTEN,
    (_S.DRAFT, _A.SUBMIT): Step(_S.IN_REVIEW, WRITERS),
    (_S.IN_REVIEW, _A.APPROVE): Step(_S.APPROVED, _ADMIN),
    (_S.IN_REVIEW, _A.REJECT): _SENT_BACK,
    (_S.APPROVED, _A.PUBLISH): _GOES_LIVE,
    (_S.SCHEDULED, _A.PUBLISH): _GOES_LIVE,
    (_S.SCHEDULED, _A.GO_LIVE): Step(_S.PUBLISHED, CLOCK),
    (_S.APPROVED, _A.SCHEDULE): Step(_S.SCHEDULED, _ADMIN),
    (_S.SCHEDULED, _A.SCHEDULE): Step(_S.SCHEDULED, _ADMIN),
    (_S.SCHEDULED, _A.UNPUBLISH): Step(_S.APPROVED, _ADMIN),
    (_S.PUBLISHED, _A.UNPUBLISH): Step(_S.APPROVED, _ADMIN),
    (_S.DRAFT, _A.UNPUBLISH): Step(_S.DRAFT, _ADMIN, only_with_live_text=True),
    (_S.IN_REVIEW, _A.UNPUBLISH): Step(_S.IN_REVIEW, _ADMIN, only_with_live_text=True),
    (_S.APPROVED, _A.UNPUBLISH): Step(_S.APPROVED, _ADMIN, only_with_live_text=True),
    (_S.DRAFT, _A.ARCHIVE): _PUT_AWAY,
    (_S.IN_REVIEW, _A.ARCHIVE): _PUT_AWAY,
    (_S.APPROVED, _A.ARCHIVE): _PUT_AWAY,
    (_S.SCHEDULED, _A.ARCHIVE): _PUT_AWAY,
    (_S.PUBLISHED, _A.ARCHIVE): _PUT_AWAY,
    (_S.DRAFT, _A.DELETE): _DELETED,
    (_S.IN_REVIEW, _A.DELETE): _DELETED,
    (_S.APPROVED, _A.DELETE): _DELETED,
    (_S.SCHEDULED, _A.DELETE): _DELETED,
    (_S.PUBLISHED, _A.DELETE): _DELETED,
    (_S.ARCHIVED, _A.DELETE): _DELETED,
    (_S.DELETED, _A.UNDELETE): Step(_S.DRAFT, _ADMIN),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """An article as the workflow sees it: a state and three pointers to revisions. 0: none."""

    state: State
    draft: int
    published: int = 0
    reviewed: int = 0  # under review, approved, or scheduled

    def actions(self, role: Role) -> list[Action]:
        """What the role may do now."""
        return [
            action
            for (state, action), step in WORKFLOW.items()
            if state is self.state and role in step.roles and self._has_what(step)
        ]

    def _has_what(self, step: Step) -> bool:
        return bool(self.published) or not step.only_with_live_text


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. `role` is None for the clock."""

    role: Role | None
    actor_id: UUID | None = None


class NotAllowed(Exception):
    """The state does not allow it; `allowed` is what it does."""

    def __init__(self, allowed: Sequence[Action]) -> None:
        super().__init__()
        self.allowed = list(allowed)


class OtherRevision(Exception):
    """The caller speaks of another revision than the one at hand."""

    def __init__(self, current: int) -> None:
        super().__init__()
        self.current = current


class OwnRevision(Exception):
    """Nobody approves what they wrote themselves."""


def take(
    standing: Standing,
    action: Action,
    actor: Actor,
    *,
    revision: int = 0,
    author_id: UUID | None = None,
    own_allowed: bool = False,
) -> Standing:
    """The standing after the action. `revision` is the one the caller names, for the actions that
    pin one; `author_id` wrote the one under review."""
    step = WORKFLOW.get((standing.state, action))
    if step is None or not _may(step, actor) or not standing._has_what(step):
        raise NotAllowed(standing.actions(actor.role) if actor.role is not None else [])
    pinned = _pinned(standing, action)
    if pinned and revision != pinned:
        raise OtherRevision(pinned)
    if action is Action.APPROVE and actor.actor_id == author_id and not own_allowed:
        raise OwnRevision
    return _after(standing, action, step.to)


def _may(step: Step, actor: Actor) -> bool:
    return actor.role in step.roles if actor.role is not None else not step.roles


def _pinned(standing: Standing, action: Action) -> int:
    """The revision that the action is about, where the caller has to name it."""
    if action is Action.SUBMIT:
        return standing.draft
    if action in (
        Action.APPROVE, Action.REJECT, Action.PUBLISH, Action.SCHEDULE, Action.GO_LIVE,
    ):  # fmt: skip
        return standing.reviewed
    return 0


def _after(standing: Standing, action: Action, to: State) -> Standing:
    moved = replace(standing, state=to)
    match action:
        case Action.EDIT:
            return replace(moved, draft=standing.draft + 1, reviewed=0)
        case Action.SUBMIT:
            return replace(moved, reviewed=standing.draft)
        case Action.REJECT:
            return replace(moved, reviewed=0)
        case Action.PUBLISH | Action.GO_LIVE:
            return replace(moved, published=standing.reviewed)
        case Action.UNPUBLISH:
            # A publication that is called off leaves the live text where it is.
            return moved if standing.state is State.SCHEDULED else replace(moved, published=0)
        case Action.ARCHIVE | Action.DELETE:
            return replace(moved, published=0, reviewed=0)
        case Action.APPROVE | Action.SCHEDULE | Action.UNDELETE:
            return moved


def publish_time_fits(asked: datetime, now: datetime) -> bool:
    return now < asked <= now + PUBLISH_AHEAD_MAX


# -- names


def slug_of(title: str) -> str:
    """A readable name made from a title; empty where nothing of it can be kept."""
    folded = unicodedata.normalize("NFKD", title.replace("ß", "ss")).encode("ascii", "ignore")
    slug = _NOT_SLUG.sub("-", folded.decode().lower()).strip("-")
    return slug[:SLUG_CHARS_MAX].rstrip("-")


def numbered_slug(slug: str, number: int) -> str:
    """`slug` for the first, `slug-2` for the second."""
    if number < 2:
        return slug
    ending = f"-{number}"
    return slug[: SLUG_CHARS_MAX - len(ending)].rstrip("-") + ending


def tags_of(given: Iterable[str]) -> list[str]:
    """Small letters, one spelling, no doubles, in the order given."""
    folded = (" ".join(unicodedata.normalize("NFKC", tag).lower().split()) for tag in given)
    return list(dict.fromkeys(tag[:TAG_CHARS_MAX] for tag in folded if tag))


# -- locales


def locales_of(default: str, listed: Sequence[str]) -> tuple[str, ...]:
    """The locales an organisation writes in, its default one first."""
    first = default or (listed[0] if listed else DEFAULT_LOCALE)
    return (first, *(locale for locale in listed if locale != first))


def nearest_locale(wanted: str, there: Collection[str], default: str) -> str:
    """The locale itself, its language, another region of its language, the default, or ''."""
    if wanted in there:
        return wanted
    parts = wanted.split("-")
    for kept in range(len(parts) - 1, 0, -1):
        if (shorter := "-".join(parts[:kept])) in there:
            return shorter
    relatives = sorted(locale for locale in there if locale.split("-")[0] == parts[0])
    if relatives:
        return relatives[0]
    return default if default in there else ""


# -- the tree of categories

Parents = Mapping[UUID, UUID | None]


def makes_cycle(parents: Parents, category: UUID, parent: UUID | None) -> bool:
    """Whether `category` under `parent` would be above itself."""
    seen = 0
    while parent is not None and seen <= len(parents):
        if parent == category:
            return True
        parent, seen = parents.get(parent), seen + 1
    return False


def depth_with(parents: Parents, category: UUID | None, parent: UUID | None) -> int:
    """How deep the tree gets where `category` (None: a new one) is put under `parent`."""
    above = 0
    while parent is not None:
        parent, above = parents.get(parent), above + 1
    return above + (_height(parents, category) if category is not None else 1)


def _height(parents: Parents, top: UUID) -> int:
    height, level = 0, {top}
    while level:
        height += 1
        level = {child for child, parent in parents.items() if parent in level}
    return height


def below(parents: Parents, tops: Collection[UUID]) -> set[UUID]:
    """The categories themselves and all that is below them."""
    found: set[UUID] = set()
    level = set(tops)
    while level:
        found |= level
        level = {child for child, parent in parents.items() if parent in level} - found
    return found


# -- searches


def normalised_query(query: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", query).split())


def worth_noting(query: str) -> bool:
    """Whether a search that found nothing may be kept: not with what looks like a person's."""
    return bool(query) and _PERSONAL.search(query) is None


def words(query: str) -> list[str]:
    return _WORD.findall(query.lower())


def corrected(query: str, near: Mapping[str, Sequence[str]]) -> str:
    """The query with each word that resembles a known one replaced; '' where none does.

    A word that is known itself, and one that resembles nothing, stay as they are.
    """
    changed = False

    def replaced(match: re.Match[str]) -> str:
        nonlocal changed
        word = match.group().lower()
        best = _nearest(word, near.get(word, ()))
        changed |= best != word
        return best

    better = _WORD.sub(replaced, query)
    return better if changed else ""


def _nearest(word: str, known: Sequence[str]) -> str:
    if word in known:
        return word
    most = 2 if len(word) >= 8 else 1
    ranked = [(distance(word, other), other) for other in known]
    fitting = [pair for pair in ranked if pair[0] <= most]
    return min(fitting)[1] if fitting else word


def distance(one: str, other: str) -> int:
    """Typing errors between two words: one too many, too few, another, two swapped."""
    two_before: list[int] = []
    before = list(range(len(other) + 1))
    for i, char in enumerate(one, start=1):
        row = [i]
        for j, against in enumerate(other, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (char != against))
            if i > 1 and j > 1 and char == other[j - 2] and one[i - 2] == against:
                best = min(best, two_before[j - 2] + 1)
            row.append(best)
        two_before, before = before, row
    return before[-1]
