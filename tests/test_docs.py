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


def code_blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    pieces = re.split(r"^```(.*)\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return [code for opening, code in zip(pieces[1::4], pieces[2::4], strict=True) if opening == language]


def test_commands_in_the_readme_exist_with_their_options() -> None:
    """Every `cloister ...` line of a code block names a command and options that it has."""
    from cloister.cli.reference import _commands, _root

    known = {
        path: {name for param in command.params for name in param.opts}
        for path, command in _commands("cloister", _root())
    }
    blocks = code_blocks("")
    lines = [
        line.split("#")[0] for block in blocks for line in block.splitlines() if re.search(r"\bcloister \w", line)
    ]
    assert len(lines) >= 10
    for line in lines:
        words = line[line.index("cloister ") :].split()
        path = next((" ".join(words[:length]) for length in (3, 2) if " ".join(words[:length]) in known), None)
        if words[1] == "&&":
            continue  # the clone's folder
        assert path, line
        assert {word for word in words if word.startswith("--")} <= known[path], line


def test_the_readme_s_job_is_the_example() -> None:
    from cloister import load_job

    blocks = code_blocks("python")
    space: dict[str, object] = {}
    exec(blocks[0], space)
    assert space["job"].digest == load_job(ROOT / "examples/breast_cancer.py").digest  # type: ignore[attr-defined]
