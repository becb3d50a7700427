"""The house rules that a machine can hold: import floors, sizes, the trusted base, `__all__`, a light base import."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "cloister"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
TRUSTED = ("vector", "seal", "privacy", "round", "site")
TRUSTED_LINES = 6_000  # of code: what an auditor of a site has to read
UNTRUSTED = {  # in rooms of the trusted base, but no site's safety rests on it
    "seal/server.py": "the coordinator's side of a round: a site believes none of it",
    "seal/audit.py": "recomputes sums from what was revealed",
    "seal/selftest.py": "runs both sides against each other",
    "seal/words.py": "a list of words",
    "seal/together.py": "masks all sites of a simulation at once; no site imports it",
    "round/program.py": "asks; sites answer by layout and policy, whatever is asked",
    "round/loop.py": "the coordinator's and the simulator's",
    "round/evidence.py": "an auditor's",
    "round/ledgers.py": "an auditor's",
    "round/checks.py": "an auditor's",
    "round/replay.py": "an auditor's",
    "round/verdict.py": "an auditor's",
    "round/verify.py": "an auditor's",
    "vector/total.py": "opens sums: at the coordinator, at an auditor; no site does",
    "site/budget.py": "shows people what the ledger says, and charges nothing",
    "privacy/statement.py": "the sentence in an analyst's results",
}
PACKAGE_LINES = 26_000  # engines, attacks, privacy and the steward's tools ship with it
FILE_LINES = 600
FUNCTION_LINES = 80


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def code_lines(path: Path) -> int:
    """Lines with code on them; blank ones, comments and docstrings do not count against a well-told file."""
    text = path.read_text()
    told = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            told |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    numbered = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and at not in told for at, line in numbered)


def python_files() -> list[Path]:
    return [
        path
        for folder in ("src", "tests", "benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def test_thirteen_rooms_and_no_other() -> None:
    floors = "vector seal privacy algorithms job wire round learn coordinator site simulation attack cli"
    assert sorted(floors.split()) == ROOMS


def test_import_rules_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long() -> None:
    long = {str(path.relative_to(ROOT)): lines(path) for path in python_files() if lines(path) >= FILE_LINES}
    assert not long


def test_no_function_is_too_long() -> None:
    long = {}
    for path in (path for path in python_files() if "migrations" not in path.parts):  # those are frozen records
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length >= FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert not long


def test_the_trusted_base_stays_small() -> None:
    files = [path for room in TRUSTED for path in (SOURCE / room).rglob("*.py")]
    counted = {str(path.relative_to(SOURCE)): code_lines(path) for path in files}
    assert not UNTRUSTED.keys() - counted.keys(), "renamed or gone"
    assert sum(count for name, count in counted.items() if name not in UNTRUSTED) < TRUSTED_LINES, counted


def test_the_package_stays_small() -> None:
    assert sum(code_lines(path) for path in SOURCE.rglob("*.py")) < PACKAGE_LINES


@pytest.mark.parametrize("name", ["cloister", *(f"cloister.{room}" for room in ROOMS)])
def test_every_public_name_is_sorted_and_exists(name: str) -> None:
    module = importlib.import_module(name)
    names = list(module.__all__)
    assert names == sorted(names), "sort __all__"
    missing = [entry for entry in names if not hasattr(module, entry)]
    assert not missing


@pytest.mark.parametrize(
    "module", ["cloister", "cloister.cli", "cloister.coordinator", "cloister.site", "cloister.round"]
)
def test_no_torch_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch imported' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
