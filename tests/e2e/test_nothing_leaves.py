"""Every byte that a coordinator receives, and every byte that it keeps: nothing of a single site is in them.

What each site really said is computed again from its own table (training is deterministic), and looked for in all the
encodings that come to mind; the same search finds it at once where it is planted.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from cloister.job import load_job
from cloister.learn import Trainer, read_table
from cloister.round import contribute
from cloister.vector import Answer, FixedPoint, Query

pytestmark = pytest.mark.processes

SITES = {"kent": 13_457, "lyon": 14_369, "oslo": 15_577}  # row counts of five digits: none appears by chance
TELLING_BYTES = 3  # of 8 that are not zero, for an encoding to be looked for
ALPHA = 1e-6  # of each two-sided chi-square test
JOB = """
import cloister as cl

job = cl.Job(
    data=cl.Table("patients", target="ill"),
    prepare=[cl.Impute(), cl.OneHot(), cl.Standardize()],
    task=cl.Torch(cl.nets.MLP([16]), loss="bce", optimizer=cl.SGD(lr=0.1), epochs=1, batch_size=64),
    algorithm=cl.FedAvg(rounds=3),
)
"""


@dataclass
class Recorded:
    """requests: (head, body) of each, in order. said: site -> its true answers and contributions, round by round."""

    requests: list[tuple[bytes, bytes]]
    at_rest: bytes
    said: dict[str, list[tuple[Answer, npt.NDArray[np.uint32]]]]

    @property
    def everything(self) -> bytes:
        return b"\n".join(head + body for head, body in self.requests)

    def vectors(self) -> list[npt.NDArray[np.uint32]]:
        """The masked vectors in order of arrival; each is one part."""
        return [np.frombuffer(body, "<u4") for head, body in self.requests if head.startswith(b"PUT /v1/parts/")]


@pytest.fixture(scope="module")
def recorded(module_terminal: Any, patients: Any, free_port: int) -> Recorded:
    here = module_terminal("here")
    (here.folder / "job.py").write_text(JOB)
    here.run("coordinator", "init", "clinics", "--port", str(free_port))
    invited = here.json("coordinator", "invite", *SITES, "--analyst", "lee")
    codes = {entry["id"]: entry["code"] for entry in invited["invitations"]}
    program = [sys.executable, str(Path(__file__).with_name("recording_coordinator.py"))]
    serving = here.start("federation", "recording", program=program)
    here.wait_for(serving, "ready")
    for number, (site, rows) in enumerate(SITES.items()):
        patients(rows, number).to_csv(here.folder / f"{site}.csv", index=False)
        here.run("site", "join", codes[site], "--data", f"patients={site}.csv")
        here.start("site", "run", site)
    submitting = here.start("submit", "job.py", "--invitation", codes["lee"], "--wait")
    here.wait_for(submitting, "waiting for the operator")
    here.run("coordinator", "admit", "--yes")
    assert submitting.wait(120) == 0, here.said(submitting)
    here.close()
    kept = at_rest(here.folder / "federation")
    said = {site: list(what_it_said(here.folder, site)) for site in SITES}
    return Recorded(list(records((here.folder / "recording").read_bytes())), kept, said)


def at_rest(folder: Path) -> bytes:
    """All that the coordinator keeps, but for the opened sums: where only one site counted something, a sum's word is
    that site's, and that is what the sum says."""
    with sqlite3.connect(folder / "cloister.db") as store:
        sums = {name for (name,) in store.execute("SELECT total FROM round")}
    assert all((folder / "blobs" / name[:2] / name).is_file() for name in sums)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in sums]
    return b"".join(path.read_bytes() for path in files)


def records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        line = data.index(b"\n", at)
        head, body = map(int, data[at:line].split())
        yield data[line + 1 : line + 1 + head], data[line + 1 + head : line + 1 + head + body]
        at = line + 1 + head + body


def what_it_said(folder: Path, site: str) -> Iterator[tuple[Answer, npt.NDArray[np.uint32]]]:
    """From the site's own journal and table: the questions it was asked, and its true contributions."""
    trainer = Trainer(load_job(folder / "job.py"), read_table(folder / f"{site}.csv"), site)
    with sqlite3.connect(folder / site / "journal.db") as journal:
        entries = [json.loads(row[0]) for row in journal.execute("SELECT body FROM log ORDER BY number")]
    for name in [entry["facts"]["query"] for entry in entries if entry["kind"] == "asked"]:
        query = Query.from_bytes((folder / "federation" / "blobs" / name[:2] / name).read_bytes())
        answer = trainer.answer(query)
        yield answer, contribute(answer, query, FixedPoint(query.sealed_layout, len(SITES), 32))


def windows(data: bytes) -> npt.NDArray[np.uint64]:
    """Every 8 bytes that stand together, at every offset; sorted, each once."""
    return np.unique(
        np.concatenate([np.frombuffer(data[at : len(data) - (len(data) - at) % 8], "<u8") for at in range(8)])
    )


def pairs(values: npt.NDArray[Any]) -> list[bytes]:
    """Neighbouring 4-byte values."""
    return [left.tobytes() + right.tobytes() for left, right in pairwise(values)]


def encodings(answer: Answer, words: npt.NDArray[np.uint32]) -> Iterator[bytes]:
    """One site's answer in 8 bytes at a time: its floats, its integers, its encoded words, in both byte orders.

    Small counts and empty bins are left out: what they are encoded in also stands in headers and lengths.
    """
    candidates: list[bytes] = []
    for block in answer.values.values():
        flat = np.asarray(block).reshape(-1)
        candidates += [pair for dtype in ("<f4", ">f4") for pair in pairs(flat.astype(dtype))]
        candidates += [value.tobytes() for dtype in ("<f8", ">f8") for value in flat.astype(dtype)]
    candidates += [pair for dtype in ("<u4", ">u4") for pair in pairs(words.astype(dtype))]
    yield from (entry for entry in candidates if 8 - entry.count(0) >= TELLING_BYTES)
    for dtype in ("<i8", ">i8", "<f8", ">f8"):
        yield np.array(answer.rows, dtype).tobytes()


def texts(answer: Answer) -> Iterator[bytes]:
    """Numbers as people and JSON write them, where they are long enough not to appear by chance."""
    scalars = [float(value) for value in answer.values.values() if np.size(value) == 1]
    for value in [float(answer.rows), *scalars]:
        for written in (repr(value), f"{value:.6g}", str(round(value))):
            if len(written) >= 5:
                yield written.encode()


def found(data: bytes, said: list[tuple[Answer, npt.NDArray[np.uint32]]]) -> list[bytes]:
    """The encodings of what a site said that are in `data`."""
    wanted = b"".join(entry for answer, words in said for entry in encodings(answer, words))
    wanted_once = np.unique(np.frombuffer(wanted, "<u8"))
    seen = wanted_once[np.isin(wanted_once, windows(data))]
    spelled = {text for answer, _ in said for text in texts(answer) if stands_alone(text, data)}
    return [*(value.tobytes() for value in seen), *spelled]


def stands_alone(text: bytes, data: bytes) -> bool:
    """Whether a number is written there: five digits within the hex of a digest are chance, and mean nothing."""
    return re.search(rb"(?<![0-9A-Za-z.])" + re.escape(text) + rb"(?![0-9A-Za-z])", data) is not None


def test_the_recording_holds_what_was_sent(recorded: Recorded) -> None:
    rounds = 3 + 3 + 1  # preparation, training, evaluation
    assert len(recorded.vectors()) == rounds * len(SITES)
    assert [len(said) for said in recorded.said.values()] == [rounds] * len(SITES)
    heads = b"".join(head for head, _ in recorded.requests)
    for path in (b"/v1/enroll", b"/v1/poll", b"/v1/messages", b"/v1/fetch", b"/v1/jobs", b"/v1/rosters"):
        assert path in heads


def test_the_search_finds_what_is_planted(recorded: Recorded) -> None:
    some = recorded.everything[-100_000:]
    for said in recorded.said.values():
        for answer, words in said:
            one = [(answer, words)]
            assert not found(some, one)
            assert found(some + b"?" + answer.to_bytes(), one)
            assert found(some + b"?" + words.tobytes(), one)
            assert found(some + f'{{"rows": {answer.rows}}}'.encode(), one)


def test_no_contribution_weight_or_metric_of_a_site_is_received(recorded: Recorded) -> None:
    assert not found(recorded.everything, [each for said in recorded.said.values() for each in said])


def test_none_is_kept_either(recorded: Recorded) -> None:
    assert not found(recorded.at_rest, [each for said in recorded.said.values() for each in said])


def uniform(data: bytes) -> bool:
    """Chi-square test that bytes are uniform; too even is as suspicious as too uneven."""
    p = stats.chisquare(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).pvalue
    return bool(ALPHA < p < 1 - ALPHA)


def test_masked_words_are_uniform(recorded: Recorded) -> None:
    assert uniform(b"".join(vector.tobytes() for vector in recorded.vectors()))
    for vector in recorded.vectors():
        if vector.size >= 1280:  # 20 expected in each bin of the chi-square test
            assert uniform(vector.tobytes())
    truth = b"".join(words.tobytes() for said in recorded.said.values() for _, words in said)
    assert not uniform(truth), "a test that cannot fail shows nothing"


def test_sums_and_differences_of_masked_vectors_are_uniform_too(recorded: Recorded) -> None:
    """Pair masks cancel in the sum over a round's sites; what then still covers it are the self masks."""
    vectors = recorded.vectors()
    rounds = [vectors[at : at + len(SITES)] for at in range(0, len(vectors), len(SITES))]
    assert uniform(b"".join(np.sum(each, axis=0, dtype=np.uint32).tobytes() for each in rounds))
    assert uniform(b"".join((each[0] - each[1]).tobytes() for each in rounds))


def test_masked_words_do_not_follow_the_true_ones(recorded: Recorded) -> None:
    """Correlation of the true words with the masked ones, over all orders in which the sites may have sent them."""
    vectors = recorded.vectors()
    for number in range(len(vectors) // len(SITES)):
        for masked in vectors[number * len(SITES) : (number + 1) * len(SITES)]:
            for said in recorded.said.values():
                true = said[number][1].view(np.int32).astype(np.float64)
                assert stats.pearsonr(true, masked.view(np.int32).astype(np.float64)).pvalue > ALPHA
