from __future__ import annotations

import numpy as np
import pytest

import cloister as cl
from cloister.learn import schema
from cloister.round import Program
from cloister.simulation import LocalCohort, shards
from cloister.simulation.engine import SerialEngine
from cloister.simulation.sealing import Ideal, Masks
from cloister.vector import Answer, Query, State, digest
from cloister.vector.errors import DataError, RoundVoid, TaskError, UsageError


def model_of(result):
    return digest(result.model_bytes)


@pytest.mark.parametrize("bits", [16, 20, 24, 32, 64])
def test_ideal_and_masks_give_bit_identical_models(whole, make_job, bits):
    job = make_job(bits=bits, algorithm=cl.FedAvg(rounds=2, bound=2.0))
    ideal, masks = (cl.simulate(job, whole, sites=4, seal=seal) for seal in ("ideal", "masks"))
    assert model_of(ideal) == model_of(masks)
    assert ideal.state.to_bytes() == masks.state.to_bytes()
    assert not ideal.receipts
    assert len(masks.receipts) == 6  # profile, mean, variance, two rounds, evaluation


def test_ideal_and_masks_agree_under_dropouts_and_sampled_cohorts(whole, make_job):
    job = make_job(algorithm=cl.FedAvg(rounds=4, cohort=0.7))
    ideal, masks = (cl.simulate(job, whole, sites=8, seal=seal, dropouts=0.1) for seal in ("ideal", "masks"))
    assert model_of(ideal) == model_of(masks)
    asked = [event["sites"] for event in ideal.events if event["event"] == "round" and event["stage"] == "train"]
    assert asked == [6, 6, 6, 6]
    assert ideal.history["sites"].min() < 8
    assert [e["survivors"] for e in ideal.events if "survivors" in e] == [
        e["survivors"] for e in masks.events if "survivors" in e
    ]


def test_the_seed_decides_the_result(whole, make_job):
    job = make_job()
    first, again = cl.simulate(job, whole, sites=3), cl.simulate(job, whole, sites=3)
    assert first.state.to_bytes() == again.state.to_bytes()
    other = cl.simulate(job, whole, sites=3, seed=1)
    assert model_of(other) != model_of(first)
    assert other.job.seed == 1


def test_a_folder_of_csvs_gives_the_same_model_as_its_tables(tmp_path, whole, make_job):
    tables = shards(whole, target="ill", sites=3)
    for site, frame in tables.items():
        frame.to_csv(tmp_path / f"{site}.csv", index=False)
    results = [cl.simulate(make_job(), data) for data in (tables, tmp_path, str(tmp_path))]
    assert len({model_of(result) for result in results}) == 1


def test_it_learns_and_the_history_tells(whole, make_job):
    result = cl.simulate(make_job(algorithm=cl.FedAvg(rounds=8)), whole, sites=4)
    history = result.history
    assert history["round"].tolist() == list(range(9))
    assert history["accuracy"].iloc[-1] > 0.85 > history["accuracy"].iloc[0]
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[1]
    assert history["seconds"].iloc[1:].notna().all()
    assert result.final["auc"] == history["auc"].iloc[-1]
    assert result.privacy.seal == "ideal"


def test_named_sites_vanish_in_named_steps(whole, make_job):
    events = []
    result = cl.simulate(make_job(), whole, sites=4, dropouts={3: ["site-2"], 5: ["site-4"]}, progress=events.append)
    assert result.history["sites"].tolist() == [4, 3, 4, 3]
    assert [event["event"] for event in events] == ["round"] * 7 + ["done"]
    without = cl.simulate(make_job(), whole, sites=4)
    assert model_of(result) != model_of(without)


@pytest.mark.parametrize("seal", ["ideal", "masks"])
def test_too_many_dropouts_open_nothing(whole, make_job, seal):
    with pytest.raises(RoundVoid, match="3 of 5 sites answered, the sum takes 4"):
        cl.simulate(make_job(), whole, sites=5, seal=seal, dropouts={4: ["site-1", "site-2"]})


@pytest.mark.parametrize("dropouts", [-0.1, 1.0, "a", {3: ["nobody"]}])
def test_senseless_dropouts_are_refused(whole, make_job, dropouts):
    with pytest.raises(UsageError, match="dropouts"):
        cl.simulate(make_job(), whole, dropouts=dropouts)


def test_a_site_that_diverges_is_a_dropout_and_the_run_goes_on(whole, make_job):
    """Its numbers are of another scale than the others': float32 cannot hold them, and its loss is NaN."""
    tables = shards(whole, target="ill", sites=5)
    tables["site-3"] = tables["site-3"].assign(level=tables["site-3"]["level"] * 1e60)
    job = make_job(prepare=[cl.OneHot()], task=cl.Torch(cl.nets.Linear(), "bce", cl.SGD(lr=0.001)))
    results = [cl.simulate(job, tables, seal=seal) for seal in ("ideal", "masks")]
    refused = [event for event in results[0].events if event["event"] == "refused"]
    assert {event["site"] for event in refused} == {"site-3"}
    assert refused[0]["error"] == "TaskError"
    assert results[0].history["sites"].iloc[1:].tolist() == [4, 4, 4]
    assert np.isfinite(results[0].state.tensors["model"]).all()
    assert model_of(results[0]) == model_of(results[1])


def test_when_all_diverge_the_error_names_site_round_and_mend(whole, make_job):
    task = cl.Torch(cl.nets.Linear(), "mse", cl.SGD(lr=1e6), epochs=50)
    job = make_job(data=cl.Table("patients", target="age", ignore=["ill"]), task=task)
    with pytest.raises(TaskError, match="round 1: 0 of 5 sites") as caught:
        cl.simulate(job, whole)
    assert caught.value.site == "site-1"
    assert "learning rate" in caught.value.mend


def test_a_site_with_one_class_takes_part(whole, make_job):
    tables = shards(whole, target="ill", sites=4)
    tables["site-2"] = tables["site-2"][tables["site-2"]["ill"] == 1].reset_index(drop=True)
    result = cl.simulate(make_job(), tables, baselines=True)
    assert result.history["sites"].min() == 4
    assert result.comparison.local["site-2"]["accuracy"] is not None


def test_wrong_data_names_site_and_column(whole, make_job):
    tables = shards(whole, target="ill", sites=3)
    with pytest.raises(DataError, match="no column 'age'") as caught:
        cl.simulate(make_job(), {**tables, "site-2": tables["site-2"].drop(columns="age")})
    assert caught.value.site == "site-2"
    with pytest.raises(DataError, match="no column 'sick'"):
        cl.simulate(make_job(data=cl.Table("patients", target="sick")), tables)


def test_senseless_settings_are_refused(whole, make_job):
    with pytest.raises(UsageError, match="ideal, masks"):
        cl.simulate(make_job(), whole, seal="none")
    with pytest.raises(UsageError, match="at most 2048"):
        Masks(make_job(), [f"site-{number}" for number in range(2049)])


def test_scikit_learn_and_a_plain_linear_model_run_too(whole, make_job):
    from sklearn.linear_model import SGDClassifier

    job = make_job(task=cl.Sklearn(SGDClassifier(loss="log_loss")))
    ideal, masks = (cl.simulate(job, whole, sites=3, seal=seal) for seal in ("ideal", "masks"))
    assert model_of(ideal) == model_of(masks)
    assert ideal.final["accuracy"] > 0.8


def test_a_model_of_ones_own_runs(tmp_path, whole, make_job):
    path = tmp_path / "job.py"
    path.write_text(
        "import cloister as cl\nfrom torch import nn\n\n"
        "def net():\n    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))\n\n"
        "job = cl.Job(cl.Table('patients', target='ill'), cl.Torch(net, 'bce', cl.SGD(lr=0.1)),\n"
        "             cl.FedAvg(rounds=2), prepare=[cl.OneHot(), cl.Standardize()])\n"
    )
    result = cl.simulate(cl.load_job(path), whole, sites=3)
    assert type(result.model).__name__ == "Sequential"
    assert result.job.ships_code


def test_masked_rounds_count_the_bytes_that_pass(whole, make_job):
    result = cl.simulate(make_job(), whole, sites=3, seal="masks")
    history = result.history
    parameters = result.state.tensors["model"].size
    assert (history["bytes_up"].iloc[1:] > 3 * 4 * parameters).all()
    assert (history["bytes_down"].iloc[1:] > 0).all()


def test_queries_and_answers_mean_the_same_once_they_have_been_bytes(whole, make_job):
    """A federation sends them; a simulation hands them over. Orders and types must survive the journey."""
    job, tables = make_job(), shards(whole, target="ill", sites=3)
    columns = job.data.resolve({site: schema(table) for site, table in tables.items()})

    class Wire(SerialEngine):
        def answer(self, query, site):
            return Answer.from_bytes(super().answer(Query.from_bytes(query.to_bytes()), site).to_bytes())

    cohort = LocalCohort(job, Wire(job, tables), list(tables), Ideal())
    program = Program(job, columns)
    state = program.start()
    while (query := program.ask(state)) is not None:
        state = State.from_bytes(program.learn(state, cohort.sum(query)).to_bytes())  # as after a crash
    assert state.to_bytes() == cl.simulate(job, tables).state.to_bytes()
