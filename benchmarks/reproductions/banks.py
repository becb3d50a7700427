"""Banks that lend to different people: federated AUC beside that of all rows in one place, on the same test rows.

Three tables without a bank in them are cut by a column that a bank's customers might differ in. A fifth of the rows
is held out, stratified, one split for each seed; Adult has a test set of its own. The independent pooled model is
scikit-learn's logistic regression on the same columns.
"""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import cloister as cl

from .table import DATA, Row

ADULT = (
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship",
    "race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "target",
)  # fmt: skip
NUMBERS = {"age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week"}
WORK = {"Private": "private", "Self-emp-not-inc": "self-employed", "Self-emp-inc": "self-employed",
        "Federal-gov": "government", "State-gov": "government", "Local-gov": "government"}  # fmt: skip


@dataclass(frozen=True)
class Bank:
    """A table of all banks.

    Attributes: bank: whose each row is. categories: columns to be one-hot. test: bool, or None to be drawn.
    """

    rows: pd.DataFrame
    bank: pd.Series[Any]
    categories: tuple[str, ...]
    test: np.ndarray[Any, Any] | None = None

    def split(self, seed: int) -> pd.Series[Any]:
        test = self.test
        if test is None:
            y = self.rows["target"]
            _, held = train_test_split(np.arange(len(y)), test_size=0.2, random_state=seed, stratify=y)
            test = np.isin(np.arange(len(y)), held)
        return pd.Series(np.where(test, "test", "train"), self.rows.index)


def credit() -> Bank:
    text = gzip.decompress((DATA / "credit-default" / "default_of_credit_card_clients.csv.gz").read_bytes())
    rows = pd.read_csv(io.BytesIO(text)).drop(columns="ID")
    rows = rows.rename(columns={"default.payment.next.month": "target"})
    bank = rows["EDUCATION"].map({1: "graduate", 2: "university", 3: "school"}).fillna("other")
    named = ("SEX", "EDUCATION", "MARRIAGE", "PAY_0", *(f"PAY_{month}" for month in range(2, 7)))
    return Bank(rows, bank, named)


def adult() -> Bank:
    parts = []
    for name, skipped in (("adult.data.gz", 0), ("adult.test.gz", 0)):
        text = gzip.decompress((DATA / "adult" / name).read_bytes()).decode()
        parts.append(pd.read_csv(io.StringIO(text), names=ADULT, skipinitialspace=True, skiprows=skipped))
    rows = pd.concat(parts, ignore_index=True)
    rows["target"] = rows["target"].str.rstrip(".").eq(">50K").astype(int)
    bank = rows["workclass"].map(WORK).fillna("other")
    named = tuple(name for name in ADULT[:-1] if name not in NUMBERS)
    return Bank(rows, bank, named, np.arange(len(rows)) >= len(parts[0]))


def german() -> Bank:
    rows = pd.read_csv(DATA / "german-credit" / "german.data", sep=" ", header=None)
    rows.columns = pd.Index([*(f"a{at}" for at in range(1, 21)), "target"])
    rows["target"] = rows["target"].eq(2).astype(int)
    named = tuple(name for name in rows.columns if rows[name].dtype.kind not in "if")
    return Bank(rows, rows["a15"].map({"A151": "rent", "A152": "own", "A153": "free"}), named)


TABLES = {"Credit default, 4 banks by education": credit, "Adult, 4 by work": adult, "German, 3 by housing": german}


def load() -> dict[str, Bank] | None:
    if not all((DATA / name).is_dir() for name in ("credit-default", "adult", "german-credit")):
        return None
    return {name: table() for name, table in TABLES.items()}


def job(bank: Bank, task: Any, algorithm: Any, seed: int) -> cl.Job:
    numeric = [name for name in bank.categories if bank.rows[name].dtype.kind in "if"]
    return cl.Job(
        data=cl.Table("banks", target="target", split="split"),
        prepare=(cl.OneHot(columns=numeric), cl.Standardize()),
        task=task,
        algorithm=algorithm,
        evaluate=cl.Evaluate(every=algorithm.rounds),
        seed=seed,
    )


def shards(bank: Bank, seed: int) -> dict[str, pd.DataFrame]:
    rows = bank.rows.assign(split=bank.split(seed))
    return {str(name): part.reset_index(drop=True) for name, part in rows.groupby(bank.bank)}


@functools.cache
def pooled(table: str, seed: int) -> float:
    """scikit-learn, all rows in one place."""
    bank = TABLES[table]()
    test = (bank.split(seed) == "test").to_numpy()
    x, y = bank.rows.drop(columns="target"), bank.rows["target"]
    numbers = [name for name in x if name not in bank.categories]
    coded = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), list(bank.categories)), (StandardScaler(), numbers)
    )
    model = make_pipeline(coded, LogisticRegression(max_iter=5000)).fit(x[~test], y[~test])
    return float(roc_auc_score(y[test], model.predict_proba(x[test])[:, 1]))


@functools.cache
def newton(table: str, seed: int) -> Any:
    bank = TABLES[table]()
    found = cl.simulate(
        job(bank, cl.Sklearn(LogisticRegression(C=1.0)), cl.Newton(rounds=8), seed),
        shards(bank, seed),
        baselines=True,
    )
    return found.comparison


@functools.cache
def fedavg(table: str, seed: int) -> float:
    bank = TABLES[table]()
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.05), epochs=1, batch_size=32)
    found = cl.simulate(job(bank, task, cl.FedAvg(rounds=30), seed), shards(bank, seed))
    return float(found.history["auc"].iloc[-1])


def rows_of(table: str) -> tuple[Row, ...]:
    def row(name: str, settings: str, measure: Callable[[str, int], float]) -> Row:
        return Row(f"{table}: {name}", settings, "", lambda data, seed: measure(table, seed))

    return (
        row("pooled", "scikit-learn", pooled),
        row("Newton, federated", "8 rounds", lambda table, seed: newton(table, seed).federated["auc"]),
        row("FedAvg", "30 rounds, lr 0.05, B = 32", fedavg),
        row("each bank alone, mean", "its own fit", lambda table, seed: newton(table, seed).local_mean("auc")),
        row("Newton less pooled", "", lambda table, seed: newton(table, seed).federated["auc"] - pooled(table, seed)),
        row("FedAvg less pooled", "", lambda table, seed: fedavg(table, seed) - pooled(table, seed)),
    )


ROWS = tuple(row for table in TABLES for row in rows_of(table))
