"""Leased jobs in PostgreSQL: claim, heartbeat, fence, retry, fairness, schedules. No slice."""

from trunkline_server.jobs.lease import Lease, LeaseLost
from trunkline_server.jobs.outcome import Dead, Done, Failed, Outcome, Retry, Yield
from trunkline_server.jobs.queue import SYSTEM_ORG, enqueue
from trunkline_server.jobs.runner import Handler, Runner
from trunkline_server.jobs.schedule import Schedule
from trunkline_server.jobs.timings import Timings

__all__ = [
    "SYSTEM_ORG",
    "Dead",
    "Done",
    "Failed",
    "Handler",
    "Lease",
    "LeaseLost",
    "Outcome",
    "Retry",
    "Runner",
    "Schedule",
    "Timings",
    "Yield",
    "enqueue",
]
