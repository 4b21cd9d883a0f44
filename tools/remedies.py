"""Write the client's table of remedies from the reasons' comments (`python -m tools.remedies`)."""

import argparse
import re
import sys

from tools import gen

SOURCE = gen.PROTOS / "trunkline" / "api" / "errors" / "v1" / "reason.proto"
TARGET = gen.STUBS / "trunkline" / "_shared" / "reasons.py"
_HEAD = '''"""What to do about each reason. Made from reason.proto by tools/remedies.py."""

# ruff: noqa: E501
from typing import Final

# fmt: off
REMEDIES: Final[dict[str, str]] = {
'''
_REASON = re.compile(r"((?:^ *//.*\n)+)^ *REASON_([A-Z0-9_]+) = \d+;", re.MULTILINE)
# Between what happened and what to do: each comment is "CODE: sentence. Sentence..."
_SENTENCE_END = re.compile(r"(?<=[a-zA-Z0-9)`])\. (?=[A-Z`])")


def remedy(comment: str) -> str:
    """The comment without its first sentence."""
    text = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
    parts = _SENTENCE_END.split(text.strip(), maxsplit=1)
    return parts[1] if len(parts) == 2 else ""


def render() -> str:
    found = _REASON.findall(SOURCE.read_text("utf-8"))
    lines = [
        '    "{}": "{}",\n'.format(name, remedy(comment).replace("\\", "\\\\").replace('"', '\\"'))
        for comment, name in found
        if name != "UNSPECIFIED"
    ]
    return _HEAD + "".join(lines) + "}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    if parser.parse_args().check:
        if TARGET.read_text("utf-8") == render():
            return 0
        print(f"{TARGET} is not current: run `python -m tools.remedies`", file=sys.stderr)
        return 1
    TARGET.write_text(render(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
