"""Writes the frozen vectors of protocol version 1: `python tests/vectors/generate.py [--check]` (compares only).

Every round is made by the real machines from a deterministic stream of "randomness", so the files hold every secret
of a round beside every message of it. Once released they never change: another byte would be another version.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.seal import derive, shamir
from cloister.seal.graph import Degree, draw, mark
from cloister.seal.log import Agreement, Log
from cloister.seal.masks import add_mask
from cloister.seal.merkle import root_of
from cloister.seal.messages import Ciphertexts, Consistency, KeyList, Keys, Open, Sharer, Survivors
from cloister.seal.receipt import open_receipt, sign_receipt
from cloister.vector.errors import PeerError

FOLDER = Path(__file__).resolve().parent / "v1"
CONFTEST = Path(__file__).resolve().parents[1] / "seal" / "conftest.py"
STATE = bytes(range(32))  # digest of the state after the round
REFUSED = {
    "sites": 4,
    "size": 5,
    "seed": "bad",
    "carried": {"basel": 2, "cork": 3, "delft": 3},
    "charges": {"delft": 5},
}
ROUNDS: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    "round-4-sites-1-lost": ({"sites": 4, "size": 5}, {"masked": ["cork"]}),
    "round-5-sites-20-bits": (
        {
            "sites": 5,
            "size": 4,
            "bits": 20,
            "carried": {"amsterdam": 2, "cork": 5, "delft": 5},
            "charges": {"cork": 7},
        },
        {"keys": ["basel"]},
    ),
    "round-6-sites-64-bits": ({"sites": 6, "size": 2, "bits": 64}, {"shares": ["delft"]}),
    "round-10-sites-2-buckets": ({"sites": 10, "size": 3, "buckets": 2}, {"masked": ["cork"], "shares": ["jena"]}),
    "round-39-sites-sparse": ({"sites": 39, "size": 3, "bits": 24, "graph": "sparse-80-20"}, {"masked": ["izola"]}),
}


def _rig() -> Any:
    spec = importlib.util.spec_from_file_location("seal_rig", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["seal_rig"] = module
    spec.loader.exec_module(module)
    return module


def _secrets(drbg: Any, site: str, u1: tuple[str, ...], degree: Degree) -> dict[str, Any]:
    """What a site draws, in the order in which it draws it."""
    channel = drbg(32)
    sigma, beta = shamir.random_element(drbg), shamir.random_element(drbg)
    chosen = mark(draw(site, u1, degree.chosen, drbg), u1)
    coefficients = [[shamir.random_element(drbg) for _ in range(degree.threshold - 1)] for _ in range(2)]
    return {"channel": channel, "sigma": sigma, "beta": beta, "chosen": chosen, "coefficients": coefficients}


def round_vectors(name: str) -> dict[str, Any]:
    """One whole round: inputs, what is derived from them, every message, and the sum."""
    module = _rig()
    settings, lost = ROUNDS[name]
    rig = module.Rig(seed=name, **settings)
    inputs: dict[str, Any] = {
        "coordinator": rig.coordinator.to_bytes().hex(),
        "roster": rig.roster.to_bytes().decode(),
        "plan": rig.plan.to_bytes().decode(),
        "words": {site: [int(word) for word in rig.words[site]] for site in rig.names},
        "lost": lost,
        "previous": bytes(32).hex(),
        "state": STATE.hex(),
        "agreement": rig.agreement().hex(),
        "sites": {},
    }
    u1 = tuple(site for site in rig.names if site not in lost.get("keys", ()))
    degree = derive.round_degree(rig.plan, u1)
    secrets = {site: _secrets(module.Drbg(f"{name}/{site}"), site, u1, degree) for site in u1}
    for site, drawn in secrets.items():
        betas, sigmas = drawn["coefficients"]
        inputs["sites"][site] = {
            "identity": rig.identities[site].to_bytes().hex(),
            "checkpoint": rig.notes[site].hex(),
            "charge": rig.charges.get(site, 0),
            "channel": drawn["channel"].hex(),
            "sigma": shamir.to_bytes(drawn["sigma"]).hex(),
            "beta": shamir.to_bytes(drawn["beta"]).hex(),
            "chosen": drawn["chosen"].hex(),
            "beta_coefficients": [shamir.to_bytes(value).hex() for value in betas],
            "sigma_coefficients": [shamir.to_bytes(value).hex() for value in sigmas],
        }
    messages = _messages(rig, lost)
    total = rig.server.total(rig.read)
    sum_roots = [root_of(part.tobytes()) for part in total.astype(total.dtype.newbyteorder("<"))]
    messages["receipt"] = rig.server.receipt(sum_roots, STATE).hex()
    return {
        "version": "cloister/v1",
        "inputs": inputs,
        "derived": _derived(rig, secrets),
        "messages": messages,
        "payloads": {site: payload.hex() for site, payload in rig.payloads.items()},
        "total": total.tolist(),
        "sum_roots": [root.hex() for root in sum_roots],
    }


def _messages(rig: Any, lost: dict[str, list[str]]) -> dict[str, Any]:
    """Runs the round; returns each message in hex, by kind, and where they differ by the site that sent or got it."""
    found: dict[str, Any] = {"open": rig.server.open().hex()}
    close, give = rig.close, rig.give

    def closing() -> dict[str, bytes]:
        phase = rig.server.phase.value
        mail: dict[str, bytes] = close()
        kind = {"keys": "list-of-keys", "shares": "ciphertexts", "masked": "survivors", "consistent": "consistency"}
        if phase in kind:
            sent = {site: data.hex() for site, data in mail.items()}
            found[kind[phase]] = sent if phase == "shares" else sent[min(sent)]
            assert phase == "shares" or len(set(sent.values())) == 1
        return mail

    def giving(site: str, data: bytes) -> None:
        found.setdefault(rig.server.phase.value, {})[site] = data.hex()
        give(site, data)

    rig.close, rig.give = closing, giving
    rig.run(lost)
    return found


def _derived(rig: Any, secrets: dict[str, Any]) -> dict[str, Any]:
    """The values on the way, of the first two sharers and the pair of them, for who looks for an error."""
    server, context = rig.server, rig.server.context
    one, other = server.u2[:2]
    h1 = server._h1
    channel = X25519PrivateKey.from_private_bytes(secrets[one]["channel"])
    shared = derive.exchange(channel, server._keys[other].channel, other)
    mask = derive.mask_private_key(secrets[one]["sigma"], context)
    pair = derive.pair_seed(derive.exchange(mask, server._keys[other].mask, other), context, h1, one, other)
    stream = rig.words[one][:0].copy()
    stream.resize(64 // stream.itemsize)
    add_mask(stream, pair)
    return {
        "context": context.hex(),
        "h1": h1.hex(),
        "u2": server._u2_digest.hex(),
        "u3": server._u3_digest.hex(),
        "one": one,
        "other": other,
        "z": shared.hex(),
        "channel_key_one_to_other": derive.channel_key(shared, h1, one, other).hex(),
        "self_seed_one": derive.self_seed(secrets[one]["beta"], context, one).hex(),
        "pair_seed": pair.hex(),
        "pair_stream_64_bytes": stream.astype(stream.dtype.newbyteorder("<")).tobytes().hex(),
    }


# Messages that must be refused --------------------------------------------------------------------------------------


def bad_vectors() -> list[dict[str, str]]:
    """Each: a message that `site` (or the coordinator, from `site`) must refuse with `error` when `phase` begins."""
    module = _rig()

    def rig(phase: str) -> Any:
        made = module.Rig(**REFUSED)
        if phase == "receipt":
            made.run()
        elif phase != "open":
            made.upto(phase)
        return made

    found = []
    for phase, name, lie in LIES:
        federation = rig(phase)
        data = lie(federation)
        client = federation.clients["cork"]
        try:
            client.open(data) if phase == "open" else client.receive(data)
        except PeerError as fault:
            entry = {"name": name, "phase": phase, "site": "cork", "error": fault.name, "message": data.hex()}
            found.append(entry)
        else:
            raise AssertionError(f"{name!r} was taken")
    return found


def _lie(kind: Any, change: Callable[[Any, Any], dict[str, Any]]) -> Callable[[Any], bytes]:
    """A message of the coordinator with some fields changed, and signed again."""

    def lie(rig: Any) -> bytes:
        truth = kind.from_bytes(rig.server.open() if kind is Open else rig.mail["cork"])
        signed: bytes = replace(truth, **change(rig, truth)).signed(rig.coordinator).to_bytes()
        return signed

    return lie


def _raw(change: Callable[[bytes], bytes]) -> Callable[[Any], bytes]:
    return lambda rig: change(rig.mail["cork"])


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _plan(**changes: Any) -> Callable[[Any], bytes]:
    return _lie(Open, lambda rig, truth: {"plan": replace(rig.plan, **changes).to_bytes()})


def _receipt(**changes: Any) -> Callable[[Any], bytes]:
    def lie(rig: Any) -> bytes:
        truth = open_receipt(rig.server.receipt([bytes(32)], STATE), rig.coordinator.public)
        return sign_receipt(replace(truth, **changes), rig.coordinator)

    return lie


def _other_key(rig: Any, truth: KeyList) -> dict[str, Any]:
    own = next(entry for entry in truth.entries if entry.site == "cork")
    forged = replace(own, channel=bytes([9] * 32)).signed(rig.identities["cork"])
    return {"entries": tuple(forged if entry is own else entry for entry in truth.entries)}


def _older_head(rig: Any, truth: KeyList) -> dict[str, Any]:
    return {"agreement": Agreement(rig.notes["basel"], {}).to_bytes()}


def _forked(rig: Any, truth: KeyList) -> dict[str, Any]:
    """The coordinator showed another site another log than the one whose head is in the agreement."""
    fork = Log(rig.receipts.origin, [bytes(32)])
    told = replace(truth.entries[0], checkpoint=fork.sign(rig.coordinator)).signed(rig.identities["amsterdam"])
    return {"entries": (told, *truth.entries[1:]), "agreement": Agreement(rig.notes["cork"], {1: []}).to_bytes()}


def _low_order(rig: Any, truth: KeyList) -> dict[str, Any]:
    weak: Keys = replace(truth.entries[0], mask=bytes([1] + [0] * 31)).signed(rig.identities["amsterdam"])
    return {"entries": (weak, *truth.entries[1:])}


def _restored(rig: Any, truth: KeyList) -> dict[str, Any]:
    """A site's ledger was put back, and the coordinator lets it by."""
    older = replace(truth.entries[3], charge=4).signed(rig.identities["delft"])
    return {"entries": (*truth.entries[:3], older)}


ESSEN = Sharer("essen", bytes([15]))


def _rechosen(sharers: tuple[Sharer, ...], site: str) -> tuple[Sharer, ...]:
    """U2 with fewer chosen ones of one site."""
    return tuple(Sharer(each.site, bytes([7])) if each.site == site else each for each in sharers)


LIES: list[tuple[str, str, Callable[[Any], bytes]]] = [
    ("open", "bad_open_threshold", _plan(threshold=2)),
    ("open", "bad_open_cohort", _plan(sites=("amsterdam", "basel", "delft"), threshold=3)),
    ("open", "bad_open_federation", _plan(federation="others")),
    ("open", "bad_open_context", _plan(round=9)),
    ("open", "bad_open_roster", _lie(Open, lambda rig, truth: {"roster": bytes(32)})),
    ("open", "bad_open_receipt", _lie(Open, lambda rig, truth: {"previous": bytes([1] * 32)})),
    ("shares", "bad_list_signature", _raw(_flipped)),
    ("shares", "bad_list_cut", _raw(lambda data: data[:-1])),
    ("shares", "bad_list_without_me", _lie(KeyList, lambda rig, truth: {"entries": truth.entries[:2]})),
    ("shares", "bad_list_other_key", _lie(KeyList, _other_key)),
    ("shares", "bad_list_low_order", _lie(KeyList, _low_order)),
    ("shares", "bad_list_no_log", _lie(KeyList, lambda rig, truth: {"agreement": b""})),
    ("shares", "bad_list_old_log", _lie(KeyList, _older_head)),
    ("shares", "bad_list_other_log", _lie(KeyList, _forked)),
    ("shares", "bad_list_old_ledger", _lie(KeyList, _restored)),
    ("shares", "bad_list_other_round", _lie(KeyList, lambda rig, truth: {"context": bytes(32)})),
    ("masked", "bad_ciphertexts_swapped", _lie(Ciphertexts, lambda r, t: {"ciphertexts": t.ciphertexts[::-1]})),
    ("masked", "bad_ciphertexts_recipient", lambda rig: rig.mail["basel"]),
    ("masked", "bad_ciphertexts_few", _lie(Ciphertexts, lambda r, t: {"ciphertexts": t.ciphertexts[1:]})),
    ("masked", "bad_ciphertexts_sharers", _lie(Ciphertexts, lambda r, t: {"sharers": (*t.sharers, ESSEN)})),
    ("masked", "bad_ciphertexts_choice", _lie(Ciphertexts, lambda r, t: {"sharers": _rechosen(t.sharers, "cork")})),
    ("masked", "bad_ciphertexts_others", _lie(Ciphertexts, lambda r, t: {"sharers": _rechosen(t.sharers, "basel")})),
    ("consistent", "bad_survivors_few", _lie(Survivors, lambda r, t: {"entries": t.entries[1:3]})),
    ("consistent", "bad_survivors_without_me", _lie(Survivors, lambda r, t: {"entries": t.entries[:2]})),
    ("consistent", "bad_survivors_list", _lie(Survivors, lambda r, t: {"h1": bytes(32)})),
    ("unmask", "bad_consistency_few", _lie(Consistency, lambda r, t: {"entries": t.entries[:2]})),
    ("unmask", "bad_consistency_set", _lie(Consistency, lambda r, t: {"u3": bytes(32)})),
    ("receipt", "bad_receipt_chain", _receipt(previous=bytes([1] * 32))),
    ("receipt", "bad_receipt_list", _receipt(h1=bytes(32))),
]


def build() -> dict[str, Any]:
    """The content of every file, by its name."""
    return {**{f"{name}.json": round_vectors(name) for name in ROUNDS}, "bad.json": bad_vectors()}


def main() -> int:
    for name, content in build().items():
        path, text = FOLDER / name, json.dumps(content, indent=1) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif path.read_text() != text:
            print(f"{path} differs: the protocol has changed its bytes")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
