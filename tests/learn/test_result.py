from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import cloister as cl
from cloister.learn.comparison import Comparison
from cloister.privacy import PrivacyStatement
from cloister.vector import State, digest
from cloister.vector.errors import StorageFull, UsageError

SEALED = PrivacyStatement("none", "none", None, None, "sealed", 1)
SHAPES = [["weight", [1, 2]], ["bias", [1]]]


def job(**changes):
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(lr=0.1))
    settings = {"data": cl.Table("patients", target="ill"), "task": task, "algorithm": cl.FedAvg(rounds=2)}
    return cl.Job(**{**settings, **changes})


def history():
    return [
        {"round": 0, "rows": 30, "sites": 4, "test_rows": 9.0, "loss": 0.69, "accuracy": 0.5, "auc": None},
        {"round": 1, "rows": 30, "sites": 4, "clipped": 0, "train_loss": 0.6},
        {
            "round": 2,
            "rows": 21,
            "sites": 3,
            "clipped": 2,
            "train_loss": 0.5,
            "loss": 0.4,
            "accuracy": 0.9,
            "auc": 0.95,
        },
    ]


def state(**facts):
    known = {
        "stage": "done",
        "round": 2,
        "history": history(),
        "shapes": SHAPES,
        "columns": {"a": "number", "b": "number"},
    }
    return State({**known, **facts}, {"model": np.array([1.0, -2.0, 0.5], np.float32)})


def events():
    """As a federation gives them: other stages, refusals, seconds by phase, bytes by site."""
    rounds = [
        {"event": "round", "stage": "train", "round": number, "trained": number - 2, "sites": 4,
         "seconds": {"keys": 0.25, "upload": 0.5}, "bytes_up": {"a": 10, "b": 20}, "bytes_down": {"a": 5}}
        for number in (3, 4)
    ]  # fmt: skip
    before = [
        {"event": "round", "stage": "profile", "round": 0, "seconds": {"keys": 9.0}},
        {"event": "refused", "site": "a"},
    ]
    return [*before, *rounds, {"event": "done"}]


@pytest.fixture
def result():
    return cl.Result(job(), state(), SEALED, events(), [b"first", b"second"])


def test_the_model_is_the_users_module_with_the_trained_values(result):
    model = result.model
    assert type(model).__name__ == "Linear"
    assert model.weight.tolist() == [[1.0, -2.0]]
    assert model.bias.tolist() == [0.5]
    assert result.model is model


def test_history_joins_what_was_learned_with_what_it_cost(result):
    table = result.history
    assert list(table.columns) == [
        "round", "sites", "rows", "clipped", "train_loss", "loss", "accuracy", "auc", "seconds", "bytes_up",
        "bytes_down", "test_rows",
    ]  # fmt: skip
    assert table["seconds"].tolist()[1:] == [0.75, 0.75]
    assert table["bytes_up"].tolist()[1:] == [30.0, 30.0]
    assert np.isnan(table["seconds"][0])
    assert np.isnan(table["auc"][0])
    assert result.final == {"accuracy": 0.9, "auc": 0.95, "loss": 0.4}
    assert list(result.table.index) == ["federated"]


def test_it_is_made_from_the_pieces_that_a_federation_hands_out(result):
    made = cl.Result(cl.Job.from_bytes(result.job.to_bytes()), State.from_bytes(result.state.to_bytes()), SEALED)
    assert made.model_bytes == result.model_bytes
    assert "seconds" not in made.history
    assert made.as_json()["history"][0]["auc"] is None


def test_predict_takes_a_raw_table(result):
    said = result.predict(pd.DataFrame({"a": [0.0, 1.0], "b": [0.0, 1.0]}))
    assert said == pytest.approx(1 / (1 + np.exp([-0.5, 0.5])), abs=1e-6)


def test_save_writes_a_folder_that_holds_all_of_it(tmp_path, result):
    folder = result.save(tmp_path / "deep" / "results")
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv", "job.bundle", "job.json", "model.safetensors", "receipts", "report.html", "state.bundle",
    ]  # fmt: skip
    assert load_file(folder / "model.safetensors")["weight"].tolist() == [[1.0, -2.0]]
    assert json.loads((folder / "job.json").read_text()) == result.job.manifest()
    assert digest((folder / "job.bundle").read_bytes()) == result.job.digest
    assert State.from_bytes((folder / "state.bundle").read_bytes()).to_bytes() == result.state.to_bytes()
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert [path.read_bytes() for path in sorted((folder / "receipts").iterdir())] == [b"first", b"second"]


def test_saving_again_replaces_the_files_and_leaves_no_stale_receipt(tmp_path, result):
    result.save(tmp_path)
    cl.Result(result.job, result.state, SEALED, receipts=[b"only"]).save(tmp_path)
    assert [path.name for path in (tmp_path / "receipts").iterdir()] == ["00000.receipt"]


def test_the_model_loads_into_the_users_module_by_torch_alone(tmp_path, result):
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    module = torch.nn.Linear(2, 1)
    module.load_state_dict(safetensors_torch.load_file(result.save(tmp_path) / "model.safetensors"))
    assert module.bias.tolist() == [0.5]


def test_a_place_where_nothing_can_be_written_is_one_clear_error(tmp_path, result, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        result.save(tmp_path / "file")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageFull, match="disk is full"):
        result.save(tmp_path / "results")


def test_as_json_is_json_and_names_the_model(result):
    facts = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert facts["model_sha256"] == digest(result.model_bytes).hex()
    assert facts["metrics"] == {"accuracy": 0.9, "auc": 0.95, "loss": 0.4}
    assert facts["comparison"] is None
    assert facts["receipts"] == 2
    assert facts["privacy"]["seal"] == "sealed"


def test_plot_is_a_figure_of_the_measured_metrics(result):
    assert [axes.get_title() for axes in result.plot().axes] == ["loss", "accuracy", "auc"]
    assert [axes.get_title() for axes in result.plot("auc", "seconds").axes] == ["auc", "seconds"]
    with pytest.raises(UsageError, match="no 'f1'"):
        result.plot("f1")


def test_plot_shows_what_the_result_is_compared_with():
    comparison = Comparison({"loss": 0.4}, {"loss": 0.3}, {"a": {"loss": 0.5}, "b": {}}, {"a": 3, "b": 0}, 9)
    figure = cl.Result(job(), state(), SEALED, comparison=comparison).plot("loss")
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["training", "federated", "local-only", "pooled"]


def test_a_job_without_evaluation_has_a_history_and_a_plot():
    rows = [
        {"round": 0, "rows": 30, "sites": 4},
        {"round": 1, "rows": 30, "sites": 4, "clipped": 0, "train_loss": 0.6},
    ]
    result = cl.Result(job(evaluate=None), state(history=rows), SEALED)
    assert result.final == {}
    assert [axes.get_title() for axes in result.plot().axes] == ["train loss"]
    assert "no evaluation" in result.report()
