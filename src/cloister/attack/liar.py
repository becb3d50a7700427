"""A coordinator that lies: the real one, with its seal machine replaced at the one seam where the hub makes it.

`LyingHub` is the product's hub. It makes a `Watched` machine for each round, which is the product's `SealServer`
writing down what passes, or a `Lie`, which changes what single sites are shown. The HTTP interface, the mailboxes,
the database, the driving of the phases and the retries are the product's own.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from cloister.attack.record import Record
from cloister.coordinator.blobs import BlobFolder
from cloister.coordinator.folder import COORDINATOR, Folder
from cloister.coordinator.hub import Hub, Patience
from cloister.coordinator.log import ReceiptLog
from cloister.coordinator.store import Tx
from cloister.coordinator.uploads import stored
from cloister.seal import derive, labels
from cloister.seal.charges import Charges
from cloister.seal.log import Log
from cloister.seal.merkle import leaf_hash
from cloister.seal.messages import (
    KINDS,
    Ciphertexts,
    Consistency,
    KeyList,
    Masked,
    Message,
    Open,
    Survivors,
    label_of,
)
from cloister.seal.plan import Plan
from cloister.seal.roster import Roster
from cloister.seal.server import Read, SealServer
from cloister.seal.state import Phase
from cloister.vector.errors import CloisterError, UsageError, error_names
from cloister.vector.layout import Words

LIES_PER_QUESTION = 2  # of the three rounds that a coordinator spends on one; the third is true, so that runs go on
LETTERS = {Open: "open", KeyList: "keylist", Ciphertexts: "ciphertexts", Survivors: "survivors"}
LETTERS |= {Consistency: "consistency"}
SEALED = (*LETTERS.values(), "receipt")


class Watched(SealServer):
    """The real machine of one round, and a record of everything that it says and hears.

    Attributes: record. hub: for lies that reach further. told: the sites that were shown something untrue.
    """

    hub: LyingHub
    act = 0
    claimed: Words | None = None  # the sum that it says was opened

    def begin(self, hub: LyingHub, act: int) -> None:
        self.hub, self.act = hub, act
        self.record = Record(self.plan)
        self.told: set[str] = set()

    def receive(self, site: str, data: bytes) -> None:
        message = self.record.note_heard(site, data)
        if isinstance(message, Masked):
            parts = [self.hub.parts.read(stored(message.context, part.hex())) for part in message.parts]
            self.record.payloads[site] = b"".join(parts)
        super().receive(site, data)

    def total(self, read: Read, threads: int = 1) -> Words:
        self.record.opened = super().total(read, threads)
        self.claimed = self.claim(self.record.opened)
        return self.claimed

    def claim(self, opened: Words) -> Words:
        """The sum that the coordinator says was opened, and learns from."""
        return opened

    def shown(self, type: str, site: str, body: bytes) -> tuple[str, bytes]:
        """What a letter of this round to this site really says: (type, body)."""
        return type, body


class Lie(Watched):
    """One lie. A subclass overrides what a site is shown: `open_to`, `keylist_to` ... and says in its docstring:

        What the coordinator tries, in one line.

        Fails: why that must fail. Refused as: NameOfAnError[, NameOfAnother].

    Attributes: rounds: how many it takes. shows: whether sites are shown something untrue; what no site can see is
      found by `verify` afterwards. spoils_run: no sum of the run can open after it, so it is told in the first
      question of a run of its own; the others when a model is trained, one after the other. lasts: sites remember it
      in later runs too, so it is told in the last run.
    """

    rounds: ClassVar[int] = 1
    spoils_run: ClassVar[bool] = False
    lasts: ClassVar[bool] = False
    shows: ClassVar[bool] = True

    @property
    def victim(self) -> str:
        """The site that it aims at, where it aims at one."""
        return self.plan.sites[0]

    # what sites are shown; the true message unless overridden

    def open_to(self, site: str, message: Open) -> Message:
        return message

    def keylist_to(self, site: str, message: KeyList) -> Message:
        return message

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        return message

    def survivors_to(self, site: str, message: Survivors) -> Message:
        return message

    def consistency_to(self, site: str, message: Consistency) -> Message:
        return message

    def receipt_to(self, site: str, data: bytes) -> bytes:
        return data

    # the machinery of lying

    def shown(self, type: str, site: str, body: bytes) -> tuple[str, bytes]:
        if type == "receipt":
            lie = self.receipt_to(site, body)
        else:
            change: Callable[[str, Any], Message] = getattr(self, f"{type}_to")
            message = change(site, KINDS[label_of(body)].from_bytes(body))
            type, lie = LETTERS[message.__class__], self.signed(message)
        if lie != body:
            self.told.add(site)
        return type, lie

    def signed(self, message: Message) -> bytes:
        """The coordinator signs whatever it wants."""
        return message.signed(self._identity).to_bytes()

    def tell(self, site: str, type: str, body: bytes) -> None:
        """A letter out of turn."""
        self.told.add(site)
        self.record.note_sent(site, type, body)
        letter = self.hub.true_letter(type, site, *self.record.key, body)

        def send() -> None:
            def write(tx: Tx) -> None:
                tx.mail(site, letter)

            self.hub.store.run_tx("lie", write)

        self.hub.loop.call_soon_threadsafe(send)

    def opened_with(self, plan: Plan, previous: bytes | None = None) -> Open:
        """Message 0 of another plan, or on another receipt."""
        previous = self._previous if previous is None else previous
        context = derive.round_context(plan, self._roster.digest, previous)
        return Open(context, self._roster.digest, previous, plan.to_bytes())

    def receive(self, site: str, data: bytes) -> None:
        """A liar takes whatever answers its lies, also what an honest coordinator would refuse."""
        try:
            super().receive(site, data)
        except CloisterError:
            holders: dict[str, tuple[Phase, dict[str, Any]]] = {
                labels.KEYS: (Phase.KEYS, self._keys),
                labels.SHARES: (Phase.SHARES, self._shares),
                labels.MASKED: (Phase.MASKED, self._masked),
                labels.CONSISTENT: (Phase.CONSISTENT, self._consistent),
                labels.UNMASK: (Phase.UNMASK, self._unmask),
            }
            label = label_of(data)
            phase, held = holders[label]
            if phase is self.phase:
                held[site] = KINDS[label].from_bytes(data)


class Script:
    """Which lie is told in which round; every other round is true.

    Attributes: rounds: the machines by (run, round).
    """

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, int], Watched] = {}
        self._queue: deque[type[Lie]] = deque()
        self._acting: tuple[type[Lie], int, bytes] | None = None  # a lie that goes on, its next act, its run
        self._asked: Counter[tuple[bytes, bytes]] = Counter()  # lies in a run, by the question's digest

    def load(self, lies: Iterable[type[Lie]]) -> None:
        self._queue.extend(lies)

    @property
    def empty(self) -> bool:
        """Whether every lie has begun its last round."""
        return not self._queue and self._acting is None

    def clear(self) -> None:
        self._queue.clear()
        self._acting = None

    def next(self, plan: Plan) -> tuple[type[Watched], int]:
        """The machine for a new round, and which act of its lie this is."""
        if self._acting is not None and self._acting[2] == plan.run:
            kind, act, _ = self._acting
        elif self._queue and self._fits(self._queue[0], plan):
            kind, act = self._queue.popleft(), 0
        else:
            return Watched, 0
        self._asked[plan.run, plan.query] += 1
        self._acting = (kind, act + 1, plan.run) if act + 1 < kind.rounds else None
        return kind, act

    def _fits(self, kind: type[Lie], plan: Plan) -> bool:
        asked = self._asked[plan.run, plan.query] + min(kind.rounds, LIES_PER_QUESTION)
        task = "profile" if kind.spoils_run else "train"
        return plan.algorithm.endswith(f".{task}") and asked <= LIES_PER_QUESTION


class LyingBlobs(BlobFolder):
    """Attributes: swapped: digest (hex) -> the digest of the bytes that are handed out in its place."""

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.swapped: dict[str, str] = {}

    def path(self, name: str) -> Any:
        return super().path(self.swapped.get(name, name))


class LyingLog(ReceiptLog):
    """Attributes: hidden: receipts (digest, hex) of which it says that it has no place. forked: a receipt whose place
    it shows in another log to whoever asks first."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub.store, hub.folder.federation, hub.identity)
        self.hidden: set[str] = set()
        self.forked = ""

    def entry(self, receipt: str, since: int) -> bytes:
        if receipt in self.hidden:
            raise UsageError("the log does not hold this receipt.")
        if receipt != self.forked:
            return super().entry(receipt, since)
        self.forked, log = "", self._current()
        fork = Log(log.origin, [*log.leaves[:-1], leaf_hash(b"a receipt that the others never see"), log.leaves[-1]])
        return fork.entry(len(log.leaves), since, self._identity).to_bytes()


class LyingHub(Hub):
    """The coordinator's hub, with a script. To be made inside the event loop that serves it."""

    def __init__(self, folder: Folder, patience: Patience, script: Script) -> None:
        super().__init__(folder, patience)
        self.script, self.loop = script, asyncio.get_running_loop()
        self.lying_blobs = self.blobs = LyingBlobs(folder.path / "blobs")
        self.lying_log = self.log = LyingLog(self)

    def seal_server(self, plan: Plan, roster: Roster, previous: bytes, charges: Charges) -> SealServer:
        self.lying_blobs.swapped.clear()
        known = self.script.rounds.get((plan.run.hex(), plan.round))  # made anew after a failed write
        kind, act = (type(known), known.act) if known else self.script.next(plan)
        machine = kind(plan, roster, self.identity, COORDINATOR, previous, charges)
        if act == 0:
            self.lying_log.hidden.clear()
        machine.begin(self, act)
        self.script.rounds[machine.record.key] = machine
        return machine

    def letter(self, type: str, site: str, run: str, round: int, body: bytes) -> Callable[[int], bytes]:
        machine = self.script.rounds.get((run, round))
        if machine is not None and type in SEALED:
            type, body = machine.shown(type, site, body)
            machine.record.note_sent(site, type, body)
        return self.true_letter(type, site, run, round, body)

    def true_letter(self, type: str, site: str, run: str, round: int, body: bytes) -> Callable[[int], bytes]:
        return super().letter(type, site, run, round, body)


def docstring_of(kind: type) -> tuple[str, str, tuple[str, ...]]:
    """(what it tries, why it must fail, the names under which it may be refused), from a lie's docstring.

    Raises: ValueError: the docstring is not of that form, or names an error that does not exist.
    """
    text = " ".join((kind.__doc__ or "").split())
    found = re.fullmatch(r"(.+?) Fails: (.+) Refused as: ([\w, ]+)\.", text)
    if not found:
        raise ValueError(f"{kind.__name__} does not say what it tries, why it fails and how it is refused")
    names = tuple(found[3].split(", "))
    if unknown := [name for name in names if name not in error_names()]:
        raise ValueError(f"{kind.__name__}: there is no error {unknown}")
    return found[1], found[2], names


def name_of(kind: type) -> str:
    """`SurvivorAndDropped` is the attack "survivor-and-dropped"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
