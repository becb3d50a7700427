from __future__ import annotations

import numpy as np
import pytest

import cloister as cl
from cloister.learn.comparison import Comparison, measure
from cloister.simulation import compare, shards


def test_the_comparison_measures_all_three_on_the_same_test_rows(whole, make_job):
    job = make_job(algorithm=cl.FedAvg(rounds=6))
    result = cl.simulate(job, whole, sites=4, baselines=True)
    found = result.comparison
    assert list(result.table.index) == ["local-only", "federated", "pooled"]
    assert list(result.table.columns) == ["accuracy", "auc", "loss"]
    assert set(found.local) == {"site-1", "site-2", "site-3", "site-4"}
    assert found.test_rows == result.history["test_rows"].iloc[-1]
    assert sum(found.train_rows.values()) + found.test_rows == len(whole)
    # the federation's own sums are exact for accuracy and loss, and near for AUC
    assert found.federated["accuracy"] == pytest.approx(result.final["accuracy"])
    assert found.federated["loss"] == pytest.approx(result.final["loss"], rel=1e-4)
    assert found.federated["auc"] == pytest.approx(result.final["auc"], abs=0.01)


def test_it_can_be_made_later_from_the_state_alone(whole, make_job):
    tables = shards(whole, target="ill", sites=3)
    result = cl.simulate(make_job(), tables)
    lines = []
    found = compare(result.job, tables, result.state, lines.append)
    assert found == cl.simulate(make_job(), tables, baselines=True).comparison
    assert len(lines) == 4


def test_statistics_of_the_site_are_those_of_its_training_rows(whole, make_job):
    job = make_job(prepare=[cl.OneHot(), cl.Standardize(by="site")], algorithm=cl.FedAvg(rounds=6))
    result = cl.simulate(job, whole, sites=3, baselines=True)
    assert result.comparison.federated["accuracy"] == pytest.approx(result.final["accuracy"])


def test_a_split_column_is_kept_for_the_pooled_rows(whole, make_job):
    frame = whole.assign(set=np.where(np.arange(len(whole)) % 3 == 0, "test", "train"))
    job = make_job(data=cl.Table("patients", target="ill", split="set"))
    found = cl.simulate(job, frame, sites=3, baselines=True).comparison
    assert found.test_rows == 100


def test_a_site_whose_own_model_diverges_has_no_metrics(whole, make_job):
    tables = shards(whole, target="ill", sites=5)
    tables["site-3"] = tables["site-3"].assign(level=tables["site-3"]["level"] * 1e60)
    job = make_job(prepare=[cl.OneHot()], task=cl.Torch(cl.nets.Linear(), "bce", cl.SGD(lr=0.001)))
    found = cl.simulate(job, tables, baselines=True).comparison
    assert found.local["site-3"] == {}
    assert found.local["site-1"]["accuracy"] is not None
    assert found.local_mean("accuracy") is not None


def test_without_an_evaluation_there_is_nothing_to_compare(whole, make_job):
    result = cl.simulate(make_job(evaluate=None), whole, sites=3, baselines=True)
    assert result.final == {}
    assert result.comparison.test_rows == 0
    assert result.report()


def test_regression_compares_errors(whole, make_job):
    job = make_job(
        data=cl.Table("patients", target="dose"),
        task=cl.Torch(cl.nets.Linear(), "mse", cl.SGD(lr=0.05)),
        algorithm=cl.FedAvg(rounds=6),
    )
    result = cl.simulate(job, whole, sites=3, baselines=True)
    assert set(result.table.columns) == {"rmse", "mae", "loss"}
    assert result.comparison.federated["rmse"] == pytest.approx(result.final["rmse"], rel=1e-4)
    assert "RMSE" in result.report()


def test_exact_metrics():
    labels, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    found = measure("binary", labels, score)
    assert found["accuracy"] == 0.5
    assert found["auc"] == 0.75
    assert found["loss"] == pytest.approx(-np.mean(np.log([0.9, 0.4, 0.4, 0.9])))
    assert measure("binary", np.ones(4), score)["auc"] is None
    assert measure("binary", np.array([1.0]), np.array([0.0]))["loss"] == 64.0
    many = measure("multiclass", np.array([0, 2]), np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]))
    assert many == {"accuracy": 0.5, "loss": pytest.approx(-np.mean(np.log([0.5, 0.1])))}
    assert measure("regression", np.array([1.0, 2.0]), np.array([2.0, 4.0]))["mae"] == 1.5


def test_ties_count_one_half_as_in_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    labels, score = rng.integers(2, size=500), rng.integers(10, size=500) / 10
    assert measure("binary", labels, score)["auc"] == pytest.approx(roc_auc_score(labels, score))


def test_who_beats_whom():
    found = Comparison(
        federated={"accuracy": 0.9, "loss": 0.3},
        pooled={},
        local={"a": {"accuracy": 0.8, "loss": 0.2}, "b": {"accuracy": 0.95, "loss": 0.4}, "c": {}},
        train_rows={"a": 1, "b": 2, "c": 0},
        test_rows=10,
    )
    assert found.against_local("accuracy") == (1, 0, 1)
    assert found.against_local("loss") == (1, 0, 1)
    assert found.against_local("auc") == (0, 0, 0)
    assert found.local_mean("accuracy") == pytest.approx(0.875)
    assert np.isnan(found.table().loc["pooled"]).all()


def test_baselines_of_any_algorithm_are_plain_training(whole, make_job):
    """A server's optimizer or a part that stays has nothing to do with what one site gets alone."""
    plain, adaptive, partial = (
        cl.simulate(make_job(algorithm=algorithm), whole, sites=3, baselines=True, engine="serial")
        for algorithm in (cl.FedAvg(rounds=3), cl.FedAdam(rounds=3), cl.FedRep(rounds=3))
    )
    for other in (adaptive, partial):
        assert other.comparison.pooled == plain.comparison.pooled
        assert other.comparison.local == plain.comparison.local
    assert partial.comparison.federated == partial.final, "nobody has that model whole"
