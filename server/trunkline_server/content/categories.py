"""The tree of categories: small enough to be read whole, changed by one writer at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar
from uuid import UUID

import asyncpg
from google.protobuf.message import Message

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server import audit
from trunkline_server.content import present, queries, rules
from trunkline_server.content.errors import (
    CategoriesFull,
    CategoryCycle,
    CategoryNameTaken,
    CategoryNotEmpty,
    CategoryNotFound,
    CategoryTooDeep,
    EtagMismatch,
    FieldInvalid,
)
from trunkline_server.content.writing import Told, announce
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.errors import FieldViolation, QuotaViolation
from trunkline_server.idempotency import Write, once
from trunkline_server.ids import uuid7
from trunkline_server.link import Link
from trunkline_server.paging import PageTokenInvalid, PageTokens, page_size
from trunkline_server.rpc.caller import caller

CATEGORIES_MAX = 5_000

Reply = TypeVar("Reply", bound=Message)

_PARENTS = "SELECT category_id, parent_id FROM categories WHERE org_id = $1"


async def parents(db: Executor, org_id: UUID) -> dict[UUID, UUID | None]:
    rows = await db.fetch(_PARENTS, org_id)
    return {row["category_id"]: row["parent_id"] for row in rows}


async def with_all_below(db: Executor, org_id: UUID, tops: Collection[UUID]) -> set[UUID]:
    return rules.below(await parents(db, org_id), tops)


_COLUMNS = "category_id, parent_id, display_name, sort_order, version, created_at, updated_at"
_ALL = f"SELECT {_COLUMNS} FROM categories WHERE org_id = $1"  # noqa: S608 - made of constants
_PUBLISHED = """
SELECT category_id, count(article_id) AS articles FROM article_texts
WHERE org_id = $1 AND live AND category_id IS NOT NULL GROUP BY category_id
"""
_INSERT = f"""
INSERT INTO categories (org_id, category_id, parent_id, display_name, sort_order)
VALUES ($1, $2, $3, $4, $5) RETURNING {_COLUMNS}
"""  # noqa: S608 - made of constants
_ONE = f"SELECT {_COLUMNS} FROM categories WHERE org_id = $1 AND category_id = $2"  # noqa: S608
_UPDATE = f"""
UPDATE categories SET parent_id = $3, display_name = $4, sort_order = $5, version = version + 1,
    updated_at = now()
WHERE org_id = $1 AND category_id = $2 RETURNING {_COLUMNS}
"""  # noqa: S608 - made of constants
_DELETE = "DELETE FROM categories WHERE org_id = $1 AND category_id = $2"


class Categories:
    def __init__(self, *, db: Database, link: Link | None, pages: PageTokens) -> None:
        self._db = db
        self._link = link
        self._pages = pages

    async def create(self, request: pb.CreateCategoryRequest) -> pb.CreateCategoryResponse:
        given = request.category
        name, parent = _name(given.display_name), _uuid(given.parent_id)

        async def create(tx: Connection, org_id: UUID) -> pb.CreateCategoryResponse:
            tree = await parents(tx, org_id)
            if len(tree) >= CATEGORIES_MAX:
                quota = QuotaViolation(f"organisation:{org_id}", f"categories: {CATEGORIES_MAX}")
                raise CategoriesFull(quota=[quota])
            _check_place(tree, None, parent)
            arguments = (uuid7(), parent, name, given.sort_order)
            row = await _named(tx.fetchrow(_INSERT, org_id, *arguments))
            await _audit(tx, org_id, "CreateCategory", row["category_id"])
            return pb.CreateCategoryResponse(category=present.category(row, 0))

        return await self._write(request, pb.CreateCategoryResponse, create)

    async def update(self, request: pb.UpdateCategoryRequest) -> pb.UpdateCategoryResponse:
        given, paths = request.category, set(request.update_mask.paths)
        category_id = _uuid(given.category_id)
        if category_id is None:
            raise _invalid("category.category_id", "is required")
        name = _name(given.display_name) if "display_name" in paths else ""

        async def update(tx: Connection, org_id: UUID) -> pb.UpdateCategoryResponse:
            before = await _locked(tx, org_id, category_id, given.etag)
            parent = before["parent_id"]
            if "parent_id" in paths:
                parent = _uuid(given.parent_id)
                _check_place(await parents(tx, org_id), category_id, parent)
            order = given.sort_order if "sort_order" in paths else before["sort_order"]
            arguments = (category_id, parent, name or before["display_name"], order)
            row = await _named(tx.fetchrow(_UPDATE, org_id, *arguments))
            await _audit(tx, org_id, "UpdateCategory", category_id)
            published = (await _published(tx, org_id)).get(category_id, 0)
            return pb.UpdateCategoryResponse(category=present.category(row, published))

        return await self._write(request, pb.UpdateCategoryResponse, update)

    async def delete(self, request: pb.DeleteCategoryRequest) -> pb.DeleteCategoryResponse:
        category_id = UUID(request.category_id)

        async def delete(tx: Connection, org_id: UUID) -> pb.DeleteCategoryResponse:
            await _locked(tx, org_id, category_id, request.etag)
            try:
                await tx.execute(_DELETE, org_id, category_id)
            except asyncpg.ForeignKeyViolationError:
                raise CategoryNotEmpty from None
            await _audit(tx, org_id, "DeleteCategory", category_id)
            return pb.DeleteCategoryResponse()

        return await self._write(request, pb.DeleteCategoryResponse, delete)

    async def list(self, request: pb.ListCategoriesRequest) -> pb.ListCategoriesResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await tx.fetch(_ALL, who.org_id)
            published = await _published(tx, who.org_id)
        if request.under_id:
            top = UUID(request.under_id)
            tree = {row["category_id"]: row["parent_id"] for row in rows}
            if top not in tree:
                raise CategoryNotFound
            wanted = rules.below(tree, {top})
            rows = [row for row in rows if row["category_id"] in wanted]
        ordered = in_tree_order(rows)
        start = 0
        if position:
            ids = [str(row["category_id"]) for row in ordered]
            if position[0] not in ids:
                raise PageTokenInvalid  # it was deleted meanwhile: start again
            start = ids.index(position[0]) + 1
        shown = ordered[start : start + size]
        more = len(ordered) > start + size
        return pb.ListCategoriesResponse(
            categories=[
                present.category(row, published.get(row["category_id"], 0)) for row in shown
            ],
            next_page_token=(
                self._pages.seal([str(shown[-1]["category_id"])], request) if more else ""
            ),
        )

    async def _write(
        self,
        request: Write,
        reply_type: type[Reply],
        produce: Callable[[Connection, UUID], Awaitable[Reply]],
    ) -> Reply:
        org_id, told = caller().org_id, Told()

        async def alone(tx: Connection) -> Reply:
            # Two moves that are each in order could make a ring together: they take turns.
            told.version = await queries.bump_version(tx, org_id)
            return await produce(tx, org_id)

        async with self._db.tenant_tx(org_id) as tx:
            reply = await once(tx, request, reply_type, lambda: alone(tx))
        await announce(self._link, org_id, told)
        return reply


def in_tree_order(rows: Collection[Record]) -> list[Record]:
    """Parents before children, then by order and name; a level below its parent at once."""
    there = {row["category_id"] for row in rows}
    children: dict[UUID | None, list[Record]] = {}
    for row in sorted(rows, key=lambda row: (row["sort_order"], row["display_name"])):
        parent = row["parent_id"] if row["parent_id"] in there else None
        children.setdefault(parent, []).append(row)
    ordered: list[Record] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        row = waiting.pop()
        ordered.append(row)
        waiting.extend(reversed(children.get(row["category_id"], [])))
    return ordered


async def _published(tx: Executor, org_id: UUID) -> Mapping[UUID, int]:
    """How many published articles are in each category or below it."""
    own = {row["category_id"]: row["articles"] for row in await tx.fetch(_PUBLISHED, org_id)}
    tree = await parents(tx, org_id)
    total: dict[UUID, int] = {}
    for category, articles in own.items():
        above: UUID | None = category
        while above is not None:
            total[above] = total.get(above, 0) + articles
            above = tree.get(above)
    return total


async def _locked(tx: Executor, org_id: UUID, category_id: UUID, etag: str) -> Record:
    """The organisation's row is held, so no other change of the tree is under way."""
    row = await tx.fetchrow(_ONE, org_id, category_id)
    if row is None:
        raise CategoryNotFound
    if etag and etag != str(row["version"]):
        raise EtagMismatch(metadata={"etag": str(row["version"])})
    return row


def _check_place(tree: rules.Parents, category: UUID | None, parent: UUID | None) -> None:
    if parent is not None and parent not in tree:
        raise CategoryNotFound
    if category is not None and rules.makes_cycle(tree, category, parent):
        raise CategoryCycle
    if rules.depth_with(tree, category, parent) > rules.CATEGORY_DEPTH_MAX:
        raise CategoryTooDeep


async def _named(writing: Awaitable[Record | None]) -> Record:
    try:
        row = await writing
    except asyncpg.UniqueViolationError:
        raise CategoryNameTaken from None
    assert row is not None
    return row


async def _audit(tx: Executor, org_id: UUID, method: str, category_id: UUID) -> None:
    await audit.append(
        tx, org_id, f"content.{method}", resource_type="category", resource_id=category_id
    )


def _name(given: str) -> str:
    name = " ".join(given.split())
    if not name:
        raise _invalid("category.display_name", "is required")
    return name


def _invalid(name: str, description: str) -> FieldInvalid:
    return FieldInvalid(violations=[FieldViolation(name, description)])


def _uuid(value: str) -> UUID | None:
    return UUID(value) if value else None
