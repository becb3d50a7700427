"""As many dropouts as the threshold leaves room for, in every phase, and one more; and liars among those who stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloister.seal import Phase
from cloister.seal.graph import default_graph
from cloister.seal.identity import remembering
from cloister.seal.threshold import dropouts_survived, threshold
from cloister.vector.errors import RoundVoid, TooFewSurvivors

PHASES = ("keys", "shares", "masked", "consistent", "unmask")
COUNTED = PHASES[3:]  # who is lost in these is in the sum


def lost_in(federation: Any, phase: str, more: int = 0) -> dict[str, list[str]]:
    """The first n - t sites of the cohort, or some more, drop out before they answer in this phase."""
    n = len(federation.names)
    return {phase: list(federation.names[: dropouts_survived(n, threshold(n)) + more])}


@pytest.mark.parametrize("bits", [20, 64])
@pytest.mark.parametrize("phase", PHASES)
def test_as_many_as_the_threshold_leaves_may_be_lost_in_any_phase(rig: Any, phase: str, bits: int) -> None:
    federation = rig(sites=10, bits=bits)
    lost = lost_in(federation, phase)
    assert len(lost[phase]) == 3
    total = federation.run(lost)
    kept = federation.names if phase in COUNTED else [site for site in federation.names if site not in lost[phase]]
    assert federation.server.u3 == tuple(kept)
    assert np.array_equal(total, federation.expected(kept))


@pytest.mark.parametrize("phase", PHASES)
def test_one_more_voids_the_round_and_opens_nothing(rig: Any, phase: str) -> None:
    federation = rig(sites=10)
    with pytest.raises(TooFewSurvivors, match="Nothing was opened"):
        federation.run(lost_in(federation, phase, more=1))
    assert federation.server.phase is Phase.VOID
    with pytest.raises(RoundVoid):
        federation.server.total(federation.read)


@pytest.mark.parametrize("owner", ["basel", "cork"])
@pytest.mark.parametrize("liars", [["delft"], ["amsterdam", "jena"]])
def test_wrong_shares_of_a_lost_site_s_secret_too_are_corrected_and_blamed(
    rig: Any, owner: str, liars: list[str]
) -> None:
    """Of basel, who is lost, sigma is rebuilt; of cork, who survived, beta."""
    federation = rig(sites=10)
    give = federation.give

    def lying(site: str, data: bytes) -> None:
        give(site, data)
        if site in liars and federation.server.phase is Phase.UNMASK:
            said = federation.server._unmask[site]
            at = federation.server._graph.owners(site).index(owner)
            wrong = bytes([said.shares[at][0] ^ 1]) + said.shares[at][1:]
            shares = (*said.shares[:at], wrong, *said.shares[at + 1 :])
            federation.server._unmask[site] = type(said)(said.context, said.u3, site, shares)

    federation.give = lying
    total = federation.run({"masked": ["basel"]})
    assert np.array_equal(total, federation.expected(set(federation.names) - {"basel"}))
    blamed = federation.server.blamed
    assert {fault.site for fault in blamed} == set(liars)
    assert all(f"a secret of {owner!r}" in fault.message for fault in blamed)


def test_the_graph_that_many_sites_get_opens_with_a_tenth_lost(rig: Any) -> None:
    """The first cohort above the complete graph's, as a coordinator plans it."""
    sites = 129
    federation = rig(sites=sites, size=3, graph=default_graph(sites))
    gone = list(federation.names[::10])
    with remembering(set()):  # signatures that all sites verify
        total = federation.run({"masked": gone})
    assert federation.server._graph.degree.chosen < sites - 1, "not everybody shares with everybody"
    assert np.array_equal(total, federation.expected(set(federation.names) - set(gone)))
