from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import cloister as cl
from cloister.learn import charts
from cloister.learn.comparison import Comparison
from cloister.privacy import PrivacyStatement
from cloister.vector import State

EVIL = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """What a page is made of. Attributes: tags, attributes; `unclosed` is empty where the nesting is right."""

    VOID = {"meta", "br", "link", "img", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.unclosed: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in self.VOID:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        self.text += data


def made(*, name="patients", comparison=None, seal="sealed", rounds=12, events=(), receipts=(), site="kent"):
    rows = [{"round": 0, "rows": 300, "sites": 5, "loss": 0.7, "accuracy": 0.5, "auc": 0.5, "site_accuracy": 0.5}]
    for number in range(1, rounds + 1):
        rows.append(
            {"round": number, "rows": 300, "sites": 4 if number == 3 else 5, "clipped": 0, "train_loss": 0.6 / number,
             "loss": 0.7 / number, "accuracy": 1 - 0.5 / number, "site_accuracy": 0.9, "auc": 1 - 0.4 / number}
        )  # fmt: skip
    if comparison == "good":
        local = {
            site: {"accuracy": 0.7, "auc": 0.8, "loss": 0.9},
            "lyon": {},
            "oslo": {"accuracy": 0.8, "auc": None, "loss": 0.5},
        }
        comparison = Comparison(
            {"accuracy": 0.95, "auc": 0.97, "loss": 0.1}, {"accuracy": 0.96, "auc": 0.98, "loss": 0.09}, local,
            {site: 100, "lyon": 0, "oslo": 200}, 60,
        )  # fmt: skip
    job = cl.Job(
        data=cl.Table(name, target="ill"),
        task=cl.Torch(cl.nets.Linear(), "bce", cl.SGD(lr=0.1)),
        algorithm=cl.FedAvg(rounds=rounds),
    )
    shapes = [["weight", [1, 2]], ["bias", [1]]]
    state = State({"history": rows, "shapes": shapes, "round": rounds}, {"model": np.zeros(3, np.float32)})
    return cl.Result(job, state, PrivacyStatement("none", "none", None, None, seal, 1), events, receipts, comparison)


@pytest.fixture(scope="module")
def page():
    events = [
        {
            "event": "round",
            "stage": "train",
            "round": n,
            "trained": n,
            "sites": 5,
            "seconds": {"keys": 0.2, "upload": 0.1},
            "bytes_up": 2048,
        }
        for n in range(1, 13)
    ]
    return made(comparison="good", events=events, receipts=[b"one", b"two"]).report()


def test_the_page_is_self_contained_and_holds_no_script(page):
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")} | ({"src", "href", "srcset", "style"} & names)
    assert not re.search(r"https?:|//|url\(|@import|javascript:", page)
    policy = dict(parsed.attributes)["content"]
    assert any(value and value.startswith("default-src 'none'") for _, value in parsed.attributes), policy


def test_the_page_is_well_nested_and_tells_everything(page):
    parsed = Page(page)
    assert parsed.unclosed == []
    for said in ("Is it worth federating?", "Learning", "Rounds", "Privacy", "Records", "Federating pays here."):
        assert said in parsed.text
    assert parsed.tags.count("svg") == 1 + 3 + 3 + 2  # the mark, strips, curves, rounds
    assert "Only sums over the surviving sites were opened" in parsed.text
    assert "3.6 s" in parsed.text
    assert "24.6 kB" in parsed.text
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page


def test_everything_is_escaped():
    text = made(name=EVIL, comparison="good", site=EVIL).report()
    assert "<script" not in text
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert Page(text).unclosed == []


def test_a_federations_result_has_no_comparison_and_says_what_it_measured():
    text = made().report()
    assert "Is it worth federating?" not in text
    assert "Accuracy 0.958." in text
    assert "none: nothing was sealed by a federation" in text


@pytest.mark.parametrize(
    ("ours", "alone", "said"),
    [
        (0.6, (0.7, 0.8), "does not pay"),
        (0.75, (0.7, 0.8), "makes no difference"),
        (0.9, (0.7, 0.9), "Federating pays here"),
        (0.9, (0.5, 0.95), "pays for some sites"),
    ],
)
def test_the_verdict_follows_the_numbers(ours, alone, said):
    local = {f"site-{at}": {"accuracy": value} for at, value in enumerate(alone)}
    comparison = Comparison({"accuracy": ours}, {}, local, dict.fromkeys(local, 1), 100)
    assert said in made(comparison=comparison).report()


def test_a_run_without_the_seal_is_shown_in_red():
    assert "ran without the seal" in made(seal="none").report()
    assert "ran without the seal" not in made(seal="ideal").report()


def test_one_round_and_many_rounds_make_a_page_of_reasonable_size():
    assert Page(made(rounds=1).report()).unclosed == []
    assert len(made(rounds=2000).report()) < 2_000_000


def test_missing_and_endless_values_leave_gaps_not_nonsense():
    drawn = str(charts.lines([0, 1, 2], [charts.Series("x", "federated", [None, float("nan"), 1.0])]))
    assert "nan" not in drawn
    assert "None" not in drawn
    assert charts.lines([0, 1], [charts.Series("x", "federated", [None, float("inf")])]) == ""
    assert charts.strip([], [], label="nothing") == ""
    assert charts.bars([1], [("none", [0.0])]) == ""


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.43, 0.97), (-3.0, 1200.0), (1e-9, 2e-9), (5.0, 5.0)])
def test_ticks_are_round_numbers_inside(low, high):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0.000"),
        (0.9737, "0.974"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
        (1e-5, "1.00e-05"),
    ],
)
def test_numbers_for_people(value, text):
    assert charts.number(value) == text
