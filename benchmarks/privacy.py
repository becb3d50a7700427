"""Differential privacy: utility over epsilon, and the speed of its parts beside their ceilings, in one run.

    python benchmarks/privacy.py                     speed: sampler, rotation, DP-SGD steps
    python benchmarks/privacy.py --utility out       utility.csv and utility.svg: breast cancer, and heart where it is
    python benchmarks/privacy.py --utility out --write    the same into docs/privacy.md

DP-SGD is timed beside Opacus where that can be imported (`pip install --no-deps opacus opt_einsum`; without --no-deps
it brings other versions), else beside plain training alone, and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import cloister as cl
from cloister.algorithms import Terms
from cloister.learn.comparison import Comparison
from cloister.learn.models import Model
from cloister.learn.net_task import NetModel
from cloister.learn.prepare import Rows
from cloister.learn.private import NoisySteps
from cloister.learn.threads import one_blas_thread
from cloister.learn.torch_task import TorchModel
from cloister.privacy.noise import Stream, gaussian
from cloister.privacy.rotation import rotate

ROOT = Path(__file__).resolve().parents[1]
EPSILONS = (1.0, 2.0, 4.0, 8.0, None)
SEEDS = 5
METRICS = {"auc": "AUC", "accuracy": "accuracy"}


def best(work: Callable[[], object], times: int = 5) -> float:
    """The fewest seconds of processor time of several runs: all of them use one core."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def speed() -> None:
    with one_blas_thread():
        _speed()


def _speed() -> None:
    stream = Stream(os.urandom)
    for deviation in (64.0, 1024.0, 4096.0, 65536.0):
        sampler = gaussian(deviation)
        seconds = best(lambda sampler=sampler: sampler.sample(stream, 1 << 20))
        print(f"sampler, deviation {deviation:>7.0f}: {(1 << 20) / seconds / 1e6:7.1f} M samples/s/core (aim: 10)")
    for size in (10_000, 1 << 20):
        values = np.random.default_rng(0).normal(size=size).astype(np.float32)
        seconds = best(lambda values=values: rotate(values, "ab" * 32))
        print(f"rotation of {size:>9,}:     {size / seconds / 1e6:7.1f} M elements/s/core (aim: 50)")
    steps()


def steps() -> None:
    """40 steps of batches of about 64 of 2,560 rows, a net of 784-128-10."""
    rng, batches, rows = np.random.default_rng(0), 40, 2560
    x, y = rng.normal(size=(rows, 784)).astype(np.float32), rng.integers(0, 10, rows)
    task = cl.Torch(cl.nets.MLP([128]), loss="cross_entropy", optimizer=cl.SGD(lr=0.1), batch_size=64)
    job = cl.Job(cl.Arrays("digits", shape=(784,), classes=10), task, cl.FedAvg(rounds=1))
    shapes, tensors = job.initial_model(784)
    flat = np.concatenate([tensors[name].reshape(-1) for name in shapes])
    data = Rows(x, y)

    def timed(model: Model) -> tuple[float, float]:
        def private() -> None:
            noisy = NoisySteps(1.0, 1.0, 64 / rows, batches, data, flat.size, Stream(os.urandom))
            model.train_privately(flat, data, noisy, 1, Terms())

        private()  # makes the noise's table
        return best(private), best(lambda: model.train(flat, data, 0, 1))

    try:
        theirs = opacus(x, y, batches)
        print(f"Opacus, {batches} steps of DP-SGD:        {theirs:7.3f} s")
    except ImportError as missing:
        theirs = 0.0
        print(f"Opacus: not timed: {missing}")
    for name, model in (("net by name", NetModel(job, shapes)), ("a PyTorch model", TorchModel(job, shapes, 784))):
        ours, plain = timed(model)
        beside = f", {ours / theirs:.2f} x Opacus (aim: 1.5 or less)" if theirs else ""
        print(f"the same steps here, {name:<15}: {ours:7.3f} s, {ours / plain:.1f} x plain steps{beside}")


def opacus(x: np.ndarray, y: np.ndarray, batches: int) -> float:
    import torch
    from opacus import PrivacyEngine
    from torch import nn

    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    net, optimizer, loader = PrivacyEngine().make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )

    def epoch() -> None:
        for part, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(part), labels).backward()
            optimizer.step()

    assert len(loader) == batches
    epoch()
    return best(epoch)


# --- utility


def breast_cancer() -> tuple[cl.Job, object, int | None]:
    from cloister.cli.bundled import breast_cancer as table

    sys.path.insert(0, str(ROOT / "examples"))
    from private import job

    return job, table(), 5


def heart() -> tuple[cl.Job, object, int | None] | None:
    """The four hospitals of the UCI heart-disease data, where they lie beside the clone."""
    source = ROOT.parent / "shared" / "data" / "fed-heart-disease"
    if not source.is_dir():
        print("heart: not measured, ../shared/data/fed-heart-disease is not there")
        return None
    names = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca"]
    names += ["thal", "num"]
    ranges = {"age": (20, 90), "trestbps": (80, 200), "thalach": (60, 210), "oldpeak": (-3, 6)}
    kinds: dict[str, object] = dict.fromkeys(ranges, "number")
    kinds |= {"sex": ["0", "1"], "cp": ["1", "2", "3", "4"], "exang": ["0", "1"]}
    sites = {}
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        frame = pd.read_csv(source / f"processed.{name}.data", names=names, na_values="?")
        sites[name] = frame.dropna(subset=list(kinds)).assign(disease=lambda each: (each["num"] > 0) * 1)
    job, _, _ = breast_cancer()
    job = dataclasses.replace(
        job,
        data=cl.Table("heart", target="disease", columns=kinds),
        prepare=(cl.OneHot(), cl.Standardize(ranges=ranges)),
    )
    return job, sites, None


def utility(out: Path, write: bool) -> None:
    """Five seeds for each epsilon; what is not private needs one."""
    found, beside, out = [], {}, out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name, made in (("breast cancer", breast_cancer()), ("heart", heart())):
        if made is None:
            continue
        job, data, sites = made
        for epsilon in EPSILONS:
            privacy = None if epsilon is None else dataclasses.replace(job.privacy, epsilon=epsilon)
            for seed in range(SEEDS if epsilon else 1):
                print(f"{name}: epsilon {epsilon or 'infinite'}, {seed + 1} of {SEEDS if epsilon else 1}", flush=True)
                ran = cl.simulate(dataclasses.replace(job, privacy=privacy), data, sites, baselines=epsilon is None)
                spent = {"data": name, "epsilon": epsilon or np.inf, "spent": ran.privacy.epsilon or np.inf}
                found.append({**spent, **measured(ran, data, sites)})
                beside[name] = ran.comparison
    runs = pd.DataFrame(found)
    runs.to_csv(out / "utility.csv", index=False)
    table = runs.groupby(["data", "epsilon"])[list(METRICS)].agg(["mean", "min", "max"])
    lines = tabulated(table, beside)
    drawn(table, beside).savefig(out / "utility.svg", metadata={"Date": None})
    print("\n".join([*lines, f"table and plot in {out}"]))
    if write and len(beside) == 2:
        (ROOT / "docs" / "privacy-utility.svg").write_bytes((out / "utility.svg").read_bytes())
        page, inside = (
            ROOT / "docs" / "privacy.md",
            re.compile("(<!-- utility -->\n).*?(<!-- /utility -->)", re.DOTALL),
        )
        body = "\n".join(lines) + "\n"
        page.write_text(inside.sub(lambda marks: marks[1] + body + marks[2], page.read_text()))


def tabulated(table: pd.DataFrame, beside: dict[str, Comparison]) -> list[str]:
    """A markdown table: the mean over seeds, and from the worst to the best."""
    names = [f"ε = {each:g}" if each else "ε = ∞" for each in EPSILONS]
    lines = ["| | " + " | ".join([*names, "pooled, ε = ∞", "each site alone, ε = ∞"]) + " |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for name, comparison in beside.items():
        for metric, title in METRICS.items():
            cells = [
                f"{row['mean']:.3f}" + (f" ({row['min']:.3f} to {row['max']:.3f})" if row["max"] > row["min"] else "")
                for _, row in table.loc[name][metric].iterrows()
            ]
            alone = ", ".join(f"{value:.3f}" for value in comparison.local_values(metric).values())
            lines.append(
                f"| {name}, {title} | " + " | ".join([*cells, f"{comparison.pooled[metric]:.3f}", alone]) + " |"
            )
    return lines


def drawn(table: pd.DataFrame, beside: dict[str, Comparison]) -> Figure:
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    for axes, (name, comparison) in zip(
        figure.subplots(1, len(beside), squeeze=False)[0], beside.items(), strict=True
    ):
        mine = table.loc[name]["auc"]
        places = range(len(mine))
        axes.plot(places, mine["mean"], "o-", color="#2f5bd8", label="federated")
        axes.fill_between(places, mine["min"], mine["max"], color="#2f5bd8", alpha=0.2)
        axes.axhline(comparison.pooled["auc"], color="#23835f", ls="--", label="pooled, not private")
        for at, value in enumerate(comparison.local_values("auc").values()):
            axes.axhline(
                value, color="#b8651b", ls=":", lw=1.0, label="each site alone, not private" if at == 0 else None
            )
        axes.set(title=name, xlabel="ε", ylabel="AUC", xticks=list(places))
        axes.set_xticklabels(["∞" if np.isinf(each) else f"{each:g}" for each in mine.index])
        axes.legend(fontsize=8)
    return figure


def measured(ran: cl.Result, data: object, sites: int | None) -> dict[str, float]:
    """Exact metrics of the final model on all sites' test rows, which a simulation may see and nobody else."""
    from cloister.learn import Trainer, predict
    from cloister.learn.comparison import measure
    from cloister.simulation.data import shards_of

    truth, said = [], []
    for site, table in shards_of(ran.job, data, sites, "skewed").items():
        trainer = Trainer(ran.job, table, site)
        said.append(predict(ran.job, ran.state, trainer.data.features)[trainer.test])
        truth.append(trainer.y[trainer.test])
    scores = measure(ran.job.kind, np.concatenate(truth), np.concatenate(said))
    return {name: float(scores[name]) for name in METRICS}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--utility", type=Path, metavar="FOLDER", help="measure utility instead of speed")
    options.add_argument("--write", action="store_true", help="the table and the plot into docs/privacy.md")
    chosen = options.parse_args()
    speed() if chosen.utility is None else utility(chosen.utility, chosen.write)
