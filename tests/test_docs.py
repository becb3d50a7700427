"""Documentation under test: the generated is fresh, lists are complete, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def test_the_command_line_reference_is_fresh() -> None:
    from cloister.cli.reference import reference

    assert (ROOT / "docs/cli.md").read_text() == reference(), "run: make docs"


def test_the_data_model_tells_of_every_table() -> None:
    from cloister.coordinator.tables import metadata

    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/data-model.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(metadata.tables)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_tests_and_files_named_in_the_threat_model_exist() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    missing = [path for path in re.findall(r"`((?:tests|src)/[^`]+)`", text) if not (ROOT / path).exists()]
    assert not missing


def test_the_tour_names_files_that_exist() -> None:
    text = (ROOT / "docs/tour.md").read_text()
    missing = [path for path in re.findall(r"`(src/[^`]+)`", text) if not (ROOT / path).exists()]
    assert not missing


def test_every_decision_is_listed() -> None:
    listed = re.findall(r"\((\d{4}-[^)]+)\)", (ROOT / "docs/decisions/README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
