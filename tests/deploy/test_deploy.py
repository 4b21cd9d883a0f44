"""deploy/ against the code: names, times and limits that must agree, and files that must parse."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.deploy.plain_yaml import NotPlain, load
from tests.running import PAGE_SECRET, PEPPER, SIGNING_KEY, make_org, settings
from trunkline_server import __version__, app
from trunkline_server.config import (
    CONFIG_VARIABLE,
    CommonSettings,
    ServeSettings,
    WorkerSettings,
    variables,
)
from trunkline_server.doctor import FILES_GOOD
from trunkline_server.local.postgres import find_postgres
from trunkline_server.metrics import PrometheusView, Registry
from trunkline_server.migrate import verify
from trunkline_server.rpc.options import PING_INTERVAL_MIN_MS, STREAMS_PER_CONNECTION_MAX
from trunkline_server.supervisor import DRAIN_TIMEOUT_S, EXIT_CONFIG
from trunkline_server.telemetry import Telemetry
from trunkline_server.upkeep import SEAL_AUDIT

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs" / "guide" / "operations.md"
YAML = sorted(DEPLOY.rglob("*.yaml"))
UNITS = sorted(DEPLOY.rglob("*.service"))
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
# What a supervisor that was told to stop needs beyond its children's time.
MARGIN_S = 5

_VARIABLE = re.compile(r"\bTRUNKLINE_[A-Z][A-Z0-9_]*[A-Z0-9]\b")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")
_METRIC = re.compile(r"\b(?:trunkline|rpc_server|postgresql)_[a-z0-9_]+\b")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def documents(name: str) -> list[Any]:
    return load((DEPLOY / name).read_text())


def one(name: str, kind: str) -> Any:
    (found,) = (each for each in documents(name) if each["kind"] == kind)
    return found


def pod(component: str) -> Any:
    return one(f"kubernetes/{component}.yaml", "Deployment")["spec"]["template"]["spec"]


def unit(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def default(name: str, kind: type[CommonSettings] = ServeSettings) -> Any:
    return kind.model_fields[name].default


# ---- what is written parses ----


@pytest.mark.parametrize("path", YAML, ids=relative)
def test_yaml_parses(path: Path) -> None:
    assert all(load(path.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n  b: 2", "a: 1\na: 2", "a:", "a: [1,", "a: {x: 1}", "a: b: c", "a: *b", "a: yes",
        "- a\nb: 1", "a:\n\t- b", "a:\n  - b\n - c", "a: 'b'", "a: |",
    ],
)  # fmt: skip
def test_what_is_not_plain_yaml_is_refused(text: str) -> None:
    with pytest.raises(NotPlain):
        load(text)


@pytest.mark.parametrize("path", UNITS, ids=relative)
def test_units_verify(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    copy = tmp_path / path.name
    installed = "/opt/trunkline/venv/bin/trunklined"
    assert installed in path.read_text()
    copy.write_text(path.read_text().replace(installed, sys.executable))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--generators=no", str(copy)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, ours) == (0, [])


def test_the_container_is_plain() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images and not any("/" in image for image in images)
    user = re.search(r"^USER (\d+):\d+$", text, re.MULTILINE)
    assert user and int(user[1]) == pod("serve")["securityContext"]["runAsUser"] > 0
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / each).exists() for each in copied.split()), copied


# ---- names ----


def config_variables() -> set[str]:
    named = {CONFIG_VARIABLE}
    for kind in (ServeSettings, WorkerSettings):
        for name, field in kind.model_fields.items():
            for variable in variables(field, name):
                named |= {variable, f"{variable}_FILE"}
    return named


@pytest.mark.parametrize("path", [*TEXTS, OPERATIONS], ids=relative)
def test_variables_exist(path: Path) -> None:
    assert set(_VARIABLE.findall(path.read_text())) - config_variables() == set()


def test_documents_name_variables_that_exist() -> None:
    client = {
        name
        for path in (ROOT / "clients" / "python" / "src" / "trunkline").rglob("*.py")
        for name in _VARIABLE.findall(path.read_text())
    }
    pages = [ROOT / "README.md", *(ROOT / "docs" / "guide").glob("*.md")]
    pages += (ROOT / "docs" / "reference").glob("*.md")
    named = {name for page in pages for name in _VARIABLE.findall(page.read_text())}
    assert len(named) > 10
    assert named - client - config_variables() == set()


def test_the_owner_s_variable_exists() -> None:
    (container,) = one("kubernetes/migrate.yaml", "Job")["spec"]["template"]["spec"]["containers"]
    main = (ROOT / "server" / "trunkline_server" / "__main__.py").read_text()
    for variable in container["env"]:
        assert f'"{variable["name"]}"' in main


@pytest.mark.parametrize(
    ("component", "kind"), [("serve", ServeSettings), ("worker", WorkerSettings)]
)
def test_pods_start_with_settings_that_are_right(
    component: str, kind: type[CommonSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "database_url": "postgresql://x/y", "redis_url": "redis://x", "key_pepper": PEPPER,
        "token_key": SIGNING_KEY, "page_secret": PAGE_SECRET,
    }  # fmt: skip
    (container,) = pod(component)["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    for variable, value in given.items():
        if variable.endswith("_FILE"):
            secret = tmp_path / Path(value).name
            secret.write_text(values[Path(value).name])
            value = str(secret)
        monkeypatch.setenv(variable, value)
    found = kind()  # type: ignore[call-arg]
    assert found.database_url.get_secret_value() == values["database_url"]
    assert found.token_key.get_secret_value() == SIGNING_KEY.strip()
    assert {f"TRUNKLINE_{name.upper()}_FILE" for name in values} <= set(given)


@pytest.mark.parametrize("path", UNITS, ids=relative)
def test_units_hand_over_every_secret(path: Path) -> None:
    read = unit(path)
    loaded = {each.partition(":")[0] for each in read["LoadCredential"]}
    named = dict(
        each.split("=", 1)
        for line in read["Environment"]
        for each in line.split()
        if "_FILE" in each
    )
    assert named == {f"TRUNKLINE_{name.upper()}_FILE": f"%d/{name}" for name in loaded}
    required = {name for name, field in ServeSettings.model_fields.items() if field.is_required()}
    assert loaded == required


def test_images_are_of_this_release() -> None:
    images = {
        match for path in YAML for match in re.findall(r"image: (trunkline:\S+)", path.read_text())
    }
    assert images == {f"trunkline:{__version__}"}


def test_probes_ask_for_services_that_exist() -> None:
    names = {descriptor.full_name for descriptor in app.SERVICES}
    (container,) = pod("serve")["containers"]
    assert container["readinessProbe"]["grpc"]["service"] in names
    assert "service" not in container["livenessProbe"]["grpc"]  # the process alone
    assert cluster()["health_checks"][0]["grpc_health_check"]["service_name"] in names
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == ports["grpc"]


# ---- times and limits ----


def test_the_supervisor_waits_for_its_processes() -> None:
    assert default("drain_wait_s") + default("drain_grace_s") + MARGIN_S <= DRAIN_TIMEOUT_S


@pytest.mark.parametrize("path", UNITS, ids=relative)
def test_units_wait_for_the_supervisor(path: Path) -> None:
    read = unit(path)
    assert int(read["TimeoutStopSec"][0]) >= DRAIN_TIMEOUT_S + MARGIN_S
    assert read["KillMode"] == ["mixed"]  # or every process drains at once, unasked
    assert read["RestartPreventExitStatus"] == [str(EXIT_CONFIG)]
    assert read["LimitNOFILE"] == [str(FILES_GOOD)]
    assert read["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@pytest.mark.parametrize("component", ["serve", "worker"])
def test_pods_wait_for_the_supervisor(component: str) -> None:
    spec = pod(component)
    (container,) = spec["containers"]
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert spec["terminationGracePeriodSeconds"] >= stop + DRAIN_TIMEOUT_S + MARGIN_S


def test_pods_drain_as_the_defaults_say() -> None:
    (container,) = pod("serve")["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert float(given["TRUNKLINE_DRAIN_WAIT_S"]) == default("drain_wait_s")
    assert float(given["TRUNKLINE_DRAIN_GRACE_S"]) == default("drain_grace_s")


def cluster() -> Any:
    (found,) = documents("envoy/envoy.yaml")[0]["static_resources"]["clusters"]
    return found


def seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    assert match, text
    return float(match[1])


def test_a_draining_server_is_left_before_it_closes() -> None:
    (check,) = cluster()["health_checks"]
    noticed_s = check["unhealthy_threshold"] * (
        seconds(check["interval"]) + seconds(check["interval_jitter"]) + seconds(check["timeout"])
    )
    assert noticed_s < default("drain_wait_s")
    probe = pod("serve")["containers"][0]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < default("drain_wait_s")


def test_envoy_keeps_the_servers_limits() -> None:
    options = cluster()["typed_extension_protocol_options"]
    (protocol,) = options.values()
    http2 = protocol["explicit_http_config"]["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == STREAMS_PER_CONNECTION_MAX
    pings_ms = seconds(http2["connection_keepalive"]["interval"]) * 1000
    assert pings_ms >= PING_INTERVAL_MIN_MS


def test_keda_counts_what_a_pod_works_on() -> None:
    scaled = one("kubernetes/optional-keda.yaml", "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    (container,) = pod("worker")["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    slots = default("concurrency", WorkerSettings) * int(given["TRUNKLINE_PROCESSES"])
    assert int(trigger["metadata"]["targetQueryValue"]) == slots


async def test_keda_sees_the_queue_as_a_member_of_the_worker_s_role(database_url: str) -> None:
    scaled = one("kubernetes/optional-keda.yaml", "ScaledObject")["spec"]
    query = scaled["triggers"][0]["metadata"]["query"]
    owner = await asyncpg.connect(database_url)
    try:
        await owner.execute(
            "INSERT INTO jobs (org_id, job_id, kind) VALUES"
            " ('00000000-0000-0000-0000-000000000000', gen_random_uuid(), 'test')"
        )
        counts = {}
        for role in ("trunkline_worker", "trunkline_app"):
            async with owner.transaction():
                await owner.execute(f"SET LOCAL ROLE {role}")
                counts[role] = await owner.fetchval(query)
    finally:
        await owner.close()
    assert counts == {"trunkline_worker": 1, "trunkline_app": 0}


# ---- metrics ----


def rules() -> Iterator[Any]:
    for group in documents("prometheus/alerts.yaml")[0]["groups"]:
        yield from group["rules"]


def samples(registries: list[Registry]) -> set[str]:
    """The names under which Prometheus gets what these processes registered."""
    found = set()
    for registry in registries:
        shadow = Registry()  # every instrument, those that have nothing to tell yet included
        for each in registry._instruments.values():
            shadow.add(each.kind, each.name, lambda: 1.0, each.unit, each.description)
        shadow.rpc("any").record(0, 0.001)
        exposed = CollectorRegistry(auto_describe=False)
        exposed.register(PrometheusView(shadow))
        text = generate_latest(exposed).decode()
        found |= set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    return found


async def test_alerts_ask_for_metrics_that_exist(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Telemetry] = []
    make = app.telemetry

    def remembered(kind: str, settings: ServeSettings | WorkerSettings, index: int) -> Telemetry:
        seen.append(make(kind, settings, index))
        return seen[-1]

    monkeypatch.setattr(app, "telemetry", remembered)
    serve = settings(database_url, redis_url)
    server = await app.Server.start(serve)
    try:
        common = {name: getattr(serve, name) for name in CommonSettings.model_fields}
        common |= {"statement_timeout_s": 60.0, "processes": 1}
        worker = await app.Worker.start(WorkerSettings(**common))
        worker.runner.stop()
        await worker.run()
    finally:
        await server.stop()
    exposed = samples([telemetry.registry for telemetry in seen])
    asked = {name for rule in rules() for name in _METRIC.findall(rule["expr"])}
    labels = {"rpc_method", "rpc_response_status_code"}
    assert len(asked) > 15
    assert asked - labels - exposed == set()


def test_alerts_ask_for_methods_and_jobs_that_exist() -> None:
    text = (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    methods = {
        f"/{service.full_name}/{method.name}"
        for service in app.SERVICES
        for method in service.methods
    }
    assert set(re.findall(r'rpc_method="([^"]+)"', text)) <= methods
    kinds = set(re.findall(r'[{,]kind="([^"]+)"', text))
    assert kinds == {SEAL_AUDIT}


def test_alerts_say_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in {"page", "ticket"}


# ---- back-up ----


def drill(
    source: str, target: str, *, first: Path | None = None
) -> subprocess.CompletedProcess[str]:
    folders = [str(folder) for folder in (first, find_postgres().folder) if folder]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    return subprocess.run(
        [DEPLOY / "restore-drill.sh", source, target],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


async def test_the_restore_drill(database_url: str, empty_database_url: str) -> None:
    await make_org(database_url, "drilled")
    done = drill(database_url, empty_database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tables agree" in done.stdout
    again = drill(database_url, empty_database_url)
    assert again.returncode == 64  # a target with something in it is never touched
    restored = await asyncpg.connect(empty_database_url)
    try:
        assert await restored.fetchval("SELECT slug FROM orgs") == "drilled"
    finally:
        await restored.close()
    assert await verify(empty_database_url) == []


async def test_the_restore_drill_sees_a_difference(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    await make_org(database_url, "drilled")
    programs = find_postgres()
    # A restore that gets one character of one row wrong.
    careless = tmp_path / "pg_restore"
    careless.write_text(
        f'#!/bin/sh\n"{programs.path("pg_restore")}" "$@" &&\n'
        f'"{programs.path("psql")}" -Xq -d "{empty_database_url}"'
        """ -c "UPDATE orgs SET display_name = display_name || 'x'"\n"""
    )
    careless.chmod(0o755)
    done = drill(database_url, empty_database_url, first=tmp_path)
    assert done.returncode == 1
    assert "differs" in done.stderr and "orgs" in done.stderr
