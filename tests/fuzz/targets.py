"""Every decoder, with honest inputs to start from. The sealed messages are the frozen ones of tests/vectors."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from decoders import Target, bundle_of, bundle_parts
from sklearn.linear_model import SGDRegressor

import cloister as cl
from cloister.privacy.accounting import Event, events_as_json, events_from_json
from cloister.round import Evidence, Policy, Program, RoundEvidence, contribute, decide_job, private, verify
from cloister.round.checks import check_submission
from cloister.seal import graph, masked_header, shamir
from cloister.seal.audit import Audit, Chunk, Opening
from cloister.seal.identity import Identity
from cloister.seal.labels import BUDGET, ENVELOPE, RECEIPT, ROSTER, ZERO32, fields, lp
from cloister.seal.log import (
    Agreement,
    Checkpoint,
    Entry,
    Log,
    cosign,
    cosigner_of,
    cosigners,
    open_checkpoint,
    origin_of,
)
from cloister.seal.masks import unpack as unpack_words
from cloister.seal.messages import KINDS, Sharer, label_of
from cloister.seal.plan import Plan
from cloister.seal.receipt import Receipt, open_receipt
from cloister.seal.roster import Member, Roster, TrustedRoster
from cloister.site import framing, ledger
from cloister.site.budget import open_export
from cloister.site.policy import PolicyFile, parse_toml, policy_toml
from cloister.site.settings import SiteFolder, SiteSettings, site_toml
from cloister.site.training import facts_of, fault_of
from cloister.vector import Answer, Block, FixedPoint, Layout, Query, State, open_total
from cloister.vector.bundle import canonical, unpack
from cloister.vector.layout import Noise
from cloister.wire import Envelope, Invitation, api, sign_envelope
from cloister.wire.envelope import open_envelope, split

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "v1"
KEY = Identity.from_bytes(b"k" * 32)  # whoever must have signed, signs with this
NOISE = Noise(2.0**-9, 1.0, 4.0, shared=True, colluders=1, rotation="00" * 32)
LAYOUT = Layout(
    (
        Block("delta", (3,), 8.0, clip=1.0, weighted=True),
        Block("noisy", (3,), 8.0, clip=1.0, noise=NOISE),
        Block("rows", (), 2.0**20, wide=True),
    )
)
QUERY = Query(
    "train",
    LAYOUT,
    100,
    {"model": np.arange(3, dtype=np.float32), "fit/buckets/a": np.arange(2)},
    {"round": 1, "step": 0, "columns": [["age", "number"], ["a", "category"]], "shapes": {"w": [3]}},
)
ANSWER = Answer(5, {"delta": np.ones(3, np.float32), "rows": np.float64(4.0).reshape(())})
ASKED = Query("train", LAYOUT.__class__(LAYOUT.blocks[:1]), 100)
CODER = FixedPoint(ASKED.sealed_layout, 5)


def jobs() -> list[cl.Job]:
    table = cl.Table("heart", target="disease", columns={"age": "number", "cp": ["a", "b"], "x": "category"})
    torch = cl.Torch(cl.nets.MLP([4, 2]), loss="bce", optimizer=cl.Adam(lr=0.1), epochs=1, batch_size=8)
    prepare = [cl.Impute(), cl.OneHot(min_rows=3), cl.Standardize()]
    robust = cl.FedAvg(rounds=4, aggregate=cl.Median(buckets=3), schedule=cl.StepDecay(every=2, by=0.5))
    own = cl.nets.Code("model", initial={"w": np.zeros(2, np.float32)})
    return [
        cl.Job(table, torch, cl.FedAvg(rounds=3, clip=1.0), prepare, name="one", seed=3),
        cl.Job(table, torch, robust),
        cl.Job(cl.Table("t", target="y"), cl.Sklearn(SGDRegressor(alpha=0.01)), cl.FedAvg(rounds=1), evaluate=None),
        cl.Job(
            table, cl.Torch(own, loss="bce", optimizer=cl.SGD(lr=0.1)), cl.FedAvg(rounds=1), source="def model():"
        ),
    ]


def rounds() -> list[dict]:
    found = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("round-*.json"))]
    assert found, "the frozen vectors are missing"
    return found


def all_targets() -> list[Target]:
    light = (vector_targets, seal_targets, message_targets, log_targets, job_targets, wire_targets, site_targets)
    return [target for each in (*light, privacy_targets) for target in each()]


def bundle_targets(name: str, decode, honest: list[bytes]) -> Iterator[Target]:
    """A bundle is mutated as a whole, in its facts, and in the header of its tensors."""
    facts, header, rest = bundle_parts(honest[0])
    yield Target(name, decode, tuple(honest))
    yield Target(f"{name}/facts", decode, (facts,), lambda data: bundle_of(data, header, rest))
    yield Target(f"{name}/tensors", decode, (header,), lambda data: bundle_of(facts, data, rest))


def vector_targets() -> Iterator[Target]:
    state = State({"stage": "train", "history": [{"round": 1}]}, {"model": np.ones(4, np.float32)})
    yield from bundle_targets("vector.bundle", unpack, [state.to_bytes()])
    yield from bundle_targets("vector.query", Query.from_bytes, [QUERY.to_bytes()])
    yield from bundle_targets("vector.answer", Answer.from_bytes, [ANSWER.to_bytes()])
    yield from bundle_targets("vector.state", State.from_bytes, [state.to_bytes()])
    honest = Answer(5, {"delta": np.ones(3, np.float32)}).to_bytes()
    yield from bundle_targets(
        "round.contribute", lambda data: contribute(Answer.from_bytes(data), ASKED, CODER), [honest]
    )
    yield Target("vector.layout", _layout, (canonical(LAYOUT.as_json()),))


def _layout(data: bytes) -> Layout:
    return Layout.from_json(_parsed(data))


def seal_targets() -> Iterator[Target]:
    frozen = rounds()
    rosters = tuple(each["inputs"]["roster"].encode() for each in frozen)
    plans = tuple(each["inputs"]["plan"].encode() for each in frozen)
    receipts = tuple(bytes.fromhex(each["messages"]["receipt"]) for each in frozen)
    bodies = tuple(fields(data)[0] for data in receipts)
    yield Target("seal.fields", fields, receipts, back=lambda parts: b"".join(map(lp, parts)))
    yield Target("seal.roster", Roster.from_bytes, rosters, back=Roster.to_bytes)
    yield Target("seal.plan", Plan.from_bytes, plans, back=Plan.to_bytes)
    yield Target("seal.receipt", Receipt.from_bytes, bodies, back=lambda receipt: receipt.body)
    yield Target(
        "seal.signed-receipt",
        lambda data: open_receipt(data, KEY.public),
        bodies,
        lambda body: lp(body) + lp(KEY.sign(RECEIPT, body)),
    )
    own_roots = json.loads(rosters[0]) | {"roots": [KEY.public.hex()]}
    yield Target(
        "seal.signed-roster",
        lambda data: TrustedRoster([KEY.public]).update(data),
        (canonical(own_roots),),
        lambda body: lp(body) + lp(KEY.public + KEY.sign(ROSTER, body)),
    )
    yield Target(
        "seal.resumed-roster",
        TrustedRoster.resume,
        (canonical(own_roots),),
        lambda body: lp(body) + lp(KEY.public + KEY.sign(ROSTER, body)),
    )
    yield Target("seal.share", shamir.from_bytes, (bytes(32), b"\xff" * 32), back=shamir.to_bytes)
    for bits in (16, 20, 24, 32, 64):
        yield Target(f"seal.words/{bits}", lambda data, b=bits: unpack_words(data, 7, b), (bytes(-(-7 * bits // 8)),))
    sites = [f"s{number}" for number in range(20)]
    chosen = graph.mark(sites[:5], sites)
    yield Target("seal.bitmap", lambda data: graph.check_choice(data, "s19", sites, 5), (chosen,))
    yield Target("seal.graph", lambda data: graph.Sparse.from_name(data.decode("latin-1")), (b"sparse-50-100",))


def message_targets() -> Iterator[Target]:
    seeds: dict[str, list[bytes]] = {}
    for each in rounds():
        for sent in each["messages"].values():
            for text in sent.values() if isinstance(sent, dict) else [sent]:
                data = bytes.fromhex(text)
                seeds.setdefault(label_of(data), []).append(data)
    yield Target("seal.label", label_of, tuple(data for those in seeds.values() for data in those[:2]))
    for label, kind in KINDS.items():
        yield Target(f"seal.{label}", kind.from_bytes, tuple(seeds[label]), back=lambda message: message.to_bytes())
    yield Target("seal.masked-header", masked_header, tuple(seeds["cloister/v1/masked"]))


def log_targets() -> Iterator[Target]:
    origin = origin_of("tests")
    log = Log(origin, [bytes([number]) * 32 for number in range(9)])
    note = cosign(log.sign(KEY), cosigner_of("tests", "bonn"), KEY, 7)
    keys = {cosigner_of("tests", "bonn"): KEY.public}
    yield Target("seal.note", lambda data: open_checkpoint(data, origin, KEY.public), (note, log.sign(KEY)))
    yield Target("seal.cosigners", lambda data: cosigners(data, keys), (note,))
    yield Target(
        "seal.checkpoint", Checkpoint.from_text, (log.checkpoint().text,), back=lambda checkpoint: checkpoint.text
    )
    yield Target("seal.log-entry", Entry.from_bytes, (log.entry(3, 5, KEY).to_bytes(),), back=Entry.to_bytes)
    yield Target(
        "seal.agreement", Agreement.from_bytes, (log.agreement([2, 5], KEY).to_bytes(),), back=Agreement.to_bytes
    )
    chunk = Chunk(1, [bytes(32)], [(b"piece", [bytes(32)] * 2)] * 3)
    opening = Opening((Sharer("bonn", b""), Sharer("cork", b"\1\2")), (bytes(32),) * 2)
    answer = Audit(bytes(32), b"keys", opening, [chunk, chunk])
    yield Target("seal.opening", Opening.from_bytes, (opening.to_bytes(),), back=Opening.to_bytes)
    yield Target("seal.chunk", Chunk.from_bytes, (chunk.to_bytes(),), back=Chunk.to_bytes)
    yield Target("seal.audit", Audit.from_bytes, (answer.to_bytes(),), back=Audit.to_bytes)


def job_targets() -> Iterator[Target]:
    policy = Policy(datasets=("heart",))
    honest = [job.to_bytes() for job in jobs()]

    def announced(data: bytes) -> object:
        return decide_job(policy, cl.Job.from_bytes(data), "lee")

    for number, data in enumerate(honest):
        yield from bundle_targets(f"job.bundle-{number}", announced, [data])


def wire_targets() -> Iterator[Target]:
    envelope = sign_envelope(KEY, Envelope("keys", "bonn", "hub", "0" * 32, 3, 9, b"body"))
    header = fields(envelope[:-64])[0]

    def opened(data: bytes) -> Envelope:
        return open_envelope(data, lambda sender: KEY.public, "hub")

    def signed(changed: bytes) -> bytes:
        body = lp(changed) + lp(b"body")
        return body + KEY.sign("cloister/v1/envelope", body)

    yield Target("wire.envelope", opened, (envelope,))
    yield Target("wire.envelope/header", opened, (header,), signed)
    who = Member("lee", KEY.public)
    roster = Roster("tests", 1, ZERO32, (ZERO32,), 1, (Member("hub", b"h" * 32),), (), (who,))
    submission = canonical({"type": "submit", "from": "lee", "to": "hub", "run": "00" * 16, "round": 0, "seq": 7})
    yield Target(
        "round.submission",
        lambda data: check_submission(data, b"job", bytes(16), roster),
        (submission,),
        lambda header: lp(header) + lp(KEY.sign(ENVELOPE, lp(header) + lp(b"job"))),
    )
    yield Target("wire.split", split, (lp(envelope) * 2,))
    code = Invitation("https://hub:1", "tests", "site", "bonn", b"t" * 16, b"c" * 32, b"r" * 32).encode()
    yield Target("wire.invitation", lambda data: Invitation.decode(data.decode("latin-1")), (code.encode(),))
    run, hexes = "0" * 32, "0" * 64
    bodies: list[api.Body] = [
        api.Enroll(token=run, id="bonn", role="site", key=hexes, proof=hexes * 2),
        api.Poll(after=1, hold=2.0),
        api.Catalogue(datasets={"heart": {"age": "number"}}),
        api.Missing(missing=[hexes]),
        api.Refusal(error="TaskError", message="no"),
        api.JobNotice(run=run, job=hexes, submission=hexes, roster=1, analyst="lee"),
        api.Void(reason="none"),
        api.Done(status="done"),
        api.RunRef(run=run),
        api.EntryRef(receipt=hexes, since=3),
        api.Challenge(run=run, round=1, nonce=hexes, count=9),
        api.Watch(run=run, after=0, hold=1.0),
    ]
    for body in bodies:
        yield Target(f"wire.{type(body).__name__}", type(body).from_bytes, (body.to_bytes(),))
    problem = json.dumps({"type": "x", "title": "t", "status": 400, "detail": "d", "error": "BadShare"}).encode()
    yield Target("wire.problem", lambda data: api.error_of(data, 400), (problem,))
    opened = {"round": 1, "total": hexes, "keylist": None, "consistency": hexes, "kept": True}
    result = {"run": run, "status": "done", "job": hexes, "submission": hexes, "state": None}
    answers: dict[str, tuple[object, object]] = {
        "Submitted": (api.Submitted, {"run": run}),
        "Status": (api.Status, {"runs": [{"run": run, "status": "done"}]}),
        "RunResult": (api.RunResult, {**result, "receipts": [hexes], "rounds": [opened]}),
        "Happened": (list[api.Happened], [{"number": 1, "event": "round", "sites": 3}]),
    }
    for name, (kind, answer) in answers.items():
        yield Target(f"wire.{name}", lambda data, kind=kind: api.told(kind, data), (canonical(answer),))
    yield Target("round.evidence", _verified, (canonical({"roots": [KEY.public.hex()], "quorum": 1}), ZERO32))


def _verified(data: bytes) -> object:
    """Evidence whose every file is the same junk: `verify` finds, and raises nothing."""
    files = dict.fromkeys(("job.bundle", "state.bundle", "receipts/00000.receipt", "log/leaves"), data)
    files |= {"trust.json": data if data[:1] == b"{" else b'{"roots":[],"quorum":1}', "log/x.checkpoint": data}
    evidence = Evidence.from_files(
        {**files, "rosters/00001.roster": data, "audits/00000-" + "0" * 64 + ".audit": data}
    )
    again = Evidence((KEY.public,), 1, (data,), data, data, (RoundEvidence(data, data, data, {"": data}),))
    return verify(evidence), verify(again)


def site_targets() -> Iterator[Target]:
    """What a site reads besides messages: its worker's frames, its own settings, its own statements."""
    awaited = {framing.Kind.READY: 1 << 10, framing.Kind.FAULT: 1 << 10}
    frame = b"".join(framing.encode(framing.Kind.READY, b'{"walls":[],"warnings":[]}'))
    yield Target("site.frame", _frame(awaited), (frame,))
    yield Target(
        "site.facts", lambda data: facts_of(data, walls=list, warnings=list), (frame[framing.HEADER.size :],)
    )
    fault = canonical({"error": "DataError", "message": "no such column", "mend": "correct it"})
    yield Target("site.fault", lambda data: fault_of(data, "kent", believed=True), (fault,))
    settings = {"id": "kent", "federation": "tests", "coordinator": "https://hub:1", "data": {"heart": "heart.csv"}}
    texts: dict[str, tuple[str, Callable[[str], object]]] = {
        "policy": (policy_toml(["heart"]), PolicyFile.parse),
        "settings": (site_toml(settings), lambda text: parse_toml(text, "site.toml", SiteSettings)),
    }
    for name, (text, parse) in texts.items():
        yield Target(f"site.{name}", lambda data, parse=parse: parse(data.decode("latin-1")), (text.encode(),))
    yield Target("site.pinned", _pinned, (canonical({"certificate": "PEM", "root_key": "00" * 32}),))
    charge = ledger.Charge("00" * 32, "heart", "rows", (Event(1.0, 0.5, 3),), "00" * 16, 2, "00" * 32)
    yield Target("site.ledger", lambda data: ledger._read(1, data, ZERO32), (charge.body(1, "2026-01-01"),))
    body = canonical({"site": "kent", "accounts": [{"name": "heart", "events": events_as_json([Event(1.0)])}]})
    yield Target(
        "site.budget",
        lambda data: open_export(data, KEY.public),
        (body,),
        lambda body: lp(body) + lp(KEY.sign(BUDGET, body)),
    )


def _frame(awaited: framing.Limits) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        try:
            return framing.read(io.BytesIO(data), awaited)
        except EOFError:  # the worker is gone: `Worker.exchange` says so
            return None

    return read


def _pinned(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pinned.json").write_bytes(data)
        return SiteFolder(Path(folder)).pinned()


def privacy_targets() -> Iterator[Target]:
    yield Target(
        "privacy.events",
        lambda data: events_from_json(_parsed(data)),
        (canonical(events_as_json([Event(1.0, 0.5, 3), Event(2.0)])),),
    )
    for privacy in (cl.RowDP(epsilon=4, delta=1e-5, clip=0.7), cl.SiteDP(epsilon=8, delta=1e-5, clip=0.5)):
        job = cl.Job(
            data=cl.Table("clouds", target="y"),
            prepare=[cl.Standardize(ranges={"a": (-4.0, 4.0)})],
            task=cl.Torch(cl.nets.MLP([2]), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=30),
            algorithm=cl.FedAvg(rounds=1),
            privacy=privacy,
        )
        query = _trained(job)
        assert private.check(job, query), "an honest question costs something"
        check = lambda data, job=job: private.check(job, Query.from_bytes(data))  # noqa: E731
        yield from bundle_targets(f"round.private-{type(privacy).__name__}", check, [query.to_bytes()])


def _parsed(data: bytes) -> object:
    """JSON comes inside of what its caller has parsed."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _trained(job: cl.Job) -> Query:
    """The job's first question to train a model."""
    program = Program(job, {"a": "number"})
    state = program.start()
    while (query := program.ask(state)) is not None and query.task != "train":
        coder = FixedPoint(query.sealed_layout, 5)
        values = {block.name: np.ones(block.shape) for block in query.layout.blocks}
        words = sum(contribute(Answer(40, values), query, coder).astype(coder.dtype) for _ in range(5))
        state = program.learn(state, open_total(query, coder, words, 5))
    assert query is not None
    return query
