import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import contract, load, openloop, sampler
from bench.process import python_server

_REPORT = """
finished in 450.12ms, 13329.40 req/s, 2.93MB/s
requests: 6000 total, 6000 started, 6000 done, 6000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 6000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.32MB (1382114) total, 60.16KB (61600) headers (space savings 93.97%), 644.53KB ({}) data
"""


def test_h2load_report_is_read() -> None:
    call = contract.echo_call()
    outcome = load._read_h2load(_REPORT.format(6000 * (call.reply_bytes + 5)), call)
    assert outcome == load.Outcome(6000, 0.45012)


def test_refused_calls_are_not_counted_as_served() -> None:
    # A refusal has HTTP status 200 and a status trailer, which h2load does not read.
    with pytest.raises(load.LoadFailed, match="refused"):
        load._read_h2load(_REPORT.format(5 * 110), contract.echo_call())


def test_without_h2load_client_processes_do_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with python_server("bench.servers.bare", "registered", "1") as server:
        outcome = load.run(server.address, contract.echo_call(), calls=300)
    assert outcome.calls == 300
    assert outcome.seconds > 0


def test_open_loop_reports_by_outcome_and_keeps_to_its_schedule() -> None:
    with python_server("bench.servers.bare", "registered", "1") as server:
        given = {"address": server.address, "request": contract.echo_call().request.hex()}
        arrivals = openloop.Arrivals(per_s=100, seconds=0.5, processes=2, random=False)
        served = openloop.run("bench.targets:unary", {**given, "path": contract.path()}, arrivals)
        refused = openloop.run("bench.targets:unary", {**given, "path": "/no/such"}, arrivals)
    assert served.counts == {"ok": 50}
    assert refused.counts == {"UNIMPLEMENTED": 50}
    assert served.seconds >= 0.48


def test_latency_counts_from_the_scheduled_time() -> None:
    arrivals = openloop.Arrivals(per_s=50, seconds=0.4, random=False)
    outcomes = openloop.run("tests.bench.targets:blocking", {"seconds": 0.05}, arrivals)
    # Each call blocks the driver for 50 ms and 20 are due in 0.4 s: the last are late by 0.6 s.
    assert outcomes.of("ok").quantile(1.0) > 0.4
    assert not outcomes.driver_kept_up


def test_cpu_of_children_counts_while_they_live_and_after() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); input()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as child:
        until = time.monotonic() + 20
        while sampler.cpu_s([child.pid]) < 0.2 and time.monotonic() < until:
            time.sleep(0.02)
        used = sampler.cpu_s([child.pid])
        assert child.stdin is not None
        child.stdin.close()
    assert 0.2 <= used < 2


def test_peak_memory_is_seen() -> None:
    with sampler.Sampler(os.getpid()) as sampled:
        ballast = bytearray(64 << 20)
        ballast[::4096] = b"x" * len(ballast[::4096])
        time.sleep(3 * sampler.RSS_EVERY_S)
    assert sampled.peak_rss_mb - sampled.first_rss_mb > 48


def test_descriptors_are_counted(tmp_path: Path) -> None:
    before = sampler.descriptors([os.getpid()])
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"):
        assert sampler.descriptors([os.getpid()]) == before + 2
