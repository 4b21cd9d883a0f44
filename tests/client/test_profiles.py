"""Profiles and the environment over them."""

import stat
from pathlib import Path

import pytest

from trunkline import Client, ConfigurationError
from trunkline._shared.connection import target_of
from trunkline._shared.credentials import Tokens
from trunkline._shared.profiles import Profile, Profiles, ProfileTokens, resolve


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    made = Profiles(tmp_path / "trunkline")
    made.write("prod", {"prod": Profile("prod", "db.example:1", ca_file="/ca", org="acme")})
    made.write_secrets("prod", {"api_key": "secret"})
    return made


def test_nothing_at_all_is_the_local_server(home: dict[str, str]) -> None:
    found = resolve(None, home)
    assert (found.address, found.api_key, found.tokens) == ("localhost:7443", None, None)


def test_the_environment_is_over_the_profile(home: dict[str, str], profiles: Profiles) -> None:
    assert resolve(None, home).address == "db.example:1"
    assert resolve(None, home).api_key == "secret"
    assert resolve(None, home | {"TRUNKLINE_API_KEY": "other"}).api_key == "other"
    assert resolve(None, home | {"TRUNKLINE_TLS": "off"}).tls is False


def test_a_profile_s_secret_goes_to_no_other_server(
    home: dict[str, str], profiles: Profiles
) -> None:
    found = resolve(None, home | {"TRUNKLINE_ADDRESS": "elsewhere:1"})
    assert (found.address, found.api_key) == ("elsewhere:1", None)


def test_secrets_are_for_their_owner_only(profiles: Profiles, home: dict[str, str]) -> None:
    assert stat.S_IMODE(profiles.secrets_path.stat().st_mode) == 0o600
    assert "secret" not in profiles.config_path.read_text()
    profiles.secrets_path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="read by others") as caught:
        resolve(None, home)
    assert "chmod 600" in caught.value.remedy


def test_what_is_wrong_is_named(home: dict[str, str], profiles: Profiles) -> None:
    with pytest.raises(ConfigurationError, match="no profile 'staging'"):
        resolve("staging", home)
    with pytest.raises(ConfigurationError, match="TRUNKLINE_TLS=maybe"):
        resolve(None, home | {"TRUNKLINE_TLS": "maybe"})
    profiles.config_path.write_text("[profiles.prod]\nadress = 'x'\n")
    with pytest.raises(ConfigurationError, match="unknown 'adress'"):
        resolve(None, home)
    profiles.config_path.write_text("[profiles")
    with pytest.raises(ConfigurationError, match=r"config\.toml cannot be read"):
        resolve(None, home)


def test_two_processes_do_not_renew_at_once(profiles: Profiles) -> None:
    one, other = ProfileTokens(profiles, "prod"), ProfileTokens(profiles, "prod")
    assert one.try_lock()
    assert not other.try_lock()
    one.save(Tokens("a", "r", 1.0, 2.0))
    one.unlock()
    assert other.try_lock()
    assert other.load() == Tokens("a", "r", 1.0, 2.0)
    other.unlock()


def test_from_env(
    home: dict[str, str], profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (home | {"TRUNKLINE_TLS": "off"}).items():
        monkeypatch.setenv(name, value)
    with Client.from_env() as client:
        assert client.address == "db.example:1"


@pytest.mark.parametrize(
    ("address", "tls"),
    [
        ("localhost", False),
        ("127.0.0.1:1", False),
        ("[::1]:1", False),
        ("example.com", True),
        ("10.0.0.1:1", True),
        ("http://example.com", False),
        ("https://localhost:1", True),
    ],
)
def test_a_key_crosses_no_network_in_the_clear_by_accident(address: str, tls: bool) -> None:
    assert target_of(address, None, None).tls is tls
    assert target_of(address, not tls, None).tls is not tls
