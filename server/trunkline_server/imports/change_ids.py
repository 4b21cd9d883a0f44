"""The ids of the changes that an import makes to members: all in one range, told from the id alone.

A change's id is the import's id with its last 32 bits replaced. So "was this member written by this
import" is a comparison of two uuids, in a merge of a million rows as in an index range for undo,
and a batch that is done again by another worker has the id it would have had.
"""

from uuid import UUID

_BITS = 32
_LAST = (1 << _BITS) - 1
# Above every batch: 10,000,000 rows in batches of one.
SYNC_NO = _LAST - 1
PUBLISH_NO = _LAST - 2


def first(import_id: UUID) -> UUID:
    return UUID(int=import_id.int >> _BITS << _BITS)


def last(import_id: UUID) -> UUID:
    return UUID(int=import_id.int | _LAST)


def of_batch(import_id: UUID, batch_no: int) -> UUID:
    return UUID(int=first(import_id).int | (batch_no + 1))


def of_sync(import_id: UUID) -> UUID:
    return UUID(int=first(import_id).int | SYNC_NO)


def of_publish(import_id: UUID) -> UUID:
    return UUID(int=first(import_id).int | PUBLISH_NO)
