"""Room `seal`: the sealed sum. Secure aggregation after Bonawitz et al. 2017, sans-I/O; see docs/protocol.md."""

from cloister.seal import selftest
from cloister.seal.client import Journal, SealClient
from cloister.seal.messages import MaskedHeader, masked_header
from cloister.seal.server import SealServer
from cloister.seal.state import Phase, SitePhase

__all__ = ["Journal", "MaskedHeader", "Phase", "SealClient", "SealServer", "SitePhase", "masked_header"]

selftest.check()  # before any key can be made
