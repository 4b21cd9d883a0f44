"""Articles among 100,000 of 3 KiB: searches, reads beside a warm validation, writes."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
from google.protobuf.message import Message

from bench import library, load, openloop, product, roster
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.library import Sample
from bench.per_cpu import side
from bench.process import Server
from bench.product import Tenant
from bench.registry import CannotMeasure, Plan
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline_server.rpc.caller import Role

NAME = "content"
SERVICE = "/trunkline.api.content.v1.ContentService"
VALIDATE = "/trunkline.api.members.v1.MemberService/ValidateMember"
SEARCHES_PER_S = 100.0
READS_PER_S = 500.0
WRITES_PER_S = 50.0
PAGE = 20
READ_ARTICLES = 500
CALLS = 3_000
BODY_BYTES = 3 << 10
# A client of ours always sends its deadline; without one the wrapper sets a timer of its own.
DEADLINE = {"grpc-timeout": "5S"}
QUOTAS = {
    "cost_per_second": 100_000_000, "actor_cost_per_second": 100_000_000, "articles": 1_000_000,
}  # fmt: skip


def run(plan: Plan) -> Iterator[Figure]:
    articles = plan.pick(full=100_000, quick=20_000)
    seconds = plan.pick(full=20.0, quick=8.0)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        samples = library.fill(stack.database_url, tenant.org_id, articles, READ_ARTICLES)
        roster.fill(stack.database_url, tenant.org_id, 1_000, indexed=False)
        server = started.enter_context(product.server(stack, "bench.servers.product"))
        searches = [_question(sample, kind) for kind, sample in enumerate(samples)]
        reads = [pb.GetArticleRequest(article_id=sample.article_id) for sample in samples]
        folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="tl-bench-")))
        drive = Drive(server, tenant, folder)
        drive("SearchArticles", searches, SEARCHES_PER_S / 2, 3.0, Role.AGENT)
        found = drive("SearchArticles", searches, SEARCHES_PER_S, seconds, Role.AGENT)
        drive("GetArticle", reads, READS_PER_S, 2.0, Role.AGENT)
        read = drive("GetArticle", reads, READS_PER_S, seconds, Role.AGENT)
        written = _write(drive, seconds)
        values = _costs(server, tenant, samples[0], plan.pick(full=21, quick=9))
    yield figure(NAME, "search_p99_ms", [found.of("ok").quantile(0.99) * 1000])
    yield figure(NAME, "read_to_warm_validate", ratios(values["read"], values["validate"]))
    for name, outcomes in (("search", found), ("get", read), *written.items()):
        latency = outcomes.of("ok")
        for share, text in ((0.5, "p50"), (0.99, "p99")):
            if (name, text) != ("search", "p99"):
                value = latency.quantile(share) * 1000
                yield figure(NAME, f"{name}_{text}_ms", [value], unit="ms", better="lower")
    for name, runs in values.items():
        yield figure(NAME, f"{name}_per_cpu_s", runs, unit="calls/s")
    yield figure(NAME, "articles", [articles], unit="articles")


def _costs(server: Server, tenant: Tenant, sample: Sample, rounds: int) -> dict[str, list[float]]:
    metadata = {**tenant.bearer(), **DEADLINE}
    get = pb.GetArticleRequest(article_id=sample.article_id).SerializeToString()
    one = members.ValidateMemberRequest(member_number="M-00000001").SerializeToString()
    sides = {
        "validate": side(server, load.Call(VALIDATE, one, 100, metadata), calls=CALLS),
        "read": side(
            server, load.Call(f"{SERVICE}/GetArticle", get, BODY_BYTES, metadata), calls=CALLS
        ),
    }
    alternate(sides, rounds=2)
    return alternate(sides, rounds=rounds)


def _typo(text: str) -> str:
    at = len(text) // 2
    return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]


_KINDS: tuple[Callable[[list[str], str], str], ...] = (
    lambda title, phrase: " ".join(title[:2]),
    lambda title, phrase: title[0],
    lambda title, phrase: title[2],
    lambda title, phrase: phrase,
    lambda title, phrase: f'"{phrase}"',
    lambda title, phrase: f"{title[0]} -{title[1]}",
    lambda title, phrase: f"{title[0]} or {title[2]}",
    lambda title, phrase: _typo(title[2]),
    lambda title, phrase: f"{title[1]} {_typo(title[2])}",
    lambda title, phrase: phrase.split()[0],
)


def _question(sample: Sample, kind: int) -> pb.SearchArticlesRequest:
    query = _KINDS[kind % len(_KINDS)](sample.title.lower().split(), sample.phrase)
    return pb.SearchArticlesRequest(query=query, page_size=PAGE, with_facets=kind % 10 == 0)


class Drive:
    """Calls of a method on a schedule, all of which have to succeed."""

    def __init__(self, server: Server, tenant: Tenant, folder: Path) -> None:
        self.server = server
        self._tenant = tenant
        self._folder = folder

    def __call__(
        self, method: str, requests: Sequence[Message], per_s: float, seconds: float, role: Role
    ) -> openloop.Outcomes:
        mixed = list(requests)
        random.Random(5).shuffle(mixed)
        file = self._folder / "requests.json"
        file.write_text(json.dumps([request.SerializeToString().hex() for request in mixed]))
        given = {
            "address": self.server.address,
            "path": f"{SERVICE}/{method}",
            "metadata": self._tenant.bearer(role),
            "requests_file": str(file),
            "channels": 4,
        }
        outcomes = openloop.run("bench.prepared:several", given, openloop.Arrivals(per_s, seconds))
        if outcomes.unfinished or set(outcomes.counts) != {"ok"}:
            raise CannotMeasure(f"{method}: {dict(outcomes.counts)}, {outcomes.unfinished} left")
        if not outcomes.driver_kept_up:
            raise CannotMeasure("the load generator was late: the machine is busy otherwise")
        return outcomes

    def create(self, requests: Sequence[pb.CreateArticleRequest]) -> list[pb.Article]:
        """One after the other, for their answers."""
        metadata = tuple(self._tenant.bearer(Role.TRAINER).items())
        with grpc.insecure_channel(self.server.address) as channel:
            call = channel.unary_unary(
                f"{SERVICE}/CreateArticle",
                request_serializer=pb.CreateArticleRequest.SerializeToString,
                response_deserializer=pb.CreateArticleResponse.FromString,
            )
            return [call(request, metadata=metadata).article for request in requests]


def _write(drive: Drive, seconds: float) -> dict[str, openloop.Outcomes]:
    """Each update is of another article: an etag serves once."""
    writer = library.Writer()
    now = time.time_ns()
    made = [writer.text(number) for number in range(int(WRITES_PER_S * seconds * 1.5))]
    creates = [
        pb.CreateArticleRequest(
            article=pb.Article(kind=pb.ARTICLE_KIND_ARTICLE, locale="en", title=title, body=body,
                               tags=tags, slug=f"bench-{now}-{number}")
        )
        for number, (title, body, tags) in enumerate(made)
    ]  # fmt: skip
    there = drive.create(creates)
    updates = []
    for article, (_, body, _) in zip(there, reversed(made), strict=True):
        changed = pb.Article(article_id=article.article_id, etag=article.etag, body=body)
        request = pb.UpdateArticleRequest(article=changed)
        request.update_mask.paths.append("body")
        updates.append(request)
    for again in creates:
        again.article.slug = f"again-{again.article.slug}"
    seconds = min(seconds, len(made) / WRITES_PER_S / 1.4)
    return {
        "create": drive("CreateArticle", creates, WRITES_PER_S, seconds, Role.TRAINER),
        "update": drive("UpdateArticle", updates, WRITES_PER_S, seconds, Role.TRAINER),
    }
