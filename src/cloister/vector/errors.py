"""Every error of cloister, in one tree.

    CloisterError
    ├── LocalError                 you did wrong: exit code 2
    │   ├── UsageError             a command, option or setting
    │   ├── JobError               the job file or its manifest
    │   ├── DataError              a site's table does not fulfil the contract
    │   ├── LayoutError            names, shapes, dtypes of a vector do not match its layout
    │   ├── BoundError             the sum could wrap: too many sites, too few bits, too large a bound
    │   ├── PolicyRefused          a rule of the site's policy says no (carries the rule)
    │   ├── InvitationError        an invitation that is wrong, spent or expired
    │   ├── AddressInUse           the port is taken
    │   └── ReusedSecret           a secret of one round was about to serve twice
    ├── TaskError                  the training code raised, or its numbers are not finite
    ├── EnvironmentFailure         ours or the machine's: exit code 1
    │   ├── Unreachable            the coordinator (or a site) does not answer
    │   ├── StorageFull            the disk is full
    │   ├── StateLocked            another process works on this folder
    │   └── WorkerDied             the training process ended without an answer
    └── PeerError                  another party's message was refused; names the party where it can
        ├── MalformedMessage       bytes that do not parse
        ├── BadSignature           not signed by whom it says
        ├── NotInRoster            an identity that the root never signed
        ├── RosterRefused          a roster that does not follow from the pinned one
        ├── UnexpectedMessage      out of phase, or for another recipient
        ├── DuplicateMessage       a second, different answer in the same phase
        ├── ContextMismatch        another federation, plan, round, model or receipt
        ├── EnvelopeReplayed       an envelope whose number was used before
        ├── RoundReplayed          a round number that was used before
        ├── StaleReceipt           the receipt chain is broken or forked
        ├── PlanRefused            the plan contradicts itself or the site's limits
        ├── TooFewSites            fewer sites than a sum may have (n = 2 is refused)
        ├── ThresholdTooLow        a threshold under the one the site computed itself
        ├── LedgerRolledBack       a site's privacy ledger that lacks charges which were seen before
        ├── KeyListConflict        the key list omits or alters this site, or repeats a key
        ├── BadCiphertext          a share that does not open, or for someone else
        ├── BadShare               a share that contradicts the commitment; names the culprit
        ├── SurvivorSetConflict    a second survivor set in one round, or one that is not a subset
        ├── TooFewSurvivors        fewer answers than the threshold: nothing is opened
        ├── MissingConsistency     not enough, or wrong, consistency signatures
        ├── BadUpload              a masked vector that is not the one signed for
        ├── BadSum                 an opened sum that is not that of the signed masked vectors
        ├── BadModel               a model or query that does not follow from the job and the opened sums
        └── RoundVoid              the round ended without a sum; nothing was opened

`exit_code` is what a command returns: 2 for the user's fault, 1 for ours or a peer's.
"""

from __future__ import annotations


class CloisterError(Exception):
    """Root of the tree. The message says what was wrong and where; `mend` says what to do.

    Args:
      message: one line, no data values of any row.
      mend: one line that names the way out; may be empty.
      site: the site that the error is about, where it is about one.
    """

    exit_code = 1

    def __init__(self, message: str, *, mend: str = "", site: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.site = site

    @property
    def name(self) -> str:
        """The stable name that documents, logs and the wire use."""
        return type(self).__name__

    def __str__(self) -> str:
        where = f"site {self.site}: " if self.site else ""
        return f"{where}{self.message}" + (f" {self.mend}" if self.mend else "")

    def as_json(self) -> dict[str, str]:
        """The error for machines: name, message, mend, site."""
        return {"error": self.name, "message": self.message, "mend": self.mend, "site": self.site}


class LocalError(CloisterError):
    exit_code = 2


class UsageError(LocalError):
    pass


class JobError(LocalError):
    pass


class DataError(LocalError):
    """`local_detail` (a line of the file, say) is for the steward's own log; it is in no message that leaves."""

    def __init__(self, message: str, *, mend: str = "", site: str = "", local_detail: str = "") -> None:
        super().__init__(message, mend=mend, site=site)
        self.local_detail = local_detail


class LayoutError(LocalError):
    pass


class BoundError(LocalError):
    pass


class PolicyRefused(LocalError):
    def __init__(self, message: str, *, rule: str, mend: str = "", site: str = "") -> None:
        super().__init__(message, mend=mend, site=site)
        self.rule = rule

    def as_json(self) -> dict[str, str]:
        return {**super().as_json(), "rule": self.rule}


class InvitationError(LocalError):
    pass


class AddressInUse(LocalError):
    pass


class ReusedSecret(LocalError):
    pass


class TaskError(CloisterError):
    exit_code = 2


class EnvironmentFailure(CloisterError):
    pass


class Unreachable(EnvironmentFailure):
    pass


class StorageFull(EnvironmentFailure):
    pass


class StateLocked(EnvironmentFailure):
    pass


class WorkerDied(EnvironmentFailure):
    pass


class PeerError(CloisterError):
    pass


class MalformedMessage(PeerError):
    pass


class BadSignature(PeerError):
    pass


class NotInRoster(PeerError):
    pass


class RosterRefused(PeerError):
    pass


class UnexpectedMessage(PeerError):
    pass


class DuplicateMessage(PeerError):
    pass


class ContextMismatch(PeerError):
    pass


class EnvelopeReplayed(PeerError):
    pass


class RoundReplayed(PeerError):
    pass


class StaleReceipt(PeerError):
    pass


class PlanRefused(PeerError):
    pass


class TooFewSites(PeerError):
    pass


class ThresholdTooLow(PeerError):
    pass


class LedgerRolledBack(PeerError):
    pass


class KeyListConflict(PeerError):
    pass


class BadCiphertext(PeerError):
    pass


class BadShare(PeerError):
    pass


class SurvivorSetConflict(PeerError):
    pass


class TooFewSurvivors(PeerError):
    pass


class MissingConsistency(PeerError):
    pass


class BadUpload(PeerError):
    pass


class BadSum(PeerError):
    pass


class BadModel(PeerError):
    pass


class RoundVoid(PeerError):
    pass


def error_names() -> dict[str, type[CloisterError]]:
    """Every error class of the tree by its stable name, for decoding a refusal that came over the wire."""
    found: dict[str, type[CloisterError]] = {}
    queue: list[type[CloisterError]] = [CloisterError]
    while queue:
        kind = queue.pop()
        found[kind.__name__] = kind
        queue.extend(kind.__subclasses__())
    return found
