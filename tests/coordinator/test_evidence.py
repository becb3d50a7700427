"""Log, audits and evidence of real runs: who may ask, what is refused, what a page holds, and lies that are found."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cloister as cl
from cloister.cli.analyst import Analyst
from cloister.cli.app import run as command
from cloister.cli.evidence import ask_audits, fetch_evidence, read_evidence
from cloister.coordinator import admit, init_coordinator
from cloister.coordinator.audits import Auditor
from cloister.coordinator.folder import Folder, open_folder
from cloister.coordinator.log import ReceiptLog
from cloister.learn import complete
from cloister.round import Verdict, verify
from cloister.seal import audit
from cloister.seal.labels import fields, lp
from cloister.seal.log import Entry, Log, LogView, open_checkpoint, origin_of
from cloister.seal.merkle import leaf_hash
from cloister.seal.receipt import Receipt, open_receipt
from cloister.seal.server import SealServer
from cloister.vector import digest
from cloister.vector.errors import (
    BadSignature,
    EnvelopeReplayed,
    MalformedMessage,
    NotInRoster,
    UnexpectedMessage,
    UsageError,
)
from cloister.wire import CoordinatorClient, Envelope, api, sign_envelope

from .conftest import Federation, Member
from .sites import MiniSite, job, table
from .test_transport import post, refused

SITES = ("site-1", "site-2", "site-3")
WIDE = cl.Torch(model=cl.nets.MLP([256, 128]), loss="bce", optimizer=cl.SGD(lr=0.1), batch_size=40)
LEAVES = 3  # of 64 KiB, of such a model's sum
Act = Callable[[CoordinatorClient, str], Awaitable[Any]]


@pytest.fixture
def kept(tmp_path: Path, serve_in_thread: Callable[[Folder], str]) -> Callable[[int], Federation]:
    """`kept(rounds)`: a federation whose coordinator keeps the masked vectors of so many rounds."""

    def found(rounds: int) -> Federation:
        folder = init_coordinator(tmp_path / "federation", "heart", root_path=tmp_path / "root.key")
        settings = folder.path / "coordinator.toml"
        settings.write_text(settings.read_text().replace("keep_rounds = 1", f"keep_rounds = {rounds}"))
        folder = open_folder(folder.path)
        assert folder.keep_rounds == rounds
        return Federation(folder.path, tmp_path / "root.key", serve_in_thread(folder))

    return found


def joined(federation: Federation) -> Analyst:
    """An analyst's folder, as `cloister submit --invitation` makes it."""
    (member,) = federation.invite("lee", role="analyst")
    analyst = asyncio.run(Analyst.join(member.invitation.encode(), federation.folder.parent / "lee"))
    admit(federation.folder, federation.root, ["lee"])
    return analyst


def ran(
    federation: Federation, analyst: Analyst, act: Act, what: cl.Job | None = None, ids: tuple[str, ...] = SITES
) -> Any:
    """Three sites run a job to its end; then `act(client, run)` as the analyst, and what it returned."""
    sites = [MiniSite(member, table(seed)) for seed, member in enumerate(federation.admit(*ids))]

    async def main() -> Any:
        living = [asyncio.create_task(site.live()) for site in sites]
        async with analyst.connect(lambda text: None) as client:
            run = await client.submit(complete(what or job(task=WIDE)).to_bytes())
            events: list[dict[str, Any]] = []
            while not events or events[-1]["event"] not in ("done", "failed", "stopped"):
                events += await client.events(run, events[-1]["number"] if events else 0)
            assert events[-1]["event"] == "done", events[-1]
            await asyncio.gather(*living)
            return await act(client, run)

    return asyncio.run(main())


async def envelope_to(member: Member, path: str, type: str, body: bytes, seq: int | None = None) -> Any:
    number = next(member.numbers) if seq is None else seq
    envelope = Envelope(type, member.id, "coordinator", "", 0, number, body)
    return await post(member, path, sign_envelope(member.identity, envelope))


def names(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.name, finding.where) for finding in verdict.findings}


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {claim.of: claim.outcome for claim in verdict.claims}


# what is asked


def test_who_may_ask_for_log_and_audits_and_how(federation: Federation) -> None:
    kent, lee = (*federation.admit("kent"), *federation.admit("dr.lee", role="analyst"))
    (invited,) = federation.invite("oslo")
    oslo = replace(invited, certificate=kent.certificate)
    challenge = api.Challenge(run="0f" * 16, round=0, nonce="00" * 32, count=1)

    async def act() -> None:
        for path, type in ((api.LOG, "log"), (api.LOG, "entry"), (api.AUDITS, "audit")):
            refused(await envelope_to(oslo, path, type, b""), NotInRoster)
            refused(await envelope_to(replace(kent, identity=lee.identity), path, type, b""), BadSignature)
            refused(await post(kent, path, os.urandom(60)), MalformedMessage)
            refused(await envelope_to(kent, path, "poll", b""), UnexpectedMessage)
        for type, path in (("entry", api.LOG), ("audit", api.AUDITS)):
            for junk in (b"", b"{}", b"[]", os.urandom(40)):
                refused(await envelope_to(lee, path, type, junk), MalformedMessage)
        for wrong in (
            {"receipt": "00" * 31},
            {"receipt": "zz" * 32},
            {"since": -1},
            {"since": 1 << 63},
            {"more": 1},
        ):
            body = json.dumps({"receipt": "00" * 32, "since": 0, **wrong}).encode()
            refused(await envelope_to(kent, api.LOG, "entry", body), MalformedMessage)
        for change in (
            {"count": 0},
            {"count": 1 << 33},
            {"skip": -1},
            {"round": -1},
            {"nonce": "00" * 31},
            {"run": "*"},
        ):
            body = json.dumps({**challenge.model_dump(), **change}).encode()
            refused(await envelope_to(kent, api.AUDITS, "audit", body), MalformedMessage)
        for member in (kent, lee):  # both may; there is nothing yet
            refused(await envelope_to(member, api.AUDITS, "audit", challenge.to_bytes()), UsageError)
            entry = api.EntryRef(receipt="00" * 32, since=0).to_bytes()
            refused(await envelope_to(member, api.LOG, "entry", entry), UsageError)
            shown = await envelope_to(member, api.LOG, "log", b"", seq=500)
            note, leaves = fields(shown.content)
            roster = await member.roster()
            assert leaves == b""
            assert open_checkpoint(note, origin_of("heart"), roster.key_of("coordinator", "coordinator")).size == 0
            refused(await envelope_to(member, api.LOG, "log", b"", seq=500), EnvelopeReplayed)

    asyncio.run(act())


def test_no_federation_is_called_a_simulation(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="simulation"):
        init_coordinator(tmp_path / "federation", "simulation", root_path=tmp_path / "root.key")
    assert list(tmp_path.iterdir()) == []


def test_log_audits_and_evidence_of_a_run(
    kept: Callable[[int], Federation], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four rounds of which the last three are kept; the sums of training have three leaves each."""
    federation = kept(3)
    analyst, results = joined(federation), federation.folder.parent / "results"

    async def act(client: CoordinatorClient, run: str) -> str:
        found = await client.result(run)
        assert [each["round"] for each in found["rounds"]] == [0, 1, 2, 3]
        assert [each["kept"] for each in found["rounds"]] == [False, True, True, True]
        receipts = [await client.fetch(bytes.fromhex(name)) for name in found["receipts"]]
        key = (await federation.members["site-1"].roster()).key_of("coordinator", "coordinator")
        await the_log_holds(client, federation.members["site-1"], receipts, key)
        await audits_in_pages(client, federation.members["site-2"], run, receipts, key)
        return run

    async def audits_in_pages(
        client: CoordinatorClient, site: Member, run: str, receipts: list[bytes], key: bytes
    ) -> None:
        with pytest.raises(UsageError, match="keep_rounds"):
            await client.audit(run, 0, bytes(32), 1)
        for other in ((run, 99), ("0f" * 16, 1)):
            with pytest.raises(UsageError):
                await client.audit(*other, bytes(32), 1)
        receipt, roster = open_receipt(receipts[2], key), await site.roster()
        assert audit.leaves(receipt) == LEAVES
        whole = await client.audit(run, 2, bytes(32), 99)  # as many as there are
        assert audit.verify(audit.Audit.from_bytes(whole), receipt, roster) == LEAVES
        two = audit.Audit.from_bytes(await client.audit(run, 2, b"n" * 32, 2))
        assert [chunk.index for chunk in two.chunks] == audit.challenge(receipt, b"n" * 32, 2)
        assert audit.verify(two, receipt, roster) == 2
        for limit in ("MAX_AUDIT_LEAVES", "MAX_AUDIT_BYTES"):
            with monkeypatch.context() as limited:
                limited.setattr(api, limit, 1)
                one = api.Challenge(run=run, round=2, nonce="00" * 32, count=99)
                for skip, chunks in ((0, 1), (2, 1), (3, 0), (1 << 32, 0)):
                    page = one.model_copy(update={"skip": skip})
                    shown = await envelope_to(site, api.AUDITS, "audit", page.to_bytes())
                    assert len(fields(shown.content)) == 3 + chunks, (limit, skip)
                assert await client.audit(run, 2, bytes(32), 99) == whole

    run = ran(federation, analyst, act)
    lee = ("--folder", str(analyst.folder))
    assert command(["fetch", run[:8], "--out", str(results), *lee]) == 0
    evidence = read_evidence(results)
    plain = verify(evidence)
    assert plain.ok
    assert {of for of, outcome in outcomes(plain).items() if outcome == "proven"} == {
        *("members", "receipts", "job", "masked vectors", "survivors", "model", "log")
    }
    assert said(capsys, "verify", str(results))["ok"]
    audited = said(capsys, "verify", str(results), "--audit", "44", *lee)
    assert audited["federation"] == "heart"
    sums = {claim["claim"]: claim for claim in audited["claims"]}
    assert "audits show 3 of 4" in sums["sums"]["why"]  # of one round the vectors are not kept any more
    assert sums["root key"]["outcome"] == sums["log"]["outcome"] == sums["model file"]["outcome"] == "proven"
    kept_now = sorted(path.name.partition("-")[0] for path in (results / "audits").iterdir())
    assert kept_now == ["00001", "00002", "00003"]
    some = said(capsys, "verify", f"{analyst.url}/{run[:6]}", "--audit", "1", *lee)
    (pieces,) = [claim["why"] for claim in some["claims"] if claim["claim"] == "pieces of sums"]
    assert "in 2 rounds" in pieces
    assert "are your own" not in pieces
    newest = said(capsys, "verify", analyst.url, "--out", str(results.parent / "fetched"), *lee)
    assert newest["run"] == said(capsys, "verify", str(analyst.folder))["run"] == run
    assert (results.parent / "fetched" / "model.safetensors").read_bytes() == (
        results / "model.safetensors"
    ).read_bytes()
    fewer_leaves_than_asked_for(monkeypatch, capsys, f"{analyst.url}/{run}", lee)
    a_log_that_shrank_or_forked(monkeypatch, capsys, results, lee)
    the_whole_log(federation, capsys, analyst, run)


def the_whole_log(federation: Federation, capsys: pytest.CaptureFixture[str], analyst: Analyst, run: str) -> None:
    """All runs at once; a receipt that belongs to none of them shows."""
    kept = federation.folder.parent / "all"
    everything = said(capsys, "verify", str(analyst.folder), "--all", "--audit", "1", "--out", str(kept))
    assert [each["run"] for each in everything["runs"]] == [run]
    assert everything["whole_log"]["outcome"] == "proven"
    assert [path.name for path in kept.iterdir()] == [run[:12]]
    assert len(list((kept / run[:12] / "audits").iterdir())) == 3
    assert said(capsys, "verify", str(kept), "--all")["whole_log"]["outcome"] == "proven"
    with closing(open_folder(federation.folder).store()) as store:
        store.run_tx("hidden", lambda tx: tx.append_to_log(leaf_hash(b"of a run that is not shown"), "ab" * 32))
    hidden = said(capsys, "verify", analyst.url, "--all", "--folder", str(analyst.folder))
    assert hidden["ok"]
    assert hidden["whole_log"]["outcome"] == "not proven"
    assert "1 of its 5 receipts" in hidden["whole_log"]["why"]


async def the_log_holds(client: CoordinatorClient, site: Member, receipts: list[bytes], key: bytes) -> None:
    """Every receipt, in order; a site that follows has each place proven, one that says it saw more has not."""
    note, leaves = await client.log()
    assert leaves == b"".join(leaf_hash(receipt) for receipt in receipts)
    assert open_checkpoint(note, origin_of("heart"), key).size == len(receipts)
    view = LogView(origin_of("heart"), key)
    async with await site.client() as own:
        for receipt in receipts:
            shown = Entry.from_bytes(await own.entry(digest(receipt), view.size))
            view = view.accept(receipt, shown)
        assert view.size == len(receipts)
        for name, since in ((digest(receipts[0]), len(receipts) + 1), (bytes(32), 0)):
            with pytest.raises(UsageError, match="does not hold"):
                await own.entry(name, since)


def fewer_leaves_than_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, lee: tuple[str, ...]
) -> None:
    """A coordinator that stops before the piece that it altered."""
    honest = Auditor.answer

    async def sparing(self: Auditor, asked: api.Challenge) -> bytes:
        return await honest(self, asked.model_copy(update={"count": 1}))

    with monkeypatch.context() as lying:
        lying.setattr(Auditor, "answer", sparing)
        found = said(capsys, "verify", url, "--audit", "2", *lee, code=1)
    assert [(each["name"], each["where"]) for each in found["findings"]] == [
        ("BadSum", "round 1"),
        ("BadSum", "round 2"),
    ]


def a_log_that_shrank_or_forked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path, lee: tuple[str, ...]
) -> None:
    """The coordinator now shows another log than the one that the results were fetched with."""

    def rolled_back(self: ReceiptLog) -> bytes:
        log = Log(origin_of("heart"), self._current().leaves[:-1])
        return lp(log.sign(self._identity)) + lp(b"".join(log.leaves))

    def forked(self: ReceiptLog) -> bytes:
        log = Log(origin_of("heart"), [bytes(32), *self._current().leaves])
        return lp(log.sign(self._identity)) + lp(b"".join(log.leaves))

    for lie in (rolled_back, forked):
        with monkeypatch.context() as lying:
            lying.setattr(ReceiptLog, "shown", lie)
            found = said(capsys, "verify", str(results), "--audit", "1", *lee, code=1)
        assert {finding["name"] for finding in found["findings"]} == {"StaleReceipt"}, lie
        assert {claim["claim"] for claim in found["claims"] if claim["outcome"] == "FAILED"} == {"log"}


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """What a command prints with --json."""
    capsys.readouterr()
    ended = command([*arguments, "--json"])
    shown = capsys.readouterr()
    assert ended == code, shown
    found: dict[str, Any] = json.loads(shown.out)
    return found


def test_sums_in_buckets_are_audited_each(kept: Callable[[int], Federation]) -> None:
    """Fifteen sites in three groups, each with a sum and a root of its own; all of it is shown, and right."""
    federation = kept(9)
    analyst, folder = joined(federation), federation.folder.parent / "evidence"

    async def act(client: CoordinatorClient, run: str) -> Verdict:
        await fetch_evidence(client, analyst, run, folder, quiet=True)
        asked = await ask_audits(client, read_evidence(folder), folder, 44, quiet=True)
        return verify(read_evidence(folder), asked=asked)

    robust = job(algorithm=cl.FedAvg(rounds=1, aggregate=cl.Median(buckets=3)), evaluate=None)
    verdict = ran(federation, analyst, act, robust, tuple(f"site-{number:02d}" for number in range(15)))
    assert verdict.findings == ()
    assert outcomes(verdict)["sums"] == outcomes(verdict)["model"] == "proven"
    receipt = Receipt.from_bytes(fields((folder / "receipts" / "00001.receipt").read_bytes())[0])
    assert len(receipt.sum_roots) == 3


# lies


def test_a_sum_forged_after_opening(
    kept: Callable[[int], Federation], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One word of one sum, altered before anything was made of it: all that follows fits, and the audit finds it."""
    honest = SealServer.total

    def forged(self: SealServer, read: Any, threads: int = 1) -> Any:
        words = honest(self, read, threads)
        if self.plan.round == 2:
            words.reshape(-1)[7] += 1
        return words

    monkeypatch.setattr(SealServer, "total", forged)
    federation = kept(9)
    analyst, folder = joined(federation), federation.folder.parent / "evidence"

    async def act(client: CoordinatorClient, run: str) -> Any:
        await fetch_evidence(client, analyst, run, folder, quiet=True)
        blind = verify(read_evidence(folder))
        nonces = await ask_audits(client, read_evidence(folder), folder, 44, quiet=True)
        return blind, verify(read_evidence(folder).trusting(analyst.root), asked=nonces)

    blind, audited = ran(federation, analyst, act)
    assert blind.ok
    assert outcomes(blind)["sums"] == "not proven"
    assert names(audited) == {("BadSum", "round 2")}
    assert [finding.file.partition("-")[0] for finding in audited.findings] == ["audits/00002"]
    assert outcomes(audited)["model"] == "proven"  # the lie is in the sum, not in what was made of it
    assert command(["verify", str(folder), "--root", str(federation.root)]) == 2  # the private one
    assert analyst.root.hex() in capsys.readouterr().err
    told = said(capsys, "verify", str(folder), code=1)
    assert told["findings"][0]["file"].startswith("audits/00002-")
    assert command(["verify", str(folder), "--root", analyst.root.hex()]) == 1
    assert "BadSum in audits/00002-" in " ".join(capsys.readouterr().out.split())
