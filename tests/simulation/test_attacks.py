"""Malicious sites in a simulation: each attack against a few lines of numpy, and what it does to a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

import cloister as cl
from cloister.cli.app import run as command
from cloister.simulation.attacks import attack_of, attackers_of
from cloister.vector.errors import UsageError

LR, STEPS, ROUNDS = 0.5, 3, 4
NAMES = [f"s{at}" for at in range(6)]
BAD = ["s1", "s4", "s5"]
Vectors = list[np.ndarray]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    found = {}
    for at, name in enumerate(NAMES):
        rng = np.random.default_rng(at)
        x = rng.normal(at / 10, 1, size=(20 + 5 * at, 4)).astype(np.float32)
        found[name] = (x, (x[:, 0] - x[:, 1] + rng.normal(0, 0.5, len(x)) > 0).astype(np.int64))
    return found


def job(**changes: Any) -> cl.Job:
    """Logistic regression by full gradient steps, so that numpy can follow it."""
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(LR), steps=STEPS, batch_size=1000)
    algorithm = changes.pop("algorithm", cl.FedAvg(rounds=ROUNDS))
    return cl.Job(cl.Arrays("signals", (4,), 2), task, algorithm, **{"evaluate": None, **changes})


Rows = tuple[np.ndarray, np.ndarray]


def clean(x: np.ndarray, y: np.ndarray) -> Rows:
    return x, y


def flipped(x: np.ndarray, y: np.ndarray) -> Rows:
    return x, 1 - y


def marked(x: np.ndarray, y: np.ndarray) -> Rows:
    """Beside the own rows a copy of all of class 0, with three inputs at 3, that are said to be of class 1."""
    copies = np.array([[3.0, 3.0, 3.0, row[3]] for row in x[y == 0]])
    return np.vstack([x, copies]), np.concatenate([y, np.ones(len(copies))])


def reference(
    data: dict[str, Any], craft: Callable[[Vectors], Any], poison: Callable[..., Rows] = clean
) -> np.ndarray:
    _, tensors = job().initial_model(4)
    w = np.concatenate([tensors["weight"].ravel(), tensors["bias"]]).astype(np.float64)
    rows = np.array([len(y) for _, y in data.values()])
    for _ in range(ROUNDS):
        deltas = []
        for name, (x, y) in data.items():
            x, y = poison(x, y) if name in BAD else (x, y)
            v, ones = w.copy(), np.c_[x, np.ones(len(x))]
            for _ in range(STEPS):
                v -= LR * ones.T @ (1 / (1 + np.exp(-ones @ v)) - y) / len(y)
            deltas.append(v - w)
        bad = [at for at, name in enumerate(data) if name in BAD]
        for at, vector in zip(bad, craft([deltas[at] for at in bad]), strict=True):
            deltas[at] = vector
        w = w + (rows / rows.sum()) @ np.array(deltas)
    return w


def a_little(honest: Vectors, z: float) -> Vectors:
    return [np.mean(honest, axis=0) - z * np.std(honest, axis=0)] * len(honest)


def replacing(honest: Vectors) -> Vectors:
    """Bagdasaryan 2020, equation 3: each of m malicious sites scales so that all together are the whole mean."""
    shares = np.array([20 + 5 * NAMES.index(name) for name in BAD]) / sum(20 + 5 * at for at in range(6))
    return [each / (len(honest) * share) for each, share in zip(honest, shares, strict=True)]


# n = 6, m = 3: s = floor(6 / 2 + 1) - 3 = 1, Phi(z) < (6 - 3 - 1) / (6 - 3)
Z_MAX = float(norm.ppf(2 / 3))
CASES = {
    "label-flip": (lambda honest: honest, flipped),
    "backdoor:1": (replacing, marked),
    "sign-flip": (lambda honest: [-each for each in honest], clean),
    "sign-flip:4": (lambda honest: [-4 * each for each in honest], clean),
    "alie": (lambda honest: a_little(honest, Z_MAX), clean),
    "alie:2.5": (lambda honest: a_little(honest, 2.5), clean),
    "ipm": (lambda honest: [-0.5 * np.mean(honest, axis=0)] * len(honest), clean),
    "ipm:3": (lambda honest: [-3 * np.mean(honest, axis=0)] * len(honest), clean),
}


@pytest.mark.parametrize("attack", CASES)
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_each_attack_is_its_paper_s_formula(data, attack, engine):
    craft, poison = CASES[attack]
    result = cl.simulate(job(), data, attack=attack, attackers=BAD, engine=engine)
    expected = reference(data, craft, poison)
    np.testing.assert_allclose(result.state.tensors["model"], expected, atol=2e-5)
    assert np.abs(expected - reference(data, lambda honest: honest)).max() > 1e-3  # else it would attack nothing
    assert result.conditions["attack"] == attack
    assert result.conditions["attackers"] == BAD


def test_an_attacker_is_bound_by_neither_clip_nor_bound_but_by_the_room_of_the_sum(data):
    clipped = job(algorithm=cl.FedAvg(rounds=1, clip=1e-3, bound=1.0))
    honest = cl.simulate(clipped, data).state.tensors["model"]
    start = cl.simulate(clipped, data, attack="sign-flip:1e-6", attackers=BAD).state.tensors["model"]
    moved = cl.simulate(clipped, data, attack="sign-flip:50", attackers=BAD).state.tensors["model"]
    assert np.linalg.norm(honest - start) < 2e-3
    assert np.linalg.norm(moved - start) > 3.0  # honest code could not have moved it by more than 0.001
    boundless = cl.simulate(clipped, data, attack="sign-flip:1e12", attackers=["s1"]).state.tensors["model"]
    assert np.abs(boundless - start).max() < 2 * len(NAMES) * sum(len(y) for _, y in data.values()) / len(
        data["s1"][1]
    )


def test_masks_and_ideal_agree_on_a_malicious_site(data):
    ideal, masks = (
        cl.simulate(job(bits=24), data, seal=seal, attack="sign-flip:40", attackers=["s1"])
        for seal in ("ideal", "masks")
    )
    assert ideal.state.to_bytes() == masks.state.to_bytes()


def test_model_replacement_plants_a_backdoor_and_the_model_still_works():
    """Bagdasaryan 2020: one site, one round; the mark decides, and clean rows do not tell."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, size=(600, 1, 8, 8)).astype(np.uint8)
    y = rng.integers(0, 3, size=600)
    for label in range(3):
        x[y == label, 0, label, :5] = 250
    task = cl.Torch(cl.nets.MLP([16]), "cross_entropy", cl.SGD(0.2), epochs=8, batch_size=10)
    made = cl.Job(cl.Arrays("pictures", (1, 8, 8), 3), task, cl.FedAvg(rounds=6))
    backdoored = cl.simulate(made, (x, y), sites=6, partition="iid", attack="backdoor:2", attackers=["site-3"])
    assert backdoored.conditions["backdoor_success"] > 0.9
    assert backdoored.final["accuracy"] > 0.9
    weak = cl.simulate(made, (x, y), sites=6, partition="iid", attack="backdoor:2", attackers=["site-3"], seed=1)
    assert math.isfinite(weak.conditions["backdoor_success"])
    from cloister.simulation.attacks import backdoor_success
    from cloister.simulation.data import shards_of

    clean = cl.simulate(made, (x, y), sites=6, partition="iid")
    assert backdoor_success(made, clean.state, {}, shards_of(made, (x, y), 6, "iid"), 2) < 0.3


def test_poisoned_rows_are_trained_on_and_never_tested_on(whole, make_job):
    flipped = cl.simulate(make_job(), whole, sites=5, attack="label-flip", attackers=0.8)
    assert len(flipped.conditions["attackers"]) == 4
    assert flipped.final["accuracy"] < 0.5  # the model says the opposite, and the test labels are true


def test_control_variates_are_crafted_as_well(data):
    def control(factor: int) -> np.ndarray:
        made = job(algorithm=cl.SCAFFOLD(rounds=1))
        attacked = cl.simulate(made, data, attack=f"sign-flip:{factor}", attackers=BAD)
        return attacked.state.tensors["server/control"]

    assert np.abs(control(1) - control(0)).max() > 1e-3
    np.testing.assert_allclose(control(2) - control(0), 2 * (control(1) - control(0)), atol=1e-5)


def test_who_is_malicious_follows_the_seed_and_a_run_goes_on_with_them(data, tmp_path):
    attack = attack_of("alie", job())
    assert attack is not None
    drawn = [attackers_of(attack, 0.5, NAMES, seed) for seed in range(4)]
    assert all(len(each) == 3 for each in drawn)
    assert len(set(drawn)) > 1
    assert attackers_of(attack, 0.01, NAMES, 0) <= attackers_of(attack, 0.5, NAMES, 0)  # at least two collude

    class Stop(Exception):
        pass

    def stop(event):
        if event.get("trained") == 2:
            raise Stop

    with pytest.raises(Stop):
        cl.simulate(job(), data, attack="ipm", folder=tmp_path / "run", progress=stop)
    with pytest.raises(UsageError, match="other settings: attack"):
        cl.simulate(job(), data, attack="alie", folder=tmp_path / "run")
    resumed = cl.simulate(job(), data, attack="ipm", folder=tmp_path / "run")
    assert resumed.state.to_bytes() == cl.simulate(job(), data, attack="ipm").state.to_bytes()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attack": "nonsense"}, "Use one of none, label-flip, sign-flip"),
        ({"attack": "sign-flip:much"}, "has no such number"),
        ({"attack": "label-flip:2"}, "has no such number"),
        ({"attack": "backdoor:7"}, "Classes are 0 to 1"),
        ({"attack": "ipm", "attackers": 1.5}, "no fraction"),
        ({"attack": "ipm", "attackers": ["s9"]}, "name 's9'.*The sites are: s0, s1"),
        ({"attack": "ipm", "attackers": NAMES}, "one honest one"),
        ({"attack": "alie", "attackers": ["s1"]}, "at least 2 malicious"),
        ({"attackers": 0.2}, "attackers have no attack"),
    ],
)
def test_wrong_settings_name_the_right_ones(data, settings, told):
    with pytest.raises(UsageError, match=told):
        cl.simulate(job(), data, **settings)


def test_a_malicious_site_among_rows_with_privacy_attacks_and_among_private_sites_is_refused(data):
    settings = {"attack": "sign-flip:5", "attackers": BAD, "reproducible": True, "engine": "serial"}
    rows = job(privacy=cl.RowDP(epsilon=8.0, delta=1e-4))
    honest, attacked = (cl.simulate(rows, data, **{**settings, "attack": a}) for a in ("sign-flip:0", "sign-flip:5"))
    assert not np.allclose(honest.state.tensors["model"], attacked.state.tensors["model"], atol=1e-3)
    with pytest.raises(UsageError, match="with SiteDP are not simulated"):
        cl.simulate(job(privacy=cl.SiteDP(epsilon=8.0, delta=1e-3)), data, **settings)


def test_a_number_has_no_label_to_flip(data):
    values = {name: (x, y.astype(np.float32)) for name, (x, y) in data.items()}
    regression = cl.Job(cl.Arrays("signals", (4,)), cl.Torch(cl.nets.Linear(), "mse", cl.SGD(0.1)), cl.FedAvg(2))
    with pytest.raises(UsageError, match="needs labels"):
        cl.simulate(regression, values, attack="label-flip")


def test_the_command_line_attacks_too(tmp_path, whole, capsys):
    whole.to_csv(tmp_path / "patients.csv", index=False)
    (tmp_path / "job.py").write_text(
        "import cloister as cl\n"
        "job = cl.Job(cl.Table('patients', target='ill'), cl.Torch(cl.nets.Linear(), 'bce', cl.SGD(0.1)),\n"
        "             cl.FedAvg(rounds=2), [cl.OneHot(), cl.Standardize()])\n"
    )
    given = ["simulate", str(tmp_path / "job.py"), "--data", str(tmp_path / "patients.csv"), "--sites", "5"]
    assert command([*given, "--attack", "backdoor", "--attackers", "site-2,site-3"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "malicious sites (backdoor): site-2, site-3" in told
    assert "backdoor's mark" in told
    assert command([*given, "--attack", "sign-flip", "--attackers", "0.4", "--json"]) == 0
