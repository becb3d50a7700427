"""FedAvg against the formula by hand; preparation against numpy on the pooled table; AUC against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cloister.algorithms import FedAvg, Preparation, evaluation, from_json
from cloister.algorithms.preparation import EXPONENTS
from cloister.vector.errors import DataError, JobError, TaskError
from cloister.vector.total import Total


def test_one_round_of_fedavg_is_the_row_weighted_mean():
    """McMahan 2017, algorithm 1: w <- sum_k n_k/n w_k."""
    algorithm = FedAvg(rounds=1)
    model, local, rows = np.array([1.0, 2.0]), np.array([[2.0, 2.0], [4.0, -1.0]]), np.array([30, 10])
    state = algorithm.start(model)
    summed = ((rows / 40)[:, None] * (local - model)).sum(0)
    after = algorithm.learn(state, Total({"delta": summed}, rows=40.0, clipped=0.0, max_rows=40, sites=2))
    assert after.tensors["model"].tolist() == pytest.approx((rows[:, None] * local).sum(0) / 40)
    assert after.tensors["model"].dtype == np.float32
    assert algorithm.ask(after) is None


def test_a_dropout_changes_the_denominator():
    algorithm = FedAvg(rounds=1)
    total = Total({"delta": np.array([0.25 * 2.0])}, rows=10.0, clipped=0.0, max_rows=40, sites=1)
    assert algorithm.learn(algorithm.start(np.zeros(1)), total).tensors["model"].tolist() == [2.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 0},
        {"rounds": 1.5},
        {"rounds": 1, "cohort": 0.0},
        {"rounds": 1, "server_lr": -1.0},
        {"rounds": 1, "bound": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(JobError):
        FedAvg(**settings)


def test_an_algorithm_survives_its_own_json():
    algorithm = FedAvg(rounds=3, cohort=0.5, clip=2.0)
    assert from_json(algorithm.as_json()) == algorithm
    for junk in (None, {}, {"name": "eval"}, {"name": "FedAvg", "rounds": 1, "evil": 2}, {"name": "FedAvg"}):
        with pytest.raises(JobError):
            from_json(junk)


# --- preparation: a site's answers written again, independently of the learn room


def profile_of(tables: list[np.ndarray], categories: list[np.ndarray], declared: int) -> Total:
    exponents = np.zeros((tables[0].shape[1], EXPONENTS))
    for table in tables:
        for column in range(table.shape[1]):
            for value in table[~np.isnan(table[:, column]), column]:
                exponents[column, 0 if value == 0 else int(np.clip(np.frexp(abs(value))[1], -63, 64)) + 63] += 1
    missing = sum(np.isnan(table).sum(0) for table in tables)
    sums = {
        "missing": np.append(missing, 0.0),
        "exponents": exponents,
        "categories/c": sum(np.bincount(part, minlength=declared + 1) for part in categories).astype(float),
    }
    return Total(sums, rows=sum(map(len, tables)), clipped=0.0, max_rows=2**30, sites=len(tables))


def moments_of(tables: list[np.ndarray], query) -> Total:
    scaled = [(table - query.tensors["center"]) / query.tensors["scale"] for table in tables]
    powers = {f"power{k}": sum(np.nansum(part**k, 0) for part in scaled) / query.config["rows"] for k in (1, 2)}
    for values in powers.values():
        assert np.all(np.abs(values) <= 1.0), "the bound that the encoding relies on"
    return Total(powers, rows=sum(map(len, tables)), clipped=0.0, max_rows=query.max_rows, sites=len(tables))


@pytest.fixture
def tables() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    parts = [rng.normal([0.0, 1e6, -1e-5], [1.0, 3.0, 1e-7], (size, 3)) for size in (40, 7, 90)]
    parts = [np.column_stack([part, np.full(len(part), 5.0), np.zeros(len(part))]) for part in parts]
    parts[0][3, 0] = parts[2][5, 1] = np.nan
    return parts


def test_mean_and_deviation_equal_the_pooled_tables(tables):
    pooled = np.vstack(tables)
    columns = {**{f"x{at}": "number" for at in range(5)}, "c": "category"}
    preparation = Preparation(columns, {"c": 3}, impute=True, standardize=True, drop_first=True, classes=2)
    total = profile_of(tables, [np.array([0, 1, 2, 3])] * 3, declared=3)
    rows, fitted = preparation.learn_profile(total)
    assert rows == len(pooled)
    assert fitted["fit/buckets/c"].tolist() == [1, 2]
    fitted |= preparation.learn_mean(
        moments_of(tables, preparation.mean(rows, fitted)), rows, total.sums["missing"], fitted
    )
    fitted |= preparation.learn_variance(moments_of(tables, preparation.variance(rows, fitted)), fitted)
    assert np.allclose(fitted["fit/mean"], np.nanmean(pooled, 0), rtol=1e-12)
    imputed = np.where(np.isnan(pooled), np.nanmean(pooled, 0), pooled)
    assert np.allclose(fitted["fit/std"][:3], imputed.std(0)[:3], rtol=1e-6)
    assert fitted["fit/std"][3:].tolist() == [1.0, 1.0], "a constant column is left as it is"
    assert preparation.inputs(fitted) == 7


def test_missing_values_that_nothing_fills_are_an_error(tables):
    columns = {**{f"x{at}": "number" for at in range(5)}, "c": "category"}
    with pytest.raises(DataError, match="'x0' has 1 missing"):
        Preparation(columns, {"c": 3}).learn_profile(profile_of(tables, [np.array([0])] * 3, declared=3))


def test_rare_categories_are_dropped():
    preparation = Preparation({"c": "category"}, {"c": None}, min_rows=5)
    counts = np.zeros(2**14)
    counts[[7, 9, 4000]] = [5, 4, 30]
    sums = {"missing": np.zeros(1), "exponents": np.zeros((0, EXPONENTS)), "categories/c": counts}
    _, fitted = preparation.learn_profile(Total(sums, rows=39.0, clipped=0.0, max_rows=2**30, sites=3))
    assert fitted["fit/buckets/c"].tolist() == [7, 4000]
    with pytest.raises(TaskError, match="no site has a training row"):
        preparation.learn_profile(Total(sums, rows=0.0, clipped=0.0, max_rows=2**30, sites=3))


# --- evaluation


def test_auc_of_histograms_equals_scikit_learn_on_binned_scores():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    bins = np.clip(rng.normal(200 + 60 * labels, 90), 0, 511).astype(int)
    positives, negatives = (np.bincount(bins[labels == label], minlength=512).astype(float) for label in (1, 0))
    assert evaluation.auc(positives, negatives) == pytest.approx(roc_auc_score(labels, bins), abs=1e-12)
    assert evaluation.auc(positives, np.zeros(512)) is None


@pytest.mark.parametrize("kind", evaluation.KINDS)
def test_metrics_of_no_test_rows_are_undefined_not_an_error(kind):
    sums = {block.name: np.zeros(block.shape) for block in evaluation.blocks(kind)}
    found = evaluation.metrics(sums, kind)
    assert found.pop("test_rows") == 0
    assert all(value is None for value in found.values())


def test_metrics_are_means_over_rows_and_over_sites():
    sums = {block.name: np.zeros(block.shape) for block in evaluation.blocks("multiclass")}
    sums |= {"test/rows": 10.0, "test/sites": 2.0, "test/loss": 5.0, "test/correct": 7.0, "test/site_accuracy": 1.2}
    found = evaluation.metrics(sums, "multiclass")
    assert found == {"test_rows": 10.0, "loss": 0.5, "accuracy": 0.7, "site_accuracy": 0.6}
