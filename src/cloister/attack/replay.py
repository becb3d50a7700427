"""What `round.verify` finds in the evidence of a run whose coordinator altered what the sites cannot see at once.

The evidence is the best that the liar can show: its receipts, the sums that it says were opened, and honest proofs of
the vectors behind them (seal/audit.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from cloister.attack.liar import LyingHub, Watched
from cloister.round.evidence import Evidence, RoundEvidence
from cloister.round.verdict import Finding
from cloister.round.verify import verify
from cloister.seal import audit
from cloister.seal.audit import Audit
from cloister.seal.merkle import MerkleBuilder
from cloister.seal.messages import KeyList
from cloister.seal.receipt import open_receipt


def findings(hub: LyingHub, opened: Sequence[Watched]) -> tuple[Finding, ...]:
    """Args: opened: the run's rounds with a receipt, from the first to the one in question, in order."""
    run = hub.store.look(lambda tx: tx.run(opened[0].record.key[0]))
    last = open_receipt(opened[-1].record.receipts[0][1], hub.identity.public)
    state = last.state.hex() if hub.blobs.has(last.state.hex()) else run.state  # a made-up digest names no state
    assert state is not None
    evidence = Evidence(
        roots=hub.members.current.roots,
        quorum=hub.members.current.quorum,
        rosters=tuple(hub.store.look(lambda tx: tx.rosters_after(0))),
        job=hub.blobs.read(run.job),
        state=hub.blobs.read(state),
        rounds=tuple(_round(hub, machine) for machine in opened),
    )
    return verify(evidence).findings


def _round(hub: LyingHub, machine: Watched) -> RoundEvidence:
    signed = machine.record.receipts[0][1]
    receipt, claimed = open_receipt(signed, hub.identity.public), machine.claimed
    assert claimed is not None
    total = claimed.astype(claimed.dtype.newbyteorder("<")).tobytes()
    payloads, nonce = machine.record.payloads, os.urandom(audit.NONCE_BYTES)
    uploads = {site: _leaves(payloads[site]) for site in receipt.u3}
    chunks = [
        audit.prove(receipt, index, _leaves(total), uploads, _reader(payloads))
        for index in audit.challenge(receipt, nonce, audit.leaves(receipt))
    ]
    keys = next(message for _, message in machine.record.sent if isinstance(message, KeyList))
    answer = Audit(nonce, keys.to_bytes(), machine.opening(), chunks)
    return RoundEvidence(receipt=signed, total=total, audits={nonce.hex(): answer.to_bytes()})


def _leaves(data: bytes) -> list[bytes]:
    builder = MerkleBuilder()
    builder.update(data)
    return builder.leaves()


def _reader(payloads: Mapping[str, bytes]) -> audit.Read:
    return lambda site, offset, length: payloads[site][offset : offset + length]
