from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister.simulation import shards
from cloister.simulation.data import Files, site_id
from cloister.vector.errors import DataError, UsageError


def write(folder, names, rows="x,y\n1,0\n2,1\n"):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(rows)
    return folder


def test_a_folder_gives_one_site_per_csv_in_the_order_of_their_ids(tmp_path):
    folder = write(tmp_path / "hospitals", ["Oslo.csv", "kent.csv", "Aachen Nord.CSV", "notes.txt"])
    assert list(shards(folder, target="y")) == ["aachen-nord", "kent", "oslo"]


def test_a_mapping_a_table_a_file_and_a_pair_all_give_sites(tmp_path):
    frame = pd.DataFrame({"x": np.arange(60.0), "y": np.arange(60) % 2})
    frame.to_csv(tmp_path / "all.csv", index=False)
    names = ["site-1", "site-2", "site-3", "site-4"]
    by_file = shards(tmp_path / "all.csv", target="y", sites=4, seed=3)
    assert list(by_file) == list(shards(frame, target="y", sites=4, seed=3)) == names
    assert by_file["site-2"]["x"].tolist() == shards(frame, target="y", sites=4, seed=3)["site-2"]["x"].tolist()
    by_pair = shards((frame[["x"]].to_numpy(), frame["y"]), target="y", sites=4, seed=3)
    assert list(by_pair["site-1"].columns) == ["x0", "y"]
    assert list(shards({"B": frame, "a": frame, "c": frame}, target="y")) == ["a", "b", "c"]
    assert list(shards(frame, target="y")) == [*names, "site-5"]


@pytest.mark.parametrize(
    ("names", "says"),
    [(None, "does not exist"), ([], "no CSV"), (["one.csv"], "at least 3 sites"), (["a.csv", "b.csv"], "has 2")],
)
def test_a_folder_without_three_tables_is_refused(tmp_path, names, says):
    folder = tmp_path / "data" if names is None else write(tmp_path / "data", names)
    with pytest.raises(DataError, match=says) as caught:
        shards(folder, target="y")
    assert caught.value.mend


def test_two_files_of_one_site_are_refused(tmp_path):
    with pytest.raises(DataError, match="both of site 'a'"):
        shards(write(tmp_path, ["A.csv", "a.csv", "b.csv", "c.csv"]), target="y")


def test_an_empty_table_names_its_site(tmp_path):
    folder = write(tmp_path / "data", ["a.csv", "b.csv"])
    write(folder, ["kent.csv"], "x,y\n")
    with pytest.raises(DataError) as caught:
        shards(folder, target="y")
    assert caught.value.site == "kent"


@pytest.mark.parametrize("sites", [0, 1, 2])
def test_fewer_than_three_sites_are_refused(sites):
    with pytest.raises(UsageError, match="at least 3"):
        shards(pd.DataFrame({"y": [0, 1] * 9}), target="y", sites=sites)


def test_what_makes_no_sense_is_refused(tmp_path):
    frame = pd.DataFrame({"x": [1.0] * 9, "y": [0] * 9})
    with pytest.raises(UsageError, match="Leave sites out"):
        shards({"a": frame, "b": frame, "c": frame}, target="y", sites=5)
    with pytest.raises(UsageError, match="10 sites cannot share 9 rows"):
        shards(frame, target="y", sites=10)
    with pytest.raises(DataError, match="no column 'z'"):
        shards(frame, target="z")
    with pytest.raises(UsageError, match="is a int"):
        shards(7, target="y")
    with pytest.raises(UsageError, match="'a' has a list"):
        shards({"a": [1], "b": frame, "c": frame}, target="y")
    with pytest.raises(UsageError, match="9 rows and y the shape"):
        shards((frame, np.zeros(8)), target="z")
    with pytest.raises(UsageError, match="already has a column"):
        shards((frame, np.zeros(9)), target="y")


@pytest.mark.parametrize(
    ("name", "id"), [("Kent", "kent"), ("St. Mary's", "st.-mary-s"), ("_x", "x"), ("Ω", "site"), ("a" * 99, "a" * 63)]
)
def test_ids_are_those_a_roster_can_list(name, id):
    assert site_id(name) == id


def npz(folder: Path, name: str, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    np.savez(folder / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))


def test_a_folder_of_arrays_is_read_when_a_site_is_asked_and_tells_sizes_before(tmp_path):
    for name, rows in (("a", 5), ("b", 9), ("c", 7)):
        npz(tmp_path, name, rows)
    (tmp_path / "d.npz").write_bytes(b"no archive")
    data = shards(tmp_path, target=None)
    assert [data.rows(site) for site in data] == [5, 9, 7, 0]
    assert len(data["b"]) == 9
    npz(tmp_path, "b", 3)
    assert len(data["b"]) == 3
    with pytest.raises(DataError, match=r"^site d: the file holds no arrays"):
        data["d"]


def test_the_next_site_s_file_is_fetched_while_one_trains(tmp_path, monkeypatch):
    for name in "abcde":
        npz(tmp_path, name, 12)
    order: list[str] = []
    read, ahead = Files.__getitem__, Files.ahead
    monkeypatch.setattr(Files, "__getitem__", lambda self, site: order.append(f"read {site}") or read(self, site))
    monkeypatch.setattr(Files, "ahead", lambda self, site: order.append(f"fetch {site}") or ahead(self, site))
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1), batch_size=4)
    job = cl.Job(cl.Arrays("signals", (4,), 2), task, cl.FedAvg(rounds=2), evaluate=None)
    events: list[str] = []
    result = cl.simulate(job, tmp_path, engine="serial", progress=lambda event: events.append(event["event"]))
    assert order[:4] == ["fetch b", "read a", "fetch c", "read b"]
    assert result.history["rows"].tolist() == [60, 60, 60]
    processes = cl.simulate(job, tmp_path, engine="processes", processes=2)
    assert processes.state.to_bytes() == result.state.to_bytes()
