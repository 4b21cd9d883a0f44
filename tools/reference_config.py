"""Render docs/reference/config.md from config.py (`python -m tools.reference_config`)."""

import argparse
import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from trunkline_server.config import (
    CONFIG_VARIABLE,
    CommonSettings,
    ServeSettings,
    WorkerSettings,
    variables,
)

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "config.md"
_HEAD = f"""<!-- Made from config.py by tools/reference_config.py. -->

# Settings

Each setting comes from the first of these that has it: the command line, the environment variable
below, the file that `<VARIABLE>_FILE` names (for secrets), the TOML file that `{CONFIG_VARIABLE}`
names (by the setting's name), the default. `trunklined config show --origin` prints the values in
force and where each came from.
"""


def page() -> str:
    sections = [
        _HEAD,
        _section("Common to `serve` and `worker`", CommonSettings, {}),
        _section("`trunklined serve`", ServeSettings, CommonSettings.model_fields),
        _section("`trunklined worker`", WorkerSettings, CommonSettings.model_fields),
    ]
    return "\n".join(sections)


def _section(title: str, kind: type[CommonSettings], known: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{name}` | {_variables(field, name)} | {_type(field)} | {_default(field)} |"
        f" {field.description} |"
        for name, field in kind.model_fields.items()
        if name not in known or _default(known[name]) != _default(field)
    ]
    head = "| Setting | Variable | Type | Default | Meaning |\n|---|---|---|---|---|"
    return f"## {title}\n\n{head}\n" + "\n".join(rows) + "\n"


def _variables(field: FieldInfo, name: str) -> str:
    return " or ".join(f"`{variable}`" for variable in variables(field, name))


def _type(field: FieldInfo) -> str:
    kind = field.annotation
    if kind is SecretStr or SecretStr in getattr(kind, "__args__", ()):
        return "secret"
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    for noise in ("typing.", "pathlib._local.", "pathlib.", " | None"):
        text = text.replace(noise, "")
    return "`" + text.replace("|", "\\|") + "`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if field.default in (None, ()) else f"`{field.default}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not fresh")
    if parser.parse_args().check:
        if not TARGET.exists() or TARGET.read_text() != page():
            print(f"not fresh: docs/reference/{TARGET.name}", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
