"""One import as its worker sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.db import Record
from trunkline_server.imports import change_ids, present, rules
from trunkline_server.imports.spec import SYNC_MAX_TERMINATIONS_RATIO
from trunkline_server.members.queries import Change
from trunkline_server.members.rules import OrgRules
from trunkline_server.orgs import OrgSettings


@dataclass(frozen=True, slots=True)
class Work:
    """Facts that do not change while the import runs."""

    org_id: UUID
    import_id: UUID
    spec: pb.ImportSpec
    layout: rules.Layout
    settings: OrgSettings
    member_rules: OrgRules
    actor_kind: str
    actor_id: UUID
    actor_name: str
    file_name: str
    batch_rows: int
    total_bytes: int
    plan_etag: str | None

    @property
    def creates_only(self) -> bool:
        return self.spec.mode == pb.IMPORT_MODE_CREATE

    @property
    def syncs(self) -> bool:
        return self.spec.mode == pb.IMPORT_MODE_SYNC

    @property
    def plans(self) -> bool:
        """Rows go into a plan first, and are published from there or not at all."""
        return self.spec.validate_only or self.spec.commit == pb.COMMIT_MODE_ATOMIC

    @property
    def fuse_ratio(self) -> float:
        if self.spec.HasField("sync_max_terminations_ratio"):
            return self.spec.sync_max_terminations_ratio
        return SYNC_MAX_TERMINATIONS_RATIO

    @property
    def first_change(self) -> UUID:
        return change_ids.first(self.import_id)

    @property
    def last_change(self) -> UUID:
        return change_ids.last(self.import_id)

    def change(self, change_id: UUID, cause: str = "IMPORTED") -> Change:
        """The provenance of what one transaction of the import writes."""
        return Change(
            change_id=change_id,
            cause=cause,
            actor_kind=self.actor_kind,
            actor_id=self.actor_id,
            actor_name=self.actor_name,
            import_id=self.import_id,
            file_name=self.file_name,
        )


def read(row: Record, settings: OrgSettings, member_rules: OrgRules) -> Work:
    return Work(
        org_id=row["org_id"],
        import_id=row["import_id"],
        spec=present.spec(row),
        layout=rules.Layout.from_json(json.loads(row["layout"])),
        settings=settings,
        member_rules=member_rules,
        actor_kind=row["actor_kind"],
        actor_id=row["actor_id"],
        actor_name=row["actor_name"],
        file_name=row["file_name"],
        batch_rows=row["batch_rows"],
        total_bytes=row["persisted_bytes"],
        plan_etag=row["plan_etag"],
    )
