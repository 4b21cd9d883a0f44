"""Calls to ContentService as a test makes them, in one role or another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest

from tests.running import Org, details
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.api.content.v1.content_service_pb2_grpc import ContentServiceStub
from trunkline_server.rpc.caller import Role

DEADLINE_S = 10.0


@dataclass
class Refusal:
    """What an expected error said."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    details: dict[str, Any] | None = None

    @property
    def metadata(self) -> dict[str, str]:
        assert self.details is not None
        return dict(self.details["ErrorInfo"].metadata)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str = "") -> Iterator[Refusal]:
    """The block ends in an error of that code (and reason)."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    assert caught.value.code() is code, caught.value.details()
    refusal.code = code
    refusal.details = details(caught.value)
    refusal.reason = refusal.details["reason"]
    if reason:
        assert refusal.reason == reason


Titles = list[str]  # the desk has a method of that name


class Desk:
    """Trainers write, administrators review, agents read."""

    def __init__(self, channel: grpc.aio.Channel, org: Org, database_url: str) -> None:
        self.org = org
        self.database_url = database_url
        self.stub: Any = ContentServiceStub(channel)

    async def call(self, method: str, request: Any, role: Role = Role.ADMIN) -> Any:
        call = getattr(self.stub, method)
        return await call(request, metadata=self.org.as_(role), timeout=DEADLINE_S)

    async def create(
        self, title: str = "Password reset", role: Role = Role.TRAINER, **fields: Any
    ) -> pb.Article:
        fields = {"kind": pb.ARTICLE_KIND_ARTICLE, "locale": "en", "title": title, **fields}
        request = pb.CreateArticleRequest(article=pb.Article(**fields))
        created: pb.Article = (await self.call("CreateArticle", request, role)).article
        return created

    async def update(
        self, article: pb.Article, role: Role = Role.TRAINER, **fields: Any
    ) -> pb.Article:
        changed = pb.Article(article_id=article.article_id, etag=article.etag, **fields)
        request = pb.UpdateArticleRequest(article=changed)
        request.update_mask.paths.extend(fields)
        updated: pb.Article = (await self.call("UpdateArticle", request, role)).article
        return updated

    async def step(
        self, method: str, article: pb.Article, role: Role = Role.ADMIN, **given: Any
    ) -> pb.Article:
        """`await desk.step("Approve", article)`: of the newest revision where one is named."""
        request_class = getattr(pb, f"{method}ArticleRequest")
        if "revision" in request_class.DESCRIPTOR.fields_by_name:
            given.setdefault("revision", article.draft_revision)
        request = request_class(article_id=article.article_id, **given)
        after: pb.Article = (await self.call(f"{method}Article", request, role)).article
        return after

    async def approved(self, article: pb.Article) -> pb.Article:
        await self.step("Submit", article, Role.TRAINER)
        return await self.step("Approve", article)

    async def published(self, title: str = "Password reset", **fields: Any) -> pb.Article:
        return await self.publish(await self.create(title, **fields))

    async def publish(self, article: pb.Article) -> pb.Article:
        return await self.step("Publish", await self.approved(article))

    async def get(
        self, article: pb.Article | str, role: Role = Role.AGENT, **given: Any
    ) -> pb.Article:
        found: pb.Article = (await self.reply(article, role, **given)).article
        return found

    async def reply(
        self, article: pb.Article | str, role: Role = Role.AGENT, **given: Any
    ) -> pb.GetArticleResponse:
        article_id = article if isinstance(article, str) else article.article_id
        request = pb.GetArticleRequest(article_id=article_id, **given)
        reply: pb.GetArticleResponse = await self.call("GetArticle", request, role)
        return reply

    async def listed(self, role: Role = Role.AGENT, **given: Any) -> Titles:
        request = pb.ListArticlesRequest(**given)
        return [each.title for each in (await self.call("ListArticles", request, role)).articles]

    async def found(
        self, query: str, role: Role = Role.AGENT, **given: Any
    ) -> pb.SearchArticlesResponse:
        request = pb.SearchArticlesRequest(query=query, **given)
        reply: pb.SearchArticlesResponse = await self.call("SearchArticles", request, role)
        return reply

    async def search(self, query: str, role: Role = Role.AGENT, **given: Any) -> Titles:
        return [match.article.title for match in (await self.found(query, role, **given)).matches]

    async def category(self, name: str, parent_id: str = "", **given: Any) -> pb.Category:
        category = pb.Category(display_name=name, parent_id=parent_id, **given)
        request = pb.CreateCategoryRequest(category=category)
        created: pb.Category = (await self.call("CreateCategory", request)).category
        return created
