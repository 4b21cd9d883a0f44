"""Settings: one typed class per command, from the environment, files and a TOML file.

Secrets may come from a file named by `<VARIABLE>_FILE`; they are printed as stars.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "TRUNKLINE_"
CONFIG_VARIABLE = "TRUNKLINE_CONFIG"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_REDACTED = "**********"
_SECRET = re.compile(r"([0-9a-f]{2}){32,}", re.IGNORECASE)


class FromSecretFiles(PydanticBaseSettingsSource):
    """`TRUNKLINE_X_FILE=/run/secrets/x` gives the field `x` the file's content."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        for variable in variables(field, field_name):
            path = os.environ.get(f"{variable}_FILE")
            if path:
                return Path(path).read_text().strip(), field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, _ = self.get_field_value(field, name)
            if value is not None:
                found[key] = value
        return found


class CommonSettings(BaseSettings):
    """What every command needs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, populate_by_name=True
    )

    environment: Literal["dev", "production"] = Field(
        "production", description="`dev` permits generated secrets and switches reflection on."
    )
    database_url: SecretStr = Field(
        description="PostgreSQL 17 or newer, as a URL.",
        validation_alias=AliasChoices("TRUNKLINE_DATABASE_URL", "DATABASE_URL"),
    )
    redis_url: SecretStr = Field(
        description="Valkey or Redis, as a URL. Nothing durable is kept there.",
        validation_alias=AliasChoices("TRUNKLINE_REDIS_URL", "REDIS_URL"),
    )
    database_role: str | None = Field(
        None,
        description="Role to assume after connecting; empty when the login role is the one to "
        "use. Default: trunkline_app for `serve`, trunkline_worker for `worker`.",
    )
    statement_timeout_s: float = Field(5.0, gt=0, description="Longest statement.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )
    otlp_endpoint: str | None = Field(
        None, description="Where traces and metrics go (OTLP over gRPC); nowhere when empty."
    )
    trace_ratio: float = Field(0.01, ge=0, le=1, description="Share of calls that are traced.")
    metrics_address: str = Field(
        "127.0.0.1", description="Address of the Prometheus endpoint of each process."
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the first process's Prometheus endpoint, the next ones follow; "
        "0 takes a free one, empty offers none.",
    )
    processes: int | None = Field(None, ge=1, le=256, description="Processes; default: cores.")
    key_pepper: SecretStr = Field(
        description="Secret that API keys and refresh tokens are digested with (32 bytes, hex)."
    )
    key_pepper_previous: SecretStr | None = Field(
        None, description="The pepper before, still accepted while it rotates."
    )
    token_key: SecretStr = Field(description="Ed25519 private key that signs access tokens (PEM).")
    token_key_previous: SecretStr | None = Field(
        None, description="The signing key before, still accepted while it rotates (PEM)."
    )
    page_secret: SecretStr = Field(
        description="Secret that page tokens are signed with (32 bytes, hex)."
    )
    page_secret_previous: SecretStr | None = Field(
        None, description="The page secret before, still accepted while it rotates."
    )

    @field_validator("key_pepper", "key_pepper_previous", "page_secret", "page_secret_previous")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _SECRET.fullmatch(value.get_secret_value()):
            raise ValueError("a secret is at least 32 random bytes as hexadecimal digits")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = [init_settings, env_settings, FromSecretFiles(settings_cls)]
        if path := os.environ.get(CONFIG_VARIABLE):
            sources.append(TomlConfigSettingsSource(settings_cls, Path(path)))
        return tuple(sources)


class ServeSettings(CommonSettings):
    """`trunklined serve`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(7443, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    pool_size: int = Field(8, ge=1, le=500, description="Database connections of a process.")
    readers: int = Field(3, ge=1, le=50, description="Kept connections for hot reads, a process.")
    reflection: bool | None = Field(
        None, description="gRPC server reflection; default: on in dev, off in production."
    )
    channelz: bool = Field(False, description="gRPC channelz, on the loopback address only.")
    tls_cert_file: Path | None = Field(None, description="Certificate chain (PEM); read again.")
    tls_key_file: Path | None = Field(None, description="Private key (PEM); read again.")
    tls_client_ca_file: Path | None = Field(
        None, description="Authority of client certificates (PEM); set: they are required."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses whose `x-forwarded-for` is believed, for lock-out."
    )
    handshake_timeout_s: float = Field(
        10.0, gt=0, description="What a new connection gets to say hello."
    )
    connection_idle_s: float = Field(
        300.0, gt=0, description="A connection without calls is closed after this."
    )
    connection_age_s: float = Field(
        1800.0,
        gt=0,
        description="A connection is asked to go after this, so that clients spread again.",
    )
    drain_wait_s: float = Field(
        5.0, ge=0, description="From NOT_SERVING to closing, for balancers to notice."
    )
    drain_grace_s: float = Field(25.0, ge=0, description="What running calls get to finish.")
    password_threads: int | None = Field(
        None, ge=1, description="Threads that hash passwords; default: cores."
    )

    upload_window_bytes: int = Field(
        8 << 20, ge=1, description="How far an upload may be ahead of what is stored."
    )
    upload_process_window_bytes: int = Field(
        96 << 20, ge=1, description="The same for all uploads of a process together."
    )
    upload_org_budget_bytes: int = Field(
        2 << 30, ge=1, description="Stored and unprocessed bytes of an organisation before a pause."
    )
    upload_global_budget_bytes: int = Field(
        16 << 30, ge=1, description="The same of all organisations together."
    )
    upload_stream_age_s: float = Field(
        45.0, gt=0, lt=60, description="An upload is asked to open another stream after this."
    )

    @model_validator(mode="after")
    def _channelz_stays_here(self) -> "ServeSettings":
        if self.channelz and self.host not in LOOPBACK:
            raise ValueError("channelz tells about every connection: only with a loopback host")
        return self

    @model_validator(mode="after")
    def _tls_in_pairs(self) -> "ServeSettings":
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file come together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self


class WorkerSettings(CommonSettings):
    """`trunklined worker`."""

    statement_timeout_s: float = Field(60.0, gt=0, description="Longest statement.")
    pool_size: int = Field(10, ge=4, le=100, description="Database connections of a process.")
    import_lanes: int = Field(
        2, ge=1, le=16, description="Connections that merge batches of one import side by side."
    )
    import_batch_rows: int = Field(
        10_000, ge=1, le=100_000, description="Rows that an import merges in one transaction."
    )
    concurrency: int = Field(2, ge=1, le=64, description="Jobs that a process runs at once.")
    lease_s: float = Field(15.0, gt=0, description="A job without a heartbeat is taken over.")
    poll_s: float = Field(1.0, gt=0, description="How often to look for work without a hint.")


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting as it is shown: its value without secrets, and where it came from."""

    name: str
    value: str
    origin: str
    description: str


def shown(settings: CommonSettings, given: Mapping[str, object] | None = None) -> list[Shown]:
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        text = _REDACTED if isinstance(value, SecretStr) else str(value)
        origin = _origin(field, name, given or {})
        rows.append(Shown(name, text, origin, field.description or ""))
    return rows


def variables(field: FieldInfo, name: str) -> list[str]:
    """The environment variables that a field is read from, first match first."""
    if isinstance(field.validation_alias, AliasChoices):
        return [choice for choice in field.validation_alias.choices if isinstance(choice, str)]
    return [f"{PREFIX}{name.upper()}"]


def _origin(field: FieldInfo, name: str, given: Mapping[str, object]) -> str:
    if name in given:
        return "command line"
    for variable in variables(field, name):
        if variable in os.environ:
            return f"environment {variable}"
        if f"{variable}_FILE" in os.environ:
            return f"file {os.environ[f'{variable}_FILE']}"
    path = os.environ.get(CONFIG_VARIABLE)
    if path and f"\n{name}" in "\n" + Path(path).read_text():
        return f"file {path}"
    return "default"
