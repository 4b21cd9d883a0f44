from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. A lease lasts two heartbeats: that is how soon a killed worker's job goes on."""

    heartbeat_s: float = 5.0
    poll_s: float = 1.0
    # Longer than any honest pause of the loop; a loop that stays away longer is taken for dead.
    loop_stall_s: float = 120.0
    # Longest time without a fence, a checkpoint or a touch before a job is taken for stuck.
    work_stall_s: float = 900.0
    # How long a job may hold its lease while another organisation waits for a worker.
    turn_s: float = 5.0
    # From the request to cancel, or to stop, until the handler is interrupted.
    grace_s: float = 10.0
    backoff_s: float = 1.0
    backoff_s_max: float = 300.0
    purge_every_s: float = 600.0

    @property
    def lease_s(self) -> float:
        return 2 * self.heartbeat_s
