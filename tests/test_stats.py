"""Intervals: deterministic, clustered, honest about what they do not know."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.metrics.stats import bootstrap_interval, paired_difference

rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from("abcde")), min_size=1, max_size=30)


@given(rows)
def test_the_interval_contains_the_mean(made: list[tuple[float, float, str]]) -> None:
    a, b, clusters = (list(column) for column in zip(*made, strict=True))
    names = [str(cluster) for cluster in clusters]
    first, second = [float(value) for value in a], [float(value) for value in b]
    interval = bootstrap_interval(first, names, resamples=100)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    forth = paired_difference(first, second, names, resamples=100)
    back = paired_difference(second, first, names, resamples=100)
    assert forth.low <= forth.value <= forth.high
    assert forth == pytest.approx((-back.value, -back.high, -back.low))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values, clusters = np.random.default_rng(0).random(200).tolist(), [str(number // 3) for number in range(200)]
    assert bootstrap_interval(values, clusters) == bootstrap_interval(values, clusters, seed=0)
    assert bootstrap_interval(values, clusters) != bootstrap_interval(values, clusters, seed=1)


def test_a_difference_of_a_policy_with_itself_is_zero_for_sure() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    assert paired_difference(values, values, [str(number) for number in range(50)]) == (0, 0, 0)


def test_answers_about_one_image_do_not_count_as_independent() -> None:
    values = [float(number // 10 % 2) for number in range(400)]
    alone = bootstrap_interval(values, [str(number) for number in range(400)])
    together = bootstrap_interval(values, [str(number // 10) for number in range(400)])
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_one_image_tells_nothing_about_others() -> None:
    assert bootstrap_interval([1.0, 0.0], ["a", "a"]) == (0.5, 0.0, 1.0)
    assert paired_difference([1.0, 1.0], [0.0, 1.0], ["a", "a"]) == (0.5, -1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "no values"), ([1.0], ["a", "b"], "2 clusters"), ([float("nan"), 1.0], ["a", "b"], "finite")],
    ids=["nothing", "unequal", "nan"],
)
def test_what_has_no_mean_is_refused(values: list[float], clusters: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, clusters)


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_difference([1.0], [1.0, 0.0], ["a"])


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        rates = np.repeat(rng.beta(2, 2, size=60), 4)
        values = (rng.random(240) < rates).astype(float).tolist()
        low, high = bootstrap_interval(values, [str(n // 4) for n in range(240)], seed=trial, resamples=400)[1:]
        hits += low <= 0.5 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_twenty_thousand_values_take_little_time() -> None:
    values = np.random.default_rng(0).random(20_000).tolist()
    start = time.process_time()
    bootstrap_interval(values, [str(number) for number in range(20_000)])
    assert time.process_time() - start < 2
