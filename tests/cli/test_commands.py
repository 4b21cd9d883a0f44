"""Commands against the whole server: output, exit codes, errors on one line."""

import csv
import io
import json
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.running import Org, Running
from trunkline_server.rpc.caller import Role

PASSWORD = "correct horse battery 7"


@pytest.fixture
def admin(cli: Cli, real: Running, acme: Org) -> Cli:
    cli.environment["TRUNKLINE_ADDRESS"] = real.address
    cli.environment["TRUNKLINE_API_KEY"] = acme.keys[Role.ADMIN]
    return cli


def test_whoami_in_each_format(admin: Cli, acme: Org) -> None:
    table = admin("whoami")
    assert table.returncode == 0
    assert f"organisation  {acme.slug}" in table.stdout
    assert "role          ADMIN" in table.stdout
    assert json.loads(admin("whoami", "-o", "json").stdout)["org_slug"] == acme.slug
    (row,) = csv.DictReader(io.StringIO(admin("whoami", "-o", "csv").stdout))
    assert row["role"] == "ADMIN"


def test_keys_are_made_listed_and_revoked(admin: Cli, cli: Cli) -> None:
    made = admin("keys", "create", "=nightly", "--role", "registrar")
    secret = made.stdout.strip()
    assert made.returncode == 0
    assert len(secret) > 40
    assert secret not in made.stderr
    listed = [json.loads(line) for line in admin("keys", "list", "-o", "json").stdout.splitlines()]
    (key,) = [key for key in listed if key["display_name"] == "=nightly"]
    # A name somebody chose is no formula in a spreadsheet.
    assert "'=nightly" in admin("keys", "list", "-o", "csv").stdout
    assert "=nightly" in admin("keys", "list").stdout
    assert admin("keys", "revoke", key["key_id"]).returncode == 0
    cli.environment["TRUNKLINE_API_KEY"] = secret
    refused = cli("whoami")
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1


def test_login_keeps_tokens_for_their_owner(admin: Cli, real: Running, acme: Org) -> None:
    made = admin("users", "create", "a@acme.test", "Ada", "--role", "admin")
    password = made.stdout.strip()
    del admin.environment["TRUNKLINE_API_KEY"], admin.environment["TRUNKLINE_ADDRESS"]
    missing = admin("--address", real.address, "whoami")
    assert missing.returncode == 3
    arguments = ("login", "--org", acme.slug, "--email", "a@acme.test", "--stdin")
    wrong = admin("--address", real.address, *arguments, stdin="wrong password\n")
    assert wrong.returncode == 3
    assert "LOGIN_FAILED" in wrong.stderr
    done = admin("--address", real.address, *arguments, stdin=password + "\n")
    assert done.stdout == f"Logged in to {acme.slug} at {real.address} as Ada (admin).\n"
    folder = Path(admin.environment["XDG_CONFIG_HOME"]) / "trunkline"
    assert stat.S_IMODE((folder / "credentials.json").stat().st_mode) == 0o600
    assert password not in (folder / "credentials.json").read_text()
    assert "Ada" in admin("whoami").stdout
    assert admin("context", "list").stdout.startswith(f"* default  {real.address}  acme/a@acme")
    assert admin("logout").returncode == 0
    assert admin("whoami").returncode == 3


def test_contexts(cli: Cli) -> None:
    assert cli("context", "set", "prod", "--server", "https://db.example:1").returncode == 0
    assert cli("context", "set", "dev", "--server", "localhost:1", "--no-tls").returncode == 0
    assert cli("context", "use", "dev").returncode == 0
    expected = "* dev  localhost:1\n  prod  https://db.example:1\n"
    assert cli("context", "list").stdout == expected
    missing = cli("context", "use", "staging")
    assert missing.returncode == 2
    assert missing.stderr == (
        "trunkline: There is no profile 'staging'. See `trunkline context list`.\n"
    )


def test_errors_are_one_line_with_the_remedy(admin: Cli, acme: Org, unused_tcp_port: int) -> None:
    gone = admin("--address", f"localhost:{unused_tcp_port}", "whoami")
    assert (gone.returncode, gone.stdout) == (6, "")
    assert gone.stderr == (
        f"trunkline: Nothing listens at localhost:{unused_tcp_port}. "
        "Check host and port, and that the server runs: trunklined serve.\n"
    )
    missing = admin("keys", "revoke", "0197a5c6-7b1e-7d3c-9b1a-3f5e8c2d4a60")
    assert missing.returncode == 4
    assert missing.stderr.startswith(
        "trunkline: There is no such API key. Check the id with ListApiKeys. [API_KEY_NOT_FOUND "
    )
    admin.environment["TRUNKLINE_API_KEY"] = acme.keys[Role.AGENT]
    denied = admin("keys", "list")
    assert denied.returncode == 3
    assert "ROLE_NOT_ALLOWED" in denied.stderr
    assert admin("keys", "list", "--what").returncode == 2


def test_health(admin: Cli) -> None:
    found = admin("health")
    assert (found.returncode, found.stdout[:8]) == (0, "SERVING ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli: Cli, shell: str) -> None:
    found = cli("completion", shell)
    assert found.returncode == 0
    assert "_TRUNKLINE_COMPLETE" in found.stdout


def test_a_reader_that_leaves_is_no_error(admin: Cli) -> None:
    process = subprocess.Popen(
        admin.command("keys", "list", "-o", "json"),
        env=admin.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
