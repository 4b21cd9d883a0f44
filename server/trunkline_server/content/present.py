"""Articles as messages: rows in, protobuf out, for writers or for readers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.content import queries
from trunkline_server.content.rules import WRITERS, State
from trunkline_server.db import Record
from trunkline_server.rpc.caller import Role

_COMMON = ("slug", "title", "summary", "body", "revision", "author_name")
KINDS = {name.removeprefix("ARTICLE_KIND_"): value for name, value in pb.ArticleKind.items()}
STATES = {name.removeprefix("ARTICLE_STATE_"): value for name, value in pb.ArticleState.items()}
ACTIONS = {name.removeprefix("ARTICLE_ACTION_"): value for name, value in pb.ArticleAction.items()}


def article(row: Record, role: Role, *, live: bool) -> pb.Article:
    """One of the article's texts. Readers see of the article what its live text tells."""
    message = pb.Article(
        article_id=str(row["article_id"]),
        kind=KINDS[row["kind"]],
        locale=row["locale"],
        category_id=_id(row["category_id"]),
        tags=row["tags"],
        translation_of_id=_id(row["translation_of_id"]),
        published_revision=row["published_revision"],
        author_id=str(row["author_id"]),
        approver_id=_id(row["approver_id"]),
        helpful_votes=row["helpful"],
        not_helpful_votes=row["not_helpful"],
        views=row["views"],
        create_time=timestamp(row["created_at"]),
    )
    for field in _COMMON:
        setattr(message, field, row[field])
    if role in WRITERS:
        _for_writers(message, row, role)
    else:
        message.state = pb.ARTICLE_STATE_PUBLISHED
        message.etag = live_etag(row)
        message.update_time.FromDatetime(row["live_at"])
    return message


def _for_writers(message: pb.Article, row: Record, role: Role) -> None:
    message.state = STATES[row["state"]]
    message.draft_revision = row["draft_revision"]
    message.reviewed_revision = row["reviewed_revision"]
    message.rejection_reason = row["rejection_reason"]
    message.etag = etag(row)
    message.update_time.FromDatetime(row["updated_at"])
    message.allowed_actions.extend(
        ACTIONS[action] for action in queries.standing(row).actions(role)
    )
    for column, field in (
        ("publish_at", "publish_time"), ("deleted_at", "delete_time"), ("purge_at", "purge_time")
    ):  # fmt: skip
        if (moment := row[column]) is not None:
            getattr(message, field).FromDatetime(moment)


def etag(row: Record) -> str:
    return str(row["version"])


def live_etag(row: Record) -> str:
    """Of a live text: another translation with the same number is another text."""
    return f"{row['article_id'].hex[-12:]}.{row['revision']}"


def revision(row: Record) -> pb.Revision:
    message = pb.Revision(
        revision=row["revision"],
        title=row["title"],
        note=row["note"],
        author_id=str(row["author_id"]),
        author_name=row["author_name"],
        create_time=timestamp(row["created_at"]),
        approver_id=_id(row["approver_id"]),
        rejection_reason=row["rejection_reason"],
        rollback_of=row["rollback_of"],
    )
    if row["approved_at"] is not None:
        message.approve_time.FromDatetime(row["approved_at"])
    if row["published_at"] is not None:
        message.publish_time.FromDatetime(row["published_at"])
    return message


def category(row: Record, published: int) -> pb.Category:
    return pb.Category(
        category_id=str(row["category_id"]),
        display_name=row["display_name"],
        parent_id=_id(row["parent_id"]),
        sort_order=row["sort_order"],
        published_articles=published,
        etag=str(row["version"]),
        create_time=timestamp(row["created_at"]),
        update_time=timestamp(row["updated_at"]),
    )


def masked(message: pb.Article, paths: Sequence[str]) -> pb.Article:
    """Only the named fields; all when none is named."""
    if not paths:
        return message
    kept = pb.Article()
    kept.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.name not in paths:
            kept.ClearField(field.name)  # type: ignore[arg-type]
    return kept


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def kind_name(kind: pb.ArticleKind.ValueType) -> str:
    return pb.ArticleKind.Name(kind).removeprefix("ARTICLE_KIND_")


def state_name(state: pb.ArticleState.ValueType) -> str:
    return State(pb.ArticleState.Name(state).removeprefix("ARTICLE_STATE_")).value


def _id(value: UUID | None) -> str:
    return "" if value is None else str(value)
