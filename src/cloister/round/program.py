"""Program: a job as one state machine of questions to the cohort.

    profile -> mean -> variance -> train (rounds) -> evaluate -> done

Every stage is a question (a `Query`), and a pure step from its opened total to the next state. Stages that a job
does not need are skipped. The coordinator and the simulator run this same code; it never sees a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cloister.algorithms import Preparation, evaluation
from cloister.job import Arrays, Impute, Job, OneHot, Standardize
from cloister.round import private
from cloister.vector import Layout, Query, State, Total, flatten
from cloister.vector.errors import JobError
from cloister.vector.layout import Block

TRAIN_LOSS_BOUND = 2.0**20


class Program:
    """The questions of one job over tables with these feature columns.

    Args:
      job: what to compute.
      columns: features, name -> "number" or "category", as `job.data.resolve` gives them.
      simulated: all sites are in one process; an asynchronous algorithm sees to it.
    """

    def __init__(self, job: Job, columns: Mapping[str, str], *, simulated: bool = False) -> None:
        self.job = job
        self.simulated = simulated and job.algorithm.asynchronous
        self.columns = dict(columns)
        self.preparation = preparation_of(job, columns)

    def start(self) -> State:
        facts = {"stage": "profile", "step": 0, "round": 0, "history": [], "columns": self.columns}
        return State({**facts, "simulated": True} if self.simulated else facts, {})

    def ask(self, state: State) -> Query | None:
        """The next question, or None when the job is done."""
        query = self._ask_stage(state)
        if query is None:
            return None
        query = replace(query, config={**query.config, "step": state.facts["step"]})
        return private.asked(self.job, state, query) if self.job.privacy else query

    def learn(self, state: State, total: Total) -> State:
        """The next state, from the total of the question that `ask(state)` gave."""
        query = self.ask(state) if self.job.privacy else None
        if query is not None:
            total = private.opened(self.job, query, total)
        after = _LEARN[state.facts["stage"]](self, state, total)
        if query is not None:
            after = private.spent(self.job, query, total, after)
        return after.with_({"step": state.facts["step"] + 1})

    # --- questions

    def _ask_stage(self, state: State) -> Query | None:
        stage = state.facts["stage"]
        if stage == "profile":
            return self.preparation.profile()
        if stage == "mean":
            return self.preparation.mean(state.facts["rows"], state.tensors)
        if stage == "variance":
            return self.preparation.variance(state.facts["rows"], state.tensors)
        if stage == "train":
            return self._ask_train(state)
        if stage == "evaluate":
            return self._with_model(state, "evaluate", self._tests(), {"round": state.facts["round"]})
        return None

    def _ask_train(self, state: State) -> Query:
        query = self.job.algorithm.ask(state)
        assert query is not None, "the stage is left when the algorithm has no more questions"
        loss = Block("train_loss", (), bound=TRAIN_LOSS_BOUND, weighted=True, wide=True)
        evaluates = self._measures(state)
        tests = self._tests() if evaluates else ()
        config = {**query.config, "evaluate": evaluates}
        blocks = (*query.layout.blocks, loss, *tests)
        asked = self._with_model(state, query.task, blocks, config, query.tensors)
        return replace(
            query, layout=asked.layout, max_rows=asked.max_rows, tensors=asked.tensors, config=asked.config
        )

    def _measures(self, state: State) -> bool:
        """Whether the training question that follows also measures the model."""
        return self.job.evaluates(state.facts["round"]) and self.job.algorithm.measures(state)

    def _with_model(
        self,
        state: State,
        task: str,
        blocks: tuple[Block, ...],
        config: Mapping[str, Any],
        tensors: Mapping[str, Any] | None = None,
    ) -> Query:
        """A question about the model: with it travel the fitted statistics and the names of its tensors."""
        broadcast = {name: value for name, value in state.tensors.items() if name in _BROADCAST or "buckets" in name}
        described = {
            **config,
            "columns": [[name, kind] for name, kind in self.columns.items()],
            "shapes": state.facts["shapes"],
        }
        tensors = {**broadcast, **(tensors or {})}
        return Query(task, Layout(blocks), state.facts["rows"], tensors, described)

    def _tests(self) -> tuple[Block, ...]:
        """What an evaluation asks for, of every model that the algorithm has."""
        models = self.job.algorithm.measured
        return tuple(block for model in models for block in evaluation.blocks(self.job.kind, model))

    def _metrics(self, total: Total) -> dict[str, float | None]:
        if self.job.privacy:
            return private.metrics(self.job, total)
        return evaluation.all_metrics(total.sums, self.job.kind, self.job.algorithm.measured)

    # --- steps

    def _learn_profile(self, state: State, total: Total) -> State:
        plan = self.preparation
        if self.job.privacy:
            rows, fitted = private.counted(self.job, total), private.declared(self.job, plan.numeric, plan.categories)
        else:
            rows, fitted = plan.learn_profile(total)
            fitted["fit/missing"] = np.rint(total.sums["missing"])
            if plan.declared:
                fitted |= private.declared(self.job, plan.numeric, {})
        after = state.with_({"rows": rows, "sites": total.sites}, fitted)
        if self.preparation.needs_mean:
            return after.with_({"stage": "mean"})
        return self._start_training(after)

    def _learn_mean(self, state: State, total: Total) -> State:
        missing = state.tensors["fit/missing"]
        after = state.with_(None, self.preparation.learn_mean(total, state.facts["rows"], missing, state.tensors))
        if self.preparation.needs_variance:
            return after.with_({"stage": "variance"})
        return self._start_training(after)

    def _learn_variance(self, state: State, total: Total) -> State:
        return self._start_training(state.with_(None, self.preparation.learn_variance(total, state.tensors)))

    def _start_training(self, state: State) -> State:
        data = self.job.data
        inputs = data.inputs if isinstance(data, Arrays) else self.preparation.inputs(state.tensors)
        if inputs < 1 and not self.job.initial:
            raise JobError("no feature column is left to train on.", mend="Check the contract's columns and ignore.")
        shapes, tensors = self.job.initial_model(inputs)
        start = self.job.algorithm.start(flatten(tensors, list(shapes)))
        # pairs, not an object: canonical JSON sorts keys, and the order is that of the flat model
        ordered = [[name, list(shape)] for name, shape in shapes.items()]
        facts = {**start.facts, "stage": "train", "shapes": ordered}
        history = [{"round": 0, "rows": state.facts["rows"], "sites": state.facts["sites"]}]
        return state.with_({**facts, "history": history}, start.tensors)

    def _learn_train(self, state: State, total: Total) -> State:
        """A training question also measures the model that it broadcasts: metrics belong to the round before."""
        history = list(state.facts["history"])
        if self._measures(state):
            history[-1] = {**history[-1], **self._metrics(total)}
            state = _with_best(state, history[-1], self.job.algorithm.patience)
        after = self.job.algorithm.learn(state, total)
        if after.facts["round"] == state.facts["round"]:
            return after.with_({"history": history})  # the round has another question
        row = {
            "round": after.facts["round"],
            "rows": round(total.rows),
            "sites": total.sites,
            "clipped": round(total.clipped),
        }
        if "train_loss" in total.sums:
            row["train_loss"] = float(total.mean("train_loss"))
        stopped = _waited(state, self.job.algorithm.patience)
        if stopped:
            after = after.with_(None, {"model": state.tensors["best/model"]})
            row["best_round"] = state.facts["best"]["round"]
        more = not stopped and self.job.algorithm.ask(after) is not None
        last = "evaluate" if self.job.evaluate is not None else "done"
        return after.with_({"history": [*history, row], "stage": "train" if more else last})

    def _learn_evaluation(self, state: State, total: Total) -> State:
        history = list(state.facts["history"])
        history[-1] = {**history[-1], **self._metrics(total)}
        return state.with_({"history": history, "stage": "done"})


def _with_best(state: State, row: Mapping[str, Any], patience: int | None) -> State:
    """Early stopping (Prechelt 1998, "Early Stopping - But When?"): remembers the model with the smallest loss.

    Args: row: the history's, with the metrics of the state's model.
    """
    if patience is None or row["loss"] is None:
        return state
    best = state.facts.get("best")
    if best is None or row["loss"] < best["loss"]:
        fresh = {"round": row["round"], "loss": row["loss"], "waited": 0}
        return state.with_({"best": fresh}, {"best/model": state.tensors["model"]})
    return state.with_({"best": {**best, "waited": best["waited"] + 1}})


def _waited(state: State, patience: int | None) -> bool:
    return patience is not None and "best" in state.facts and state.facts["best"]["waited"] >= patience


_BROADCAST = ("model", "fit/impute", "fit/mean", "fit/std")
_LEARN = {
    "profile": Program._learn_profile,
    "mean": Program._learn_mean,
    "variance": Program._learn_variance,
    "train": Program._learn_train,
    "evaluate": Program._learn_evaluation,
}


def preparation_of(job: Job, columns: Mapping[str, str]) -> Preparation:
    """What the job's prepare list asks the federation to fit. Raises JobError: a category column not one-hot."""
    steps = {type(step): step for step in job.prepare}
    one_hot, standardize = steps.get(OneHot), steps.get(Standardize)
    named = set(one_hot.columns or ()) if isinstance(one_hot, OneHot) else set()
    for name in sorted(named - set(columns)):
        raise JobError(f"cl.OneHot names column {name!r}, which the contract does not have.")
    encoded = [name for name, kind in columns.items() if kind == "category" or name in named]
    if encoded and one_hot is None:
        raise JobError(f"column {encoded[0]!r} holds categories.", mend="Add cl.OneHot() to the job's prepare list.")
    declared = {name: job.data.categories(name) for name in encoded}
    return Preparation(
        columns=dict(columns),
        categories={name: None if known is None else len(known) for name, known in declared.items()},
        impute=Impute in steps,
        standardize=isinstance(standardize, Standardize) and standardize.by == "federation",
        declared=isinstance(standardize, Standardize) and standardize.ranges is not None,
        drop_first=isinstance(one_hot, OneHot) and one_hot.drop_first,
        min_rows=one_hot.min_rows if isinstance(one_hot, OneHot) else 0,
        classes=job.classes,
    )
