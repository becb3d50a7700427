"""Privacy of sites: noise shared inside the sealed sum, rotation, rounding, adaptive clips, central noise."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.privacy.conftest import make_job

import cloister as cl
from cloister.cli.evidence import read_evidence
from cloister.privacy.accounting import Event, events_from_json
from cloister.privacy.noise import Stream
from cloister.privacy.release import conditional_radius, deviation_of, grid, noisy_steps
from cloister.privacy.rotation import rotate, rotate_back
from cloister.round import private, verify
from cloister.round.contribute import contribute
from cloister.seal.threshold import colluders_tolerated, threshold
from cloister.vector import Answer, FixedPoint, Layout, Query, digest
from cloister.vector.errors import BoundError, ContextMismatch, JobError, LayoutError, UsageError
from cloister.vector.layout import Block, padded

SEED = "5e" * 32
SITE = cl.SiteDP(epsilon=8, delta=1e-3, clip=0.5)


def seeded(seed: int = 0):
    rng = random.Random(seed)
    return lambda count: rng.randbytes(count)


# --- rotation


@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_a_rotation_keeps_lengths_and_turns_back(size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    turned = rotate(values, SEED)
    assert turned.size == math.prod(padded(size))
    assert turned.size <= max(1.25 * size + 16, 32)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-5)
    np.testing.assert_allclose(rotate_back(turned.astype(np.float64), SEED, size), values, atol=1e-4)


def test_a_rotation_is_the_hadamard_matrix_and_spreads_a_spike() -> None:
    pieces, piece = padded(1000)
    spike = np.zeros(1000, np.float32)
    spike[3] = 1.0
    turned = rotate(spike, SEED)
    assert np.allclose(np.abs(turned[:piece]), piece**-0.5)
    assert not turned[piece:].any()
    matrix = np.array([rotate_back(np.eye(piece * pieces)[at], SEED, 1000)[:piece] for at in range(piece)])
    assert np.allclose(matrix @ matrix.T, np.eye(piece)), "orthogonal"
    values = np.arange(1000, dtype=np.float32)
    assert not np.allclose(rotate(values, SEED), rotate(values, "00" * 32)), "another seed, other signs"


def test_turning_back_is_the_same_on_every_machine() -> None:
    """What is learnt from a sum is computed again by whoever verifies it: no matrix product, no order of its own."""
    turned = np.arange(-2000.0, math.prod(padded(3000)) - 2000) * 0.1
    turned *= turned
    found = rotate_back(turned, SEED, 3000)
    matrix = np.array([[(-1.0) ** (row & column).bit_count() for column in range(256)] for row in range(256)])
    np.testing.assert_allclose(np.abs(found[:256]), np.abs(matrix @ turned[:256]) / 16, rtol=1e-9, atol=1e-9)
    assert digest(found.tobytes()).hex()[:16] == "5648834580978e67"


# --- rounding and noise


@given(st.integers(1, 3000), st.floats(0.01, 100.0), st.integers(0, 2**32))
def test_what_travels_is_never_longer_than_what_is_accounted_for(size: int, clip: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=size)
    values *= clip / np.linalg.norm(values)
    noise = grid(
        clip, math.prod(padded(size)), 1.0, shared=True, rotation=SEED, central=True
    )  # central: no noise yet
    block = Block("delta", (size,), bound=clip, clip=clip, noise=noise)
    steps = noisy_steps(values, block, 1, Stream(seeded(seed)))
    assert np.linalg.norm(steps.astype(np.float64)) <= noise.radius
    assert noise.radius <= 1.01 * clip / noise.step, "rounding adds a percent at most"
    back = rotate_back(steps * noise.step, SEED, size)
    assert np.linalg.norm(back - values) <= 2 * noise.step * math.sqrt(steps.size)


def test_rounding_is_unbiased_and_repeated_where_it_is_too_long() -> None:
    block = Block("x", (400,), bound=1.0, clip=1.0, noise=grid(1.0, 400, 1.0, shared=True, central=True))
    value = np.full(400, 0.05)  # of L2 norm 1, 409.6 steps each
    drawn = [noisy_steps(value, block, 1, Stream(seeded(at))) for at in range(200)]
    assert np.mean(drawn) == pytest.approx(409.6, abs=0.01)
    tight = dataclasses.replace(block.noise, radius=8192.0)  # no room for rounding up: towards zero then
    forced = noisy_steps(value, dataclasses.replace(block, noise=tight), 1, Stream(seeded()))
    assert np.linalg.norm(forced) <= 8192.0
    with pytest.raises(BoundError, match="not clipped"):
        noisy_steps(1.1 * value, dataclasses.replace(block, noise=tight), 1, Stream(seeded()))


def test_the_radius_is_the_paper_s() -> None:
    assert conditional_radius(100.0, 4) == pytest.approx(math.sqrt(100**2 + 1 + 101))
    assert conditional_radius(1.0, 1_000_000) < 1.0 + 1000.0


@pytest.mark.parametrize(("sites", "colluders"), [(10, None), (10, 0), (40, 5)])
def test_the_honest_survivors_alone_reach_the_noise(sites: int, colluders: int | None) -> None:
    clip, size, wanted = 0.7, 4096, 2.0
    noise = grid(clip, size, wanted, shared=True, colluders=colluders, rotation=SEED)
    block = Block("delta", (size,), bound=8.0, clip=clip, noise=noise)
    query = Query("train", Layout((block,)), sites, config={"round": 1})
    coder = FixedPoint(query.sealed_layout, sites, 32)
    fewest = threshold(sites)
    honest = fewest - (colluders_tolerated(sites, fewest) if colluders is None else colluders)
    total = np.zeros(coder.size, coder.dtype)
    for site in range(honest):
        answer = Answer(7, {"delta": np.zeros(size, np.float32)})
        total += contribute(answer, query, coder, seeded(site))
    opened = coder.decode(total)
    assert opened["delta"].std() == pytest.approx(wanted * clip, rel=0.05)
    assert opened["rows"] == honest, "every site counts as one, whatever its rows"
    assert opened["clipped"] == 0.0
    assert deviation_of(noise, honest) == pytest.approx(noise.deviation / math.sqrt(honest))


def test_too_many_shares_are_too_coarse() -> None:
    with pytest.raises(BoundError, match="too coarse"):
        deviation_of(grid(1.0, 10, 0.05, shared=True), 10_000)


def test_noise_that_a_word_cannot_carry_is_refused() -> None:
    block = Block("delta", (100,), bound=1.0, clip=1.0, noise=grid(1.0, 112, 4.0, shared=True))
    with pytest.raises(BoundError, match="cannot carry its noise"):
        FixedPoint(Layout((block,)), 50, 20)
    FixedPoint(Layout((block,)), 50, 32)


# --- whole jobs


@pytest.fixture(scope="module")
def many(clouds: pd.DataFrame) -> dict[str, Any]:
    return {"data": clouds, "sites": 20, "partition": "iid"}


def test_masks_and_ideal_give_the_same_model_which_verifies(many: dict[str, Any], tmp_path: Path) -> None:
    few = {**many, "sites": 6, "reproducible": True}
    both = [cl.simulate(make_job(SITE), **few, seal=seal, folder=tmp_path / seal) for seal in ("ideal", "masks")]
    assert both[0].model_bytes == both[1].model_bytes
    assert "hides nobody" in both[0].privacy.sentence
    both[1].save(tmp_path / "masks")
    verdict = verify(read_evidence(tmp_path / "masks"))
    assert verdict.ok
    assert {claim.of: claim.outcome for claim in verdict.claims}["model"] == "proven"


def test_a_result_states_what_sites_spent_and_who_must_be_honest(many: dict[str, Any]) -> None:
    ran = cl.simulate(make_job(SITE), **many)
    said = ran.privacy
    assert said.unit == "site"
    assert 7.0 < said.epsilon <= 8.0
    terms = private.Terms.from_json(ran.state.facts["privacy"]["terms"])
    events = events_from_json(list(said.events))
    assert sorted(events) == sorted([Event(terms.multiplier, count=3), Event(terms.measured)])
    honest = threshold(20) - said.colluders
    assert any(f"At least {honest} of the sites" in each for each in said.conditions)
    assert (ran.history["rows"] == 20).all(), "rows are the sites' own affair"
    assert 0.0 <= ran.final["accuracy"] <= 1.0


def test_with_many_sites_and_a_large_epsilon_something_is_learned(clouds: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 4000)
    table = pd.DataFrame(rng.normal(size=(4000, 2)) + np.where(y, 1.0, -1.0)[:, None], columns=["a", "b"])
    job = make_job(
        cl.SiteDP(epsilon=8, delta=1e-3, clip=1.0, colluders=0),
        task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=8),
        data=cl.Table("clouds", target="y"),
    )
    ran = cl.simulate(job, table.assign(y=y), sites=120, partition="iid", baselines=False)
    assert ran.final["accuracy"] > 0.85


def test_the_clip_follows_the_sites(many: dict[str, Any]) -> None:
    def clip_after(initial: float) -> float:
        # the count of sites below the clip has little noise here, so that the direction is certain
        privacy = cl.SiteDP(epsilon=30, delta=1e-3, clip=cl.AdaptiveClip(initial=initial, lr=0.5), colluders=0)
        state = cl.simulate(make_job(privacy, algorithm=cl.FedAvg(rounds=4)), **many).state
        return float(state.facts["privacy"]["clip"])

    assert clip_after(1e-3) > 1.3e-3, "all are clipped: it grows"
    assert clip_after(1e3) < 8e2, "none is: it falls"


def test_an_adaptive_clip_costs_no_more(many: dict[str, Any]) -> None:
    ran = cl.simulate(make_job(cl.SiteDP(epsilon=8, delta=1e-3, clip=cl.AdaptiveClip())), **many)
    assert ran.privacy.epsilon <= 8.0
    terms = private.Terms.from_json(ran.state.facts["privacy"]["terms"])
    job = make_job(cl.SiteDP(epsilon=8, delta=1e-3, clip=cl.AdaptiveClip()))
    query = Query(
        "train", Layout((Block("x", (), 1.0),)), 20, {"model": np.zeros(9)}, {"step": 1, "clip": (0.1).hex()}
    )
    delta, below = private.layout_of(job, query, terms).blocks
    joint = (delta.noise.multiplier**-2 + below.noise.multiplier**-2) ** -0.5
    assert joint == pytest.approx(terms.multiplier), "two releases that cost what one does"


@pytest.mark.parametrize("sites", [3, 16, 17, 100, 2000])
def test_noise_that_fits_never_wraps_and_is_never_weighted(sites: int) -> None:
    """Every site at its longest, with a draw further out than will ever be seen: the sum is still read rightly."""
    noise = grid(1.0, 400, 1.0, shared=True)
    block = Block("x", (400,), bound=1.0, clip=1.0, noise=noise)
    coder = FixedPoint(Layout((block,)), sites, 32)
    furthest = int(noise.radius + 30 * deviation_of(noise, max(1, threshold(sites) // 3)))
    words, total = np.zeros(coder.size, coder.dtype), np.zeros(coder.size, coder.dtype)
    coder.put_steps(words, "x", np.full(400, furthest))
    for _ in range(sites):
        total += words
    assert coder.decode(total)["x"][0] == pytest.approx(sites * furthest * noise.step)
    with pytest.raises(LayoutError, match="noise and weights"):
        dataclasses.replace(block, weighted=True)


def test_central_noise_is_for_simulations_and_says_so(many: dict[str, Any]) -> None:
    job = make_job(dataclasses.replace(SITE, central=True))
    ran = cl.simulate(job, **many)
    assert any("a simulation, no federation" in each for each in ran.privacy.conditions)
    assert ran.model_bytes != cl.simulate(job, **many).model_bytes, "there is noise"
    with pytest.raises(UsageError, match="central noise comes after it"):
        cl.simulate(job, **many, seal="masks")  # what was opened, and is evidence, would be without noise
    with pytest.raises(ContextMismatch, match="central noise is for simulations"):
        private.check(job, Query("profile", private.census(), 10))


def test_noise_is_refused_where_it_would_be_left_out(many: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="without privacy"):
        cl.simulate(make_job(SITE), **many, engine="batched")
    with pytest.raises(JobError, match="nobody's share"):
        cl.SiteDP(1.0, 1e-5, colluders=3, central=True)
