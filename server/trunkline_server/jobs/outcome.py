"""What a handler says at the end of its turn. Reasons name a class of failure, never a value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """The work is complete."""


@dataclass(frozen=True, slots=True)
class Yield:
    """More is to do: back to the queue, and the attempt is not counted."""

    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """It did not work this time; after the last attempt the job is DEAD."""

    reason: str
    after_s: float | None = None  # None: the back-off decides


@dataclass(frozen=True, slots=True)
class Failed:
    """An expected end without success, which nobody needs to look at."""

    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """It can never work as it is: somebody has to look, and may re-drive it."""

    reason: str


Outcome = Done | Yield | Retry | Failed | Dead
