"""Reading a site's table and checking it: each fault gets one line that names the column and holds no value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister import learn
from cloister.learn.tables import numbers, texts
from cloister.vector.errors import DataError


def csv(folder: Path, text: str) -> Path:
    path = folder / "kent.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_and_texts_and_missing_cells(tmp_path: Path) -> None:
    frame = learn.read_table(csv(tmp_path, 'age, sex ,note,none\n41,f,"a, b",\n,m,NA,\n3.5,f,"line\nbreak",\n'))
    assert learn.schema(frame) == {"age": "number", "sex": "category", "note": "category", "none": "empty"}
    assert frame["age"].tolist()[::2] == [41.0, 3.5]
    assert np.isnan(frame["age"][1])
    assert frame["note"].tolist()[::2] == ["a, b", "line\nbreak"]
    assert pd.isna(frame["note"][1])


@pytest.mark.parametrize(
    ("text", "says", "detail"),
    [
        ("", "is empty", "kent.csv"),
        ("age,y\n", "no row", "kent.csv"),
        ("age,y\n1,2\n3\n", "1 cells, the header 2", "line 3"),
        ("age,y\n1,2\n3,4,5\n", "3 cells, the header 2", "line 3"),
        ("age,age\n1,2\n", "more than once", ""),
        ("age,\n1,2\n", "without a name", ""),
        ("age;y\n1;2\n", "no comma", ""),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, text: str, says: str, detail: str) -> None:
    with pytest.raises(DataError) as caught:
        learn.read_table(csv(tmp_path, text))
    assert says in str(caught.value)
    assert detail in caught.value.local_detail
    assert "local_detail" not in caught.value.as_json()
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_and_one_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        learn.read_table(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("name,y\nJosé,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="no UTF-8 text"):
        learn.read_table(tmp_path / "latin.csv")
    (tmp_path / "bom.csv").write_bytes("name,y\nJosé,1\n".encode("utf-8-sig"))
    assert list(learn.read_table(tmp_path / "bom.csv").columns) == ["name", "y"]


def test_junk_in_a_number_column_is_counted_but_not_quoted(tmp_path: Path) -> None:
    frame = learn.read_table(csv(tmp_path, "age,y\n41,1\nforty-two,0\ninf,1\nsecret,1\n"))
    contract = cl.Table("t", target="y", columns={"age": "number"})
    with pytest.raises(DataError) as caught:
        learn.check(contract, frame, "kent", {"age": "number"})
    error = caught.value
    assert str(error).startswith("site kent: column 'age' has 3 cells that are no finite numbers")
    assert error.local_detail == "first at line 3 of the file"
    assert "secret" not in str(error.as_json())
    assert "forty" not in str(error.as_json())


def test_a_missing_column_names_those_that_are_close(tmp_path: Path) -> None:
    frame = learn.read_table(csv(tmp_path, "age,diseased\n41,1\n"))
    with pytest.raises(DataError, match=r"site kent: .* no column 'disease'\. Did you mean 'diseased'\?"):
        learn.check(cl.Table("t", target="disease"), frame, "kent", {"age": "number"})


def test_rows_without_a_target_are_a_warning(tmp_path: Path) -> None:
    frame = learn.read_table(csv(tmp_path, "age,y\n41,1\n42,\n43,0\n"))
    assert learn.check(cl.Table("t", target="y"), frame, "kent", {"age": "number"}) == [
        "1 rows without a value in 'y' are left out."
    ]


def test_a_leading_zero_makes_a_code(tmp_path: Path) -> None:
    frame = learn.read_table(csv(tmp_path, "code,share,y\n041,0.5,1\n41,0,0\n"))
    assert learn.schema(frame) == {"code": "category", "share": "number", "y": "number"}
    assert frame["code"].tolist() == ["041", "41"]


def test_texts_are_the_same_for_numbers_strings_and_booleans() -> None:
    for column in ([3, 1, 3], [3.0, 1.0, 3.0], ["3", "1", " 3"]):
        codes, spelled = texts(pd.DataFrame({"a": column}), "a")
        assert [spelled[code] for code in codes] == ["3", "1", "3"]
    codes, spelled = texts(pd.DataFrame({"a": [None, "x", np.nan]}), "a")
    assert [spelled[code] for code in codes] == ["", "x", ""]
    assert numbers(pd.DataFrame({"a": [True, False]}), "a", "").tolist() == [1.0, 0.0]
