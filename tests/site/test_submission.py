"""Who asks: a site believes the analyst's own signature on the job and the run, not the coordinator's word."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cloister as cl
from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32
from cloister.seal.roster import Member, Roster
from cloister.site.runs import SiteRun
from cloister.site.settings import DataSource, SiteFolder
from cloister.vector import digest
from cloister.vector.errors import BadSignature, ContextMismatch, JobError, NotInRoster
from cloister.wire.api import JobNotice
from cloister.wire.envelope import Envelope, sign_envelope

RUN, OTHER = "a" * 32, "b" * 32
KEYS = {name: Identity.generate(lambda size, name=name: name.encode() * size) for name in "clkr"}
MEMBERS = {"coordinator": KEYS["c"], "lee": KEYS["l"], "kim": KEYS["k"]}
ROSTER = Roster(
    "hearts",
    1,
    ZERO32,
    (KEYS["r"].public,),
    1,
    coordinators=(Member("coordinator", KEYS["c"].public),),
    analysts=(Member("kim", KEYS["k"].public), Member("lee", KEYS["l"].public)),
)


def read(folder: Path, job: cl.Job, signed: bytes, analyst: str = "lee") -> Any:
    """What a site makes of a notice with this submission."""

    async def at(version: int) -> Roster:
        return ROSTER

    async def fetch(name: bytes) -> bytes:
        return signed

    settings = SimpleNamespace(data={job.data.name: DataSource(file="x.csv")})
    desk: Any = SimpleNamespace(
        folder=SiteFolder(folder),
        settings=settings,
        journal=None,
        site="kent",
        coordinator="coordinator",
        rosters=SimpleNamespace(at=at),
        fetch=fetch,
    )
    digests = {"job": job.digest.hex(), "submission": digest(signed).hex()}
    return asyncio.run(SiteRun(desk, RUN)._read_job(JobNotice(run=RUN, roster=1, analyst=analyst, **digests)))


def submission(job: cl.Job, by: str = "lee", key: str = "", run: str = RUN, type: str = "submit") -> bytes:
    return sign_envelope(MEMBERS[key or by], Envelope(type, by, "coordinator", run, 0, 1, job.to_bytes()))


def test_the_analyst_s_own_signature_is_asked_for(tmp_path: Path, declarative: cl.Job) -> None:
    accepted = read(tmp_path, declarative, submission(declarative))
    assert accepted.job == declarative
    assert (tmp_path / "jobs" / declarative.digest.hex()).read_bytes() == declarative.to_bytes()


@pytest.mark.parametrize(
    ("altered", "analyst", "error"),
    [
        ({"by": "kim"}, "lee", ContextMismatch),  # another's job under lee's name
        ({"by": "lee", "key": "kim"}, "lee", BadSignature),
        ({"by": "lee", "key": "coordinator"}, "lee", BadSignature),
        ({"by": "coordinator"}, "lee", NotInRoster),  # a coordinator is no analyst
        ({"run": OTHER}, "lee", ContextMismatch),  # the same job again, to spend more of the budget
        ({"type": "stop"}, "lee", ContextMismatch),
    ],
)
def test_a_coordinator_cannot_lend_a_name(
    tmp_path: Path, declarative: cl.Job, altered: dict[str, str], analyst: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        read(tmp_path, declarative, submission(declarative, **altered), analyst)


def test_a_site_runs_nothing_that_is_for_simulations(tmp_path: Path, declarative: cl.Job) -> None:
    cyclic = dataclasses.replace(declarative, algorithm=cl.Cyclic(rounds=1))
    with pytest.raises(JobError, match="Cyclic is for simulations"):
        read(tmp_path, cyclic, submission(cyclic))
