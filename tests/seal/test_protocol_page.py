"""docs/protocol.md says what the code does: diagrams, labels, errors and limits."""

from __future__ import annotations

import re
from pathlib import Path

from cloister.seal import labels
from cloister.seal.messages import KINDS
from cloister.seal.state import COORDINATOR, SITE, diagram
from cloister.vector.errors import PeerError, error_names

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
    used += [labels.ENVELOPE, labels.ENROLL, labels.RECEIPT]
    missing = [label for label in used if f'"{label.removeprefix("cloister/v1/")}"' not in PAGE]
    assert not missing


def test_every_refusal_has_its_row() -> None:
    rows = set(re.findall(r"^\| `([A-Z]\w+)` \|", PAGE, re.MULTILINE))
    named = {name for name, kind in error_names().items() if issubclass(kind, PeerError) and kind is not PeerError}
    assert rows == named | {"ReusedSecret"}
