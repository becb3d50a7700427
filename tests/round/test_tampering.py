"""Every file of the evidence, altered: a byte anywhere, cut short, emptied, swapped, or taken from another run.

Each is a finding that names a file, or a refusal to read that names it; none passes, and none crashes.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloister as cl
from cloister.round import Evidence, verify
from cloister.seal.log import Log, origin_of
from cloister.vector.errors import MalformedMessage

from .test_verify import COORDINATOR, Run

JOB = cl.Job(
    data=cl.Table("heart", target="disease", classes=2),
    task=cl.Torch(model=cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.1)),
    algorithm=cl.FedAvg(rounds=2),
    prepare=[cl.Impute()],
    evaluate=None,
)
Files = Mapping[str, bytes]


def files_of(run: Run) -> dict[str, bytes]:
    """As a coordinator shows them: its checkpoint has no signature but its own."""
    files = {path: bytes(data) for path, data in run.evidence().to_files().items()}
    return {**files, "log/newest.checkpoint": run.log.sign(COORDINATOR)}


@pytest.fixture(scope="module")
def files() -> Files:
    return files_of(Run(job=JOB, columns={"age": "number", "pressure": "number"}))


@pytest.fixture(scope="module")
def of_another_run() -> Files:
    return files_of(Run(seed=6, job=JOB, columns={"age": "number", "pressure": "number"}))


def blamed(altered: Files) -> set[str]:
    """The files that a reader hears of; none if all is well."""
    try:
        verdict = verify(Evidence.from_files(altered))
    except MalformedMessage as fault:
        return {fault.message.split(":")[0].split()[0]}
    assert all(finding.file in altered and finding.name and finding.where for finding in verdict.findings)
    return {finding.file for finding in verdict.findings}


def test_what_was_not_altered_passes(files):
    assert blamed(files) == set()
    assert {path.split("/")[0] for path in files} == {
        *(
            "trust.json",
            "job.bundle",
            "job.signature",
            "state.bundle",
            "rosters",
            "receipts",
            "totals",
            "keys",
            "consistency",
        ),
        *("audits", "log"),
    }


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_one_flipped_byte_anywhere(files, data):
    path = data.draw(st.sampled_from(sorted(files)))
    altered = bytearray(files[path])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    assert blamed({**files, path: bytes(altered)})


KINDS = ("trust", "job.b", "job.s", "state", "rosters", "receipts", "totals", "keys", "consistency", "audits", "log")


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_itself_is_named(files, kind):
    """The first, middle and last byte of every file: each is found, and for its own file."""
    for path in sorted(path for path in files if path.startswith(kind)):
        for at in (0, len(files[path]) // 2, len(files[path]) - 1):
            altered = bytearray(files[path])
            altered[at] ^= 1
            assert path in blamed({**files, path: bytes(altered)}), (path, at)


def test_cut_short_emptied_or_longer(files):
    for path, data in files.items():
        for other in (data[:-1], b"", data + b"\0"):
            assert path in blamed({**files, path: other}), (path, len(other))


def test_swapped_with_its_neighbour(files):
    """Files of one kind in each other's place."""
    for kind in ("receipts", "totals", "keys", "consistency"):
        first, second = sorted(path for path in files if path.startswith(kind))[1:3]
        assert blamed({**files, first: files[second], second: files[first]}), kind
    first, second = sorted(path for path in files if path.startswith("audits"))[:2]
    assert blamed({**files, first: files[second]})
    assert blamed({**files, "audits/00001-" + first.partition("-")[2]: files[first]})


def test_taken_from_another_run(files, of_another_run):
    """Any one file of another run of the same federation and job; what both share is no alteration."""
    shared = {path for path in files if files[path] == of_another_run.get(path)}
    assert shared == {"trust.json", "rosters/00001.roster", "job.bundle"}
    for path in sorted(files.keys() & of_another_run.keys() - shared):
        assert blamed({**files, path: of_another_run[path]}), path
    state = {path: of_another_run[path] for path in ("state.bundle", "receipts/00002.receipt", "totals/00002.words")}
    assert blamed({**files, **state})


def test_a_log_with_leaves_that_nobody_signed_for(files):
    assert blamed({**files, "log/leaves": files["log/leaves"] + bytes(32)}) == {"log/leaves"}
    assert blamed({**files, "log/leaves": files["log/leaves"] + bytes(31)}) == {"log/leaves"}


def test_an_older_head_beside_the_newest_is_no_breach(files):
    """As a site holds it; and one that no beginning of the log has is."""
    leaves = [files["log/leaves"][at : at + 32] for at in range(0, len(files["log/leaves"]), 32)]
    older = Log(origin_of("hearts"), leaves[:3]).sign(COORDINATOR)
    forked = Log(origin_of("hearts"), [*leaves[:2], bytes(32)]).sign(COORDINATOR)
    assert blamed({**files, "log/kent.checkpoint": older}) == set()
    assert blamed({**files, "log/kent.checkpoint": forked}) == {"log/kent.checkpoint"}
