"""A steward's verdicts on jobs: signed with the site's key, one file each; the newest counts.

    verdicts/DIGEST    LP(body) || LP(signature)      body: canonical JSON {"job", "verdict", "reason", "at"}
    jobs/DIGEST        the bundle of a job that was announced here, to be read and compared

The agent reads a verdict anew for every decision, so it holds at once. Each is in the log as well.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from cloister.seal.identity import Identity, verify
from cloister.seal.labels import VERDICT, fields, lp
from cloister.site.settings import SiteFolder, write_private
from cloister.vector import CloisterError, canonical

Word = Literal["approved", "denied"]


def record(here: SiteFolder, identity: Identity, job: str, verdict: Word, reason: str = "") -> dict[str, Any]:
    """Signs a verdict and makes it hold. Args: job: digest, hex. Returns: its fields, with the signature in hex."""
    said = {"job": job, "verdict": verdict, "reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    body = canonical(said)
    signature = identity.sign(VERDICT, body)
    here.verdicts.mkdir(exist_ok=True, mode=0o700)
    write_private(here.verdicts / job, lp(body) + lp(signature))
    return {**said, "signature": signature.hex()}


def verdict_on(here: SiteFolder, public: bytes, job: str) -> dict[str, Any] | None:
    """The newest verdict, None before the first and for a file that this site never signed. Args: job: hex."""
    try:
        body, signature = fields((here.verdicts / job).read_bytes())
        verify(public, VERDICT, body, signature)
        said: dict[str, Any] = json.loads(body)
    except (OSError, ValueError, CloisterError):
        return None
    return said if said["job"] == job else None
