"""The coordinator's tables. Each row's life is told in one line; docs/data-model.md draws them.

Migrations (Alembic) make them; a test holds the two equal.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()
ID, HEX = String(63), String(64)

# one row for each version, never changed
roster = Table(
    "roster",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("signed", LargeBinary, nullable=False),
)

# made by `invite`; spent by the first enrolment with its token, which is stored hashed
invitation = Table(
    "invitation",
    metadata,
    Column("token", HEX, primary_key=True),
    Column("id", ID, nullable=False),
    Column("role", String(16), nullable=False),
    Column("expires", Float, nullable=False),
    Column("spent", Boolean, nullable=False),
)

# a key that waits for the root's signature; gone once it is in the roster
enrolment = Table(
    "enrolment",
    metadata,
    Column("id", ID, primary_key=True),
    Column("role", String(16), nullable=False),
    Column("key", LargeBinary, nullable=False),
)

# what a member's envelopes were numbered so far (`wire.ReplayWindow`; seen in hex)
sender = Table(
    "sender",
    metadata,
    Column("id", ID, primary_key=True),
    Column("highest", BigInteger, nullable=False),
    Column("seen", Text, nullable=False),
)

# by a site's public key, the least number that it may say next for a charge of its privacy ledger (`seal.charges`)
charge = Table(
    "charge",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("least", BigInteger, nullable=False),
)

# what a site offers, as it last said
catalogue = Table(
    "catalogue",
    metadata,
    Column("site", ID, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

# signed envelopes for a site, until it acknowledges them
mailbox = Table(
    "mailbox",
    metadata,
    Column("site", ID, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

# the last number given in each mailbox, which outlives its messages
mailbox_head = Table(
    "mailbox_head",
    metadata,
    Column("site", ID, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# a submitted job. status: running -> done | failed | stopped. state: digest of the newest checkpoint
run = Table(
    "run",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job", HEX, nullable=False),
    Column("name", Text, nullable=False),
    Column("analyst", ID, nullable=False),
    Column("submission", HEX, nullable=False),
    Column("roster", Integer, nullable=False),
    Column("submitted", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("stopping", Boolean, nullable=False),
    Column("columns", Text, nullable=True),
    Column("state", HEX, nullable=True),
    Column("error", Text, nullable=True),
)

# a site that takes no part in a run, with its reason
run_refusal = Table(
    "run_refusal",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("site", ID, primary_key=True),
    Column("body", Text, nullable=False),
)

# outcome: open -> done | void. previous, receipt: digests of the run's receipts; blob: of the signed receipt
# total, keylist, consistency: digests of the opened sum and of messages 2 and 8; opening: the secrets rebuilt for it
# survivors: the ids in message 6, JSON, from when it was sent: until a sum opens, the run is bound to them
round = Table(
    "round",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("plan", LargeBinary, nullable=False),
    Column("previous", HEX, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("receipt", HEX, nullable=True),
    Column("blob", HEX, nullable=True),
    Column("started", Float, nullable=False),
    Column("total", HEX, nullable=True),
    Column("keylist", HEX, nullable=True),
    Column("consistency", HEX, nullable=True),
    Column("opening", LargeBinary, nullable=True),
    Column("survivors", Text, nullable=True),
)

# the log of all receipts: their leaf hashes, by place, which counts from 0; append-only. receipt: of the signed bytes
log = Table(
    "log",
    metadata,
    Column("place", Integer, primary_key=True),
    Column("leaf", LargeBinary, nullable=False),
    Column("receipt", HEX, nullable=False, unique=True),
)

# what happened in a round, in order: kind is "message" or "close" (told to the seal machine) or "gone" (a site will
# not answer any more); replayed after a crash
transcript = Table(
    "transcript",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("round", BigInteger, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("site", ID, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

# the signed header of a masked vector, from its arrival; dropped with the vector when the round is not kept any more
upload = Table(
    "upload",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("round", BigInteger, primary_key=True),
    Column("site", ID, primary_key=True),
    Column("header", LargeBinary, nullable=False),
)

# what analysts watch; append-only
event = Table(
    "event",
    metadata,
    Column("run", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
)
