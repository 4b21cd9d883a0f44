"""Render docs/reference/content-workflow.md from the workflow's table.

`python -m tools.content_workflow` writes it; a test compares it with what the table says.
"""

from __future__ import annotations

from pathlib import Path

from trunkline_server.content.rules import WORKFLOW, Action, State, Step
from trunkline_server.rpc.caller import Role

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "content-workflow.md"
_HEAD = """\
<!-- Made from content/rules.py by tools/content_workflow.py. -->

# The workflow of articles

An article's state says where its newest revision stands. Whether there is a live text is another
matter: a draft can stand beside one. Each cell is the state after the action; an empty one is not
allowed, and the error names what is.

"""
_TAIL = """
- (T): trainers and administrators. (A): administrators. (clock): the worker, at the set time.
- (live): only where there is a live text, which is taken away.
- SUBMIT, APPROVE, REJECT, PUBLISH and SCHEDULE name the revision they are about; another one than
  the article's is refused.
- APPROVE of one's own revision is refused unless the organisation allows it.
- UNPUBLISH of a scheduled article calls the publication off and leaves a live text where it is.
- Only an approved revision ever becomes live.
"""


def page() -> str:
    actions = list(Action)
    lines = ["| |" + "|".join(f" {state} " for state in State) + "|"]
    lines.append("|---" * (len(State) + 1) + "|")
    for action in actions:
        cells = [_cell(WORKFLOW.get((state, action))) for state in State]
        lines.append(f"| **{action}** |" + "|".join(f" {cell} " for cell in cells) + "|")
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _cell(step: Step | None) -> str:
    if step is None:
        return ""
    who = "clock" if not step.roles else "T" if Role.TRAINER in step.roles else "A"
    return f"{step.to} ({who}{', live' if step.only_with_live_text else ''})"


def main() -> None:
    TARGET.write_text(page())
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
