"""A site's policy: every rule has a default that refuses, and every refusal names its rule."""

import dataclasses

import numpy as np
import pytest

import cloister as cl
from cloister.round import Policy, choose_cohort, decide_job, decide_plan
from cloister.vector.errors import PolicyRefused

DECLARATIVE = cl.Job(
    data=cl.Table("heart", target="disease"),
    task=cl.Torch(model=cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.1)),
    algorithm=cl.FedAvg(rounds=1),
)


def own_model():
    raise AssertionError("deciding must not run code")


SOURCE = dataclasses.replace(
    DECLARATIVE,
    task=cl.Torch(
        model=cl.nets.Code("own_model", initial={"w": __import__("numpy").zeros(1, "float32")}),
        loss="bce",
        optimizer=cl.SGD(lr=0.1),
    ),
    source="def own_model(): ...",
)


def test_the_default_policy_refuses_every_job():
    decision = decide_job(Policy(), DECLARATIVE, "lee")
    assert (decision.allow, decision.rule) == (False, "allow.datasets")
    with pytest.raises(PolicyRefused) as caught:
        decision.require("kent")
    assert caught.value.rule == "allow.datasets"
    assert "site kent" in str(caught.value)


def test_a_declarative_job_runs_by_rule_on_a_bound_dataset():
    policy = Policy(datasets=("heart",))
    assert decide_job(policy, DECLARATIVE, "lee").allow
    assert not decide_job(dataclasses.replace(policy, declarative=False), DECLARATIVE, "lee").allow
    assert decide_job(dataclasses.replace(policy, analysts=("lee",)), DECLARATIVE, "lee").allow
    assert decide_job(dataclasses.replace(policy, analysts=("kim",)), DECLARATIVE, "lee").rule == "allow.analysts"


def test_code_runs_only_if_it_is_approved_by_digest_or_all_code_is_allowed():
    policy = Policy(datasets=("heart",))
    assert decide_job(policy, SOURCE, "lee").rule == "allow.code"
    assert not decide_job(policy, SOURCE, "lee").allow
    policy = dataclasses.replace(policy, code="reviewed")
    refused = decide_job(policy, SOURCE, "lee")
    assert not refused.allow
    assert SOURCE.digest.hex()[:12] in refused.mend
    policy = dataclasses.replace(policy, approved=frozenset({SOURCE.digest.hex()}))
    assert decide_job(policy, SOURCE, "lee").allow
    edited = dataclasses.replace(SOURCE, source="def own_model(): return 1")
    assert not decide_job(policy, edited, "lee").allow, "approval is of one digest"
    assert decide_job(policy, edited, "lee").waits, "the steward may yet approve it"
    assert decide_job(dataclasses.replace(policy, code="signed-by", signed_by=("lee",)), edited, "lee").allow


def test_a_plan_over_the_limits_is_refused():
    policy = Policy(max_upload_bytes=100, min_survivors=4)
    assert decide_plan(policy, upload_bytes=100, min_survivors=4).allow
    assert decide_plan(policy, upload_bytes=101, min_survivors=4).rule == "allow.max_upload_mb"
    assert decide_plan(policy, upload_bytes=100, min_survivors=3).rule == "allow.min_survivors"


def test_a_cohort_is_deterministic_and_never_under_three():
    sites = [f"s{at}" for at in range(20)]
    assert choose_cohort(sites, 1.0, 0, 0) == sorted(sites)
    assert len(choose_cohort(sites, 0.5, 0, 0)) == 10
    assert len(choose_cohort(sites, 0.01, 0, 0)) == 3
    assert choose_cohort(sites, 0.5, 0, 1) == choose_cohort(sites[::-1], 0.5, 0, 1)
    assert len({tuple(choose_cohort(sites, 0.5, 0, step)) for step in range(20)}) > 15
    coins = [choose_cohort(sites, 0.4, 7, step, poisson=True) for step in range(400)]
    assert min(map(len, coins)) >= 3
    assert coins[9] == choose_cohort(sites[::-1], 0.4, 7, 9, poisson=True)
    together = np.array([[site in chosen for site in sites] for chosen in coins], float)
    assert np.all(abs(together.mean(axis=0) - 0.4) < 0.12)
    assert abs(together.sum(axis=1).var() - 20 * 0.4 * 0.6) < 1.5, "as many as coins give, not a fixed number"
    assert len(choose_cohort(sites, 0.001, 7, 0, poisson=True)) >= 3
    asked = [site for step in range(400) for site in choose_cohort(sites, 0.25, 3, step)]
    assert all(60 < asked.count(site) < 140 for site in sites), "each site is asked about 100 times"
