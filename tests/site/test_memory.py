"""What a site keeps between rounds counts where a receipt says so, and is given back otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cloister.learn import InFolder
from cloister.site.memory import RunMemory

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def receipt(query: bytes, *survivors: str) -> Any:
    return SimpleNamespace(plan=SimpleNamespace(query=query), u3=survivors)


def test_a_step_whose_sum_was_opened_without_this_site_is_taken_back(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "run"
    worker, agent = InFolder(folder), RunMemory(folder, "kent")
    agent.asked(3, ONE)
    worker.save("kent", 3, {"c": np.ones(2)})
    agent.receipted(receipt(ONE, "kent", "lyon", "oslo"))
    agent = RunMemory(folder, "kent")  # started again
    agent.asked(4, TWO)
    assert worker.load("kent", 4)["c"][0] == 1
    worker.save("kent", 4, {"c": np.full(2, 2.0)})
    agent.receipted(receipt(TWO, "bern", "lyon", "oslo"))
    agent.asked(5, THREE)
    assert worker.load("kent", 5)["c"][0] == 1, "what step 4 left does not count"
    worker.save("kent", 5, {"c": np.full(2, 3.0)})
    agent.asked(5, THREE)  # its round was void: asked again, from what step 3 left
    assert worker.load("kent", 5)["c"][0] == 1
    agent.forget()
    assert not list((tmp_path / "memory").iterdir())


def test_what_training_code_links_elsewhere_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "run"
    folder.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "3").write_text("kept")
    (folder / "kent").symlink_to(tmp_path / "precious")
    agent = RunMemory(folder, "kent")
    agent.asked(3, ONE)
    agent.asked(4, TWO)
    assert (tmp_path / "precious" / "3").read_text() == "kept"
