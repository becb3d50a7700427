"""`verify`: an honest run passes, and each thing that a coordinator could alter afterwards is found by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

import cloister as cl
from cloister.round import Evidence, Program, RoundEvidence, Verdict, contribute, verify
from cloister.seal import SealClient, SealServer, audit
from cloister.seal.identity import Identity, fingerprint_words
from cloister.seal.labels import ENVELOPE, ZERO32, lp
from cloister.seal.log import Log, cosign, cosigner_of, origin_of
from cloister.seal.merkle import MerkleBuilder
from cloister.seal.messages import Consistency
from cloister.seal.plan import Plan
from cloister.seal.receipt import open_receipt, sign_receipt
from cloister.seal.roster import Member, Roster, sign_roster
from cloister.seal.threshold import threshold
from cloister.vector import Answer, FixedPoint, State, canonical, digest, open_total
from cloister.vector.errors import MalformedMessage

JOB = cl.Job(
    data=cl.Table("heart", target="disease"),
    task=cl.Torch(model=cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.1)),
    algorithm=cl.FedAvg(rounds=2),
    prepare=[cl.Impute(), cl.OneHot(), cl.Standardize()],
)
COLUMNS = {"age": "number", "pressure": "number", "smoker": "category"}
SITES = ("bonn", "cork", "kent", "lyon", "oslo")
ANALYST = Identity.from_bytes(b"a" * 32)
ROOT, COORDINATOR = Identity.from_bytes(b"r" * 32), Identity.from_bytes(b"c" * 32)
IDENTITIES = {site: Identity.from_bytes(site.encode().ljust(32, b".")) for site in SITES}
ROSTER = Roster(
    federation="hearts",
    version=1,
    previous=ZERO32,
    roots=(ROOT.public,),
    quorum=1,
    coordinators=(Member("hub", COORDINATOR.public),),
    sites=tuple(Member(site, identity.public) for site, identity in IDENTITIES.items()),
    analysts=(Member("lee", ANALYST.public), Member("ann", Identity.from_bytes(b"n" * 32).public)),
)


class Notes:
    def once(self, slot: str, value: bytes) -> None:
        """These sites never restart."""


def answer(query, rng) -> Answer:
    """Plausible numbers for any layout: what they mean is not this room's affair."""
    values = {}
    for block in query.layout.blocks:
        drawn = rng.uniform(-1, 1, block.shape) if block.weighted else rng.integers(0, 9, block.shape)
        if block.bound <= 1:
            drawn = rng.uniform(0, 1, block.shape)
        values[block.name] = np.asarray(drawn, np.float64)
    return Answer(20, values)


class Run:
    """A run of real machines; everything that its coordinator could save."""

    def __init__(self, *, forge: int | None = None, seed: int = 5, job: cl.Job = JOB, columns=COLUMNS) -> None:
        self.job = job
        self.forge, self.log, self.rounds = forge, Log(origin_of("hearts")), []
        self.rng, self.previous, self.last_round = np.random.default_rng(seed), ZERO32, -1
        self.id = self.rng.bytes(16)
        program = Program(job, columns)
        state = program.start()
        while (query := program.ask(state)) is not None:
            state = self.step(program, state, query)
        self.state = state

    def step(self, program: Program, state: State, query) -> State:
        place = len(self.rounds)
        plan = Plan(
            federation="hearts",
            run=self.id,
            round=2 * place,  # every second round was void
            attempt=0,
            job=self.job.digest,
            query=digest(query.to_bytes()),
            algorithm="fedavg",
            bits=self.job.bits,
            layout=query.sealed_layout,
            max_rows=query.max_rows,
            sites=SITES,
            threshold=threshold(len(SITES)),
            min_survivors=3,
        )
        server = SealServer(plan, ROSTER, COORDINATOR, "hub", self.previous)
        clients = {site: self.client(site) for site in SITES}
        for site, client in clients.items():
            client.open(server.open())
            server.receive(site, client.keys(plan.query))
        sent, uploads = [], {}
        for gone in ((), ()):
            sent.append(server.close())
            self.exchange(server, clients, sent[-1], gone)
        coder = FixedPoint(query.sealed_layout, len(SITES), self.job.bits)
        gone = SITES[place % 5]
        for site, client in clients.items():
            if site != gone:
                header, payload = client.mask(contribute(answer(query, self.rng), query, coder))
                uploads[site] = bytes(payload)
                server.receive(site, header)
        for _ in range(2):
            sent.append(server.close())
            self.exchange(server, clients, sent[-1], (gone,))
        server.close()
        read = lambda site, at, length: uploads[site][at : at + length]  # noqa: E731
        (words,) = server.total(read)
        if self.forge == place:
            words[3] += 1
        total = words.astype("<u4").tobytes()
        after = program.learn(state, open_total(query, coder, words, len(server.u3)))
        return self.keep(server, sent, uploads, total, after, read)

    def keep(self, server, sent, uploads, total, after, read) -> State:
        leaves = {site: leaves_of(payload) for site, payload in uploads.items()}
        builder = MerkleBuilder()
        builder.update(total)
        signed = server.receipt([builder.root()], digest(after.to_bytes()))
        receipt = open_receipt(signed, COORDINATOR.public)
        nonce = hashlib.sha256(signed).digest()
        shown = [
            audit.prove(receipt, index, builder.leaves(), leaves, read)
            for index in audit.challenge(receipt, nonce, 99)
        ]
        proof = audit.Audit(nonce, sent[0][SITES[0]], server.opening(), shown).to_bytes()
        self.log.append(b"a receipt of another run")
        self.log.append(signed)
        consistency, keys = sent[3][server.u3[0]], sent[0][SITES[0]]
        self.rounds.append(RoundEvidence(signed, total, consistency, {nonce.hex(): proof}, keys))
        self.previous, self.last_round = receipt.digest, receipt.plan.round
        return after

    def client(self, site: str) -> SealClient:
        return SealClient(
            site,
            IDENTITIES[site],
            ROSTER,
            COORDINATOR.public,
            journal=Notes(),
            randomness=self.rng.bytes,
            last_round=self.last_round,
            last_receipt=self.previous,
        )

    @staticmethod
    def exchange(server, clients, mail, gone) -> None:
        for site, message in mail.items():
            reply = None if site in gone else clients[site].receive(message)
            if reply is not None:
                server.receive(site, reply)

    def evidence(self) -> Evidence:
        note = self.log.sign(COORDINATOR)
        for site in ("bonn", "kent"):
            note = cosign(note, cosigner_of("hearts", site), IDENTITIES[site], 1_700_000_000)
        return Evidence(
            roots=(ROOT.public,),
            quorum=1,
            rosters=(sign_roster(ROSTER, [ROOT]),),
            job=self.job.to_bytes(),
            state=self.state.to_bytes(),
            rounds=tuple(self.rounds),
            leaves=b"".join(self.log.leaves),
            checkpoints={"newest": note},
            submission=submitted(self.job, self.id),
        )


def submitted(job: cl.Job, run: bytes, signer: Identity = ANALYST, **changes) -> bytes:
    """What is kept of the envelope in which an analyst hands in a job."""
    header = {"type": "submit", "from": "lee", "to": "hub", "run": run.hex(), "round": 0, "seq": 7, **changes}
    signed = canonical(header)
    return lp(signed) + lp(signer.sign(ENVELOPE, lp(signed) + lp(job.to_bytes())))


def leaves_of(data: bytes) -> list[bytes]:
    builder = MerkleBuilder()
    builder.update(data)
    return builder.leaves()


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Run().evidence()


def with_round(evidence: Evidence, place: int, **changes) -> Evidence:
    rounds = list(evidence.rounds)
    rounds[place] = dataclasses.replace(rounds[place], **changes)
    return dataclasses.replace(evidence, rounds=tuple(rounds))


def resigned(evidence: Evidence, place: int, key: Identity = COORDINATOR, **changes) -> Evidence:
    """A receipt altered, and signed anew by the coordinator itself."""
    receipt = open_receipt(evidence.rounds[place].receipt, COORDINATOR.public)
    return with_round(evidence, place, receipt=sign_receipt(dataclasses.replace(receipt, **changes), key))


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {claim.of: claim.outcome for claim in verdict.claims}


def names(verdict: Verdict) -> set[tuple[str, str]]:
    return {(finding.name, finding.where) for finding in verdict.findings}


def test_an_honest_run_is_proven_from_the_root_key_to_the_model(evidence):
    verdict = verify(evidence)
    assert verdict.findings == ()
    assert verdict.ok
    assert outcomes(verdict) == {
        "root key": "not proven",  # nobody pinned it
        "members": "proven",
        "receipts": "proven",
        "job": "proven",
        "masked vectors": "proven",
        "survivors": "proven",
        "model": "proven",
        "sums": "proven",
        "ledgers": "not proven",  # of this run's sites none says its charges
        "log": "proven",
        "the sites' data": "not proven",  # as no replay can show
        "other rounds": "not proven",
    }
    told = "\n".join(verdict.proven)
    assert "cosigned by bonn, kent" in told
    assert "follows, bit for bit" in told
    assert json.loads(json.dumps(verdict.as_json(), allow_nan=False))["ok"] is True


def test_who_is_trusted_is_said(evidence):
    found, pinned = verify(evidence), verify(evidence.trusting(ROOT.public))
    words = fingerprint_words(ROOT.public)
    assert any(words in claim and "trusted as found" in claim for claim in found.unproven)
    assert any(words in claim and "you pinned" in claim for claim in pinned.proven)
    assert outcomes(pinned) == {**outcomes(found), "root key": "proven"}


def test_the_end_of_an_unfinished_run_is_not_proven(evidence):
    """The last round is left out, and with it the final state is that of the round before: all of it is true."""
    program, state = Program(JOB, COLUMNS), Program(JOB, COLUMNS).start()
    for each in evidence.rounds[:-1]:
        receipt, query = open_receipt(each.receipt, COORDINATOR.public), program.ask(state)
        words = np.frombuffer(each.total, "<u4")
        state = program.learn(state, open_total(query, receipt.plan.coder, words, len(receipt.u3)))
    stopped = verify(dataclasses.replace(evidence, rounds=evidence.rounds[:-1], state=state.to_bytes()))
    assert stopped.ok
    assert outcomes(stopped)["model"] == "proven"
    assert outcomes(stopped)["end of the run"] == "not proven"


def test_it_survives_files_and_foreign_files_beside_them(evidence):
    files = {**evidence.to_files(), "model.safetensors": b"", "receipts/notes.txt": b"", "report.html": b""}
    views = {path: memoryview(data) for path, data in files.items()}
    assert Evidence.from_files(files) == evidence
    assert verify(Evidence.from_files(views)) == verify(evidence)
    for gone in ("trust.json", "job.bundle", "state.bundle", "receipts/00000.receipt", "rosters/00001.roster"):
        with pytest.raises(MalformedMessage, match=gone):
            Evidence.from_files({path: data for path, data in files.items() if path != gone})
    for path in ("totals/00099.words", "keys/00099.message", f"audits/00099-{'0' * 64}.audit"):
        with pytest.raises(MalformedMessage, match=f"{path}.* belongs to no receipt"):
            Evidence.from_files({**files, path: b""})


@pytest.mark.parametrize("quorum", ["0", "2", "Infinity", "1.0", "true", '"1"'])
def test_a_quorum_that_would_trust_anybody_is_refused(evidence, quorum):
    trust = f'{{"quorum":{quorum},"roots":["{ROOT.public.hex()}"]}}'.encode()
    with pytest.raises(MalformedMessage, match=r"trust\.json.*(must have signed|does not parse)"):
        Evidence.from_files({**evidence.to_files(), "trust.json": trust})


def test_what_is_not_there_is_not_proven_and_no_finding(evidence):
    bare = tuple(RoundEvidence(each.receipt) for each in evidence.rounds)
    verdict = verify(dataclasses.replace(evidence, rounds=bare, leaves=None, checkpoints={}, submission=None))
    assert verdict.ok
    assert len(verdict.proven) == 3  # members, receipts, masked vectors
    told = " ".join(verdict.unproven)
    for missing in ("signatures are there for 0 of 6", "0 of 6 steps", "word for word", "checkpoint"):
        assert missing in told


def test_a_sum_forged_after_opening_is_found_by_the_audit_alone(evidence):
    forged = Run(forge=3).evidence()
    verdict = verify(forged)
    assert names(verdict) == {("BadSum", "round 6")}
    assert "follows, bit for bit" in " ".join(verdict.proven)  # the lie is in the sum, not after it
    without = [dataclasses.replace(each, audits={}) for each in forged.rounds]
    blind = verify(dataclasses.replace(forged, rounds=tuple(without)))
    assert blind.ok
    assert any("word for word" in claim for claim in blind.unproven)


def test_another_total_than_the_receipts(evidence):
    total = bytearray(evidence.rounds[2].total)
    total[0] ^= 1
    verdict = verify(with_round(evidence, 2, total=bytes(total)))
    assert names(verdict) == {("BadSum", "round 4")}
    (failed,) = [claim for claim in verdict.claims if claim.of == "model"]
    assert failed.outcome == "FAILED"
    assert "totals/00002.words" in failed.why


def test_another_model_than_follows(evidence):
    state = State.from_bytes(evidence.state)
    model = state.tensors["model"].copy()
    model[0] += 1
    other = state.with_(None, {"model": model}).to_bytes()
    assert names(verify(dataclasses.replace(evidence, state=other))) == {("BadModel", "job")}
    last = len(evidence.rounds) - 1
    assert ("BadModel", f"round {2 * last}") in names(verify(resigned(evidence, last, state=digest(other))))


def test_another_job(evidence):
    other = dataclasses.replace(JOB, seed=1)
    found = verify(dataclasses.replace(evidence, job=other.to_bytes())).findings
    assert {(each.name, each.file) for each in found} == {("BadModel", "job.bundle")}
    assert ("MalformedMessage", "job") in names(verify(dataclasses.replace(evidence, job=b"junk")))


@pytest.mark.parametrize(
    ("error", "signature"),
    [
        ("BadSignature", lambda run: submitted(JOB, run, COORDINATOR)),
        ("BadSignature", lambda run: submitted(JOB, run, **{"from": "ann"})),
        ("NotInRoster", lambda run: submitted(JOB, run, IDENTITIES["kent"], **{"from": "kent"})),
        ("BadSignature", lambda run: submitted(dataclasses.replace(JOB, seed=1), run)),
        ("ContextMismatch", lambda run: submitted(JOB, bytes(16))),
        ("ContextMismatch", lambda run: submitted(JOB, run, type="stop")),
        ("MalformedMessage", lambda run: b""),
        ("MalformedMessage", lambda run: lp(b"[]") + lp(bytes(64))),
        ("MalformedMessage", lambda run: lp(b"{}") + lp(bytes(64))),
    ],
)
def test_a_job_that_its_analyst_did_not_sign_for(evidence, error, signature):
    run = open_receipt(evidence.rounds[0].receipt, COORDINATOR.public).plan.run
    verdict = verify(dataclasses.replace(evidence, submission=signature(run)))
    assert [(each.name, each.file) for each in verdict.findings] == [(error, "job.signature")]
    assert outcomes(verdict)["job"] == "FAILED"
    assert outcomes(verdict)["model"] == "proven"


def test_a_changed_plan_after_approval(evidence):
    plan = dataclasses.replace(open_receipt(evidence.rounds[1].receipt, COORDINATOR.public).plan, max_rows=7)
    found = names(verify(resigned(evidence, 1, plan=plan)))
    assert {("ContextMismatch", "round 2"), ("BadModel", "round 2"), ("StaleReceipt", "round 4")} <= found


def test_a_lowered_threshold(evidence):
    plan = dataclasses.replace(open_receipt(evidence.rounds[1].receipt, COORDINATOR.public).plan, threshold=3)
    assert ("ThresholdTooLow", "round 2") in names(verify(resigned(evidence, 1, plan=plan)))


def test_a_site_slipped_in_by_the_coordinator(evidence):
    receipt = open_receipt(evidence.rounds[0].receipt, COORDINATOR.public)
    uploads = tuple(each._replace(signature=bytes(64)) if each.site == "kent" else each for each in receipt.uploads)
    found = verify(resigned(evidence, 0, uploads=uploads)).findings
    assert ("BadSignature", "round 0", "kent") in {(each.name, each.where, each.site) for each in found}


def test_receipts_reordered_left_out_or_signed_by_another(evidence):
    first, second, *rest = evidence.rounds
    swapped = dataclasses.replace(evidence, rounds=(second, first, *rest))
    assert {("StaleReceipt", "round 0"), ("StaleReceipt", "round 2")} <= names(verify(swapped))
    shorter = verify(dataclasses.replace(evidence, rounds=(first, *rest)))
    assert ("StaleReceipt", "round 4") in names(shorter)
    truncated = verify(dataclasses.replace(evidence, rounds=evidence.rounds[:-1]))
    assert ("BadModel", "job") in names(truncated)
    stranger = verify(resigned(evidence, 1, key=Identity.from_bytes(b"x" * 32)))
    assert ("BadSignature", "receipt 1") in names(stranger)
    assert not any("bit for bit" in claim for claim in stranger.proven)


def test_consistency_signatures_of_another_set_or_too_few(evidence):
    other = evidence.rounds[2].consistency
    assert names(verify(with_round(evidence, 1, consistency=other))) == {("MissingConsistency", "round 2")}
    message = Consistency.from_bytes(evidence.rounds[1].consistency)
    few = dataclasses.replace(message, entries=message.entries[:1]).to_bytes()
    found = names(verify(with_round(resigned(evidence, 1, consistency=digest(few)), 1, consistency=few)))
    assert ("MissingConsistency", "round 2") in found


def test_a_roster_by_another_root_opens_nothing(evidence):
    verdict = verify(evidence.trusting(Identity.from_bytes(b"x" * 32).public))
    assert ("RosterRefused", "roster 1") in names(verdict)
    assert verdict.proven == ()


def test_a_split_or_rolled_back_log(evidence):
    other = Log(origin_of("hearts"), [bytes([place]) * 32 for place in range(4)])
    split = {**evidence.checkpoints, "kent": other.sign(COORDINATOR)}
    assert names(verify(dataclasses.replace(evidence, checkpoints=split))) == {("StaleReceipt", "checkpoint kent")}
    rolled_back = dataclasses.replace(evidence, leaves=evidence.leaves[:-64])
    assert ("StaleReceipt", "checkpoint newest") in names(verify(rolled_back))
    without = Log(origin_of("hearts"), [evidence.leaves[:32]])
    elsewhere = dataclasses.replace(
        evidence, leaves=evidence.leaves[:32], checkpoints={"newest": without.sign(COORDINATOR)}
    )
    assert ("StaleReceipt", "round 0") in names(verify(elsewhere))
    foreign = {"newest": other.sign(Identity.from_bytes(b"x" * 32))}
    assert names(verify(dataclasses.replace(evidence, checkpoints=foreign))) == {
        ("BadSignature", "checkpoint newest")
    }


def test_a_partial_audit_is_told_as_partial(evidence):
    each = evidence.rounds[0]
    receipt = open_receipt(each.receipt, COORDINATOR.public)
    total = audit.leaves(receipt)
    assert total > 1
    (data,) = each.audits.values()
    full = audit.Audit.from_bytes(data)
    asked = audit.challenge(receipt, bytes(32), 1)
    part = dataclasses.replace(full, nonce=bytes(32), chunks=[full.chunks[asked[0]]]).to_bytes()
    verdict = verify(with_round(evidence, 0, audits={bytes(32).hex(): part}))
    assert verdict.ok
    assert any(f"a chance of {1 / total:.0%}" in claim for claim in verdict.proven)
    short = with_round(evidence, 0, audits={bytes(32).hex(): part})
    assert verify(short, asked={bytes(32).hex(): 1}).ok
    fewer = verify(short, asked={bytes(32).hex(): 2})  # where the second piece would have shown the lie
    assert names(fewer) == {("BadSum", "round 0")}
    assert "where 2 were asked for" in fewer.findings[0].message
    assert verify(evidence, asked={nonce: 99 for each in evidence.rounds for nonce in each.audits}).ok
    renamed = verify(with_round(evidence, 0, audits={"ff" * 32: part}))
    assert names(renamed) == {("BadSum", "round 0")}


@pytest.mark.parametrize("name", ["receipt", "total", "consistency"])
def test_junk_is_a_finding_never_a_crash(evidence, name):
    assert not verify(with_round(evidence, 1, **{name: b"junk"})).ok
