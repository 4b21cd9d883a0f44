"""How far an import has come."""

from dataclasses import dataclass

from trunkline._shared.enums import name_of
from trunkline.api.imports.v1 import imports_service_pb2 as pb

ENDED = frozenset(
    {
        pb.IMPORT_STATE_AWAITING_COMMIT,
        pb.IMPORT_STATE_SUCCEEDED,
        pb.IMPORT_STATE_FAILED,
        pb.IMPORT_STATE_CANCELLED,
        pb.IMPORT_STATE_DEAD,
        pb.IMPORT_STATE_UNDONE,
    }
)
TAKES_BYTES = frozenset({pb.IMPORT_STATE_CREATED, pb.IMPORT_STATE_UPLOADING})


@dataclass(frozen=True, slots=True)
class Progress:
    """A progress callback's argument, while bytes go up and while a worker reads them."""

    import_id: str
    # A short name of ImportState: UPLOADING, QUEUED, RUNNING, SUCCEEDED...
    state: str
    bytes_stored: int
    # None where the size is not known before the end.
    bytes_total: int | None
    bytes_processed: int
    rows_read: int
    rows_rejected: int
    # Why nothing moves: a PauseReason or QueueCause. Empty: it moves.
    waits_for: str = ""


def progress_of(found: pb.Import) -> Progress:
    waits = found.HasField("queue") and found.queue.cause
    return Progress(
        import_id=found.import_id,
        state=name_of(pb.ImportState, found.state),
        bytes_stored=found.counters.bytes_received,
        bytes_total=found.counters.bytes_received,
        bytes_processed=found.counters.bytes_processed,
        rows_read=found.counters.rows_read,
        rows_rejected=found.counters.rejected,
        waits_for=name_of(pb.QueueCause, found.queue.cause) if waits else "",
    )
