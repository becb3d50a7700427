"""docs/protocol.md says what the code does: diagrams, labels, errors and limits."""

from __future__ import annotations

import re
from pathlib import Path

from cloister.seal import labels
from cloister.seal.messages import KINDS
from cloister.seal.state import COORDINATOR, SITE, diagram
from cloister.vector import errors
from cloister.vector.errors import PeerError, error_names
from cloister.wire import api

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()


def test_the_diagrams_are_those_of_the_tables() -> None:
    drawn = re.findall(r"```mermaid\n(.*?)\n```", PAGE, re.DOTALL)
    assert drawn == [diagram(SITE), diagram(COORDINATOR)]


def test_every_message_has_its_row() -> None:
    rows = re.findall(r"^\| \d+ \| `([a-z-]+)` \|", PAGE, re.MULTILINE)
    assert rows == [label.rpartition("/")[2] for label in (*KINDS, labels.RECEIPT)]


def test_every_label_of_a_round_is_told() -> None:
    used = [getattr(labels, name) for name in ("CTX", "COMMIT", "U1", "U2", "U3", "SURVIVOR_NAMES", "SHARE_AAD")]
    used += [labels.MASK_KEY, labels.CHANNEL, labels.SELF, labels.PAIR, labels.UPLOAD, labels.ROSTER]
    used += [labels.ENVELOPE, labels.ENROLL, labels.RECEIPT, labels.PARTITION, labels.PLACE, labels.AUDIT]
    missing = [label for label in used if f'"{label.removeprefix("cloister/v1/")}"' not in PAGE]
    assert not missing


def test_every_refusal_has_its_row() -> None:
    chapter = PAGE.partition("## Refusals")[2].partition("## What follows")[0]
    first, second = chapter.split("\n\nRefusals that are not")
    assert named_in(first) == {name for name in leaves() if issubclass(error_names()[name], PeerError)}
    assert named_in(second) == leaves() - named_in(first) | {"EnvironmentFailure"}
    assert all(cell.strip() for row in rows_of(first + second) for cell in row.strip("|").split("|"))


def rows_of(text: str) -> list[str]:
    return re.findall(r"^\| `[A-Z].*\|$", text, re.MULTILINE)


def named_in(text: str) -> set[str]:
    return {name for row in rows_of(text) for name in re.findall(r"`([A-Z]\w+)`", row.split("|")[1])}


def leaves() -> set[str]:
    """The errors of the tree that are raised under their own name."""
    tree = [kind for kind in error_names().values() if kind.__module__ == errors.__name__]
    return {kind.__name__ for kind in tree} - {base.__name__ for kind in tree for base in kind.__bases__}


def test_the_tree_in_the_module_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", str(errors.__doc__))
    assert sorted(drawn) == sorted(leaves() | {"LocalError", "EnvironmentFailure", "PeerError"})


def test_every_field_of_every_body_and_every_type_and_path_is_told() -> None:
    transport = PAGE.partition("## Transport")[2].partition("## Refusals")[0]
    kinds = [kind for kind in vars(api).values() if isinstance(kind, type) and issubclass(kind, api.Body)]
    names = {name for kind in kinds for name in kind.model_fields}
    names |= {*api.SITE_TYPES, *api.MAILBOX_TYPES}
    missing = {name for name in names if not re.search(rf"[`\"]{name}[`\"]", transport)}
    assert not missing
    paths = [value for name, value in vars(api).items() if name.isupper() and str(value).startswith("/v1/")]
    assert len(paths) >= 13
    assert not [path for path in paths if path not in transport and f"`/{path.rpartition('/')[2]}`" not in transport]
