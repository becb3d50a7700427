import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloister.privacy import PrivacyStatement, clip_l2, l2_norm


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(1e-3, 1e6))
def test_a_clipped_vector_is_no_longer_than_the_limit_and_keeps_its_direction(values, limit):
    vector = np.array(values)
    clipped, was_clipped = clip_l2(vector, limit)
    assert l2_norm(clipped) <= limit * (1 + 1e-12)
    assert was_clipped == (l2_norm(vector) > limit)
    if not was_clipped:
        assert clipped is vector
    assert np.allclose(clipped * l2_norm(vector), vector * l2_norm(clipped), rtol=1e-9, atol=1e-9 * limit)


def test_the_norm_does_not_depend_on_how_the_vector_is_cut():
    vector = np.random.default_rng(0).normal(size=(1000, 700)).astype(np.float32)
    assert np.isclose(l2_norm(vector), np.linalg.norm(vector.astype(np.float64)))


def test_a_statement_claims_no_differential_privacy_where_there_is_none():
    statement = PrivacyStatement("none", "none", None, None, "sealed", colluders=1)
    assert "No differential privacy" in statement.sentence
    assert "at most 1 sites" in statement.sentence
    assert "Simulated" in PrivacyStatement("none", "none", None, None, "ideal", 0).sentence
