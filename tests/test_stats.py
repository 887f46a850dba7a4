"""Intervals and tests: deterministic, clustered, and right as often as they say, on simulated benchmarks of known truth."""

import itertools
import math
import time
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.metrics.seeds import combine_seeds
from stllava.metrics.stats import (
    analytic_interval,
    bootstrap_interval,
    detectable_difference,
    mcnemar_p,
    paired_analytic,
    paired_difference,
    permutation_p,
)

rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from("abcde")), min_size=1, max_size=30)
tenths = st.integers(0, 10).map(lambda number: number / 10)
coarse_rows = st.lists(st.tuples(tenths, tenths, st.sampled_from("abcde")), min_size=1, max_size=20)


class Columns(NamedTuple):
    a: list[float]
    b: list[float]
    clusters: list[str]


def columns(made: list[tuple[float, float, str]]) -> Columns:
    return Columns([row[0] for row in made], [row[1] for row in made], [row[2] for row in made])


class Simulated(NamedTuple):
    """A benchmark whose truth is known: how likely a right answer to each question is, and the question's image."""

    rates: np.ndarray
    images: list[str]

    def answered(self, rng: np.random.Generator, gain: float = 0.0) -> list[float]:
        """Hits of a policy that is better by `gain` on every question."""
        return [float(hit) for hit in rng.random(len(self.rates)) < self.rates + gain]


def simulated(rng: np.random.Generator, images: int, accuracy: float, prefix: str = "") -> Simulated:
    """Images of different difficulty (an intra-image correlation of 0.25), 1 to 8 questions each."""
    sizes = rng.integers(1, 9, images)
    rates = rng.beta(3 * accuracy, 3 * (1 - accuracy), images)
    return Simulated(np.repeat(rates, sizes), [f"{prefix}{image}" for image in np.repeat(np.arange(images), sizes)])


def mild(rng: np.random.Generator, images: int) -> Simulated:
    """The same with rates from 0.2 to 0.6, which leave room for gains."""
    sizes = rng.integers(1, 9, images)
    return Simulated(np.repeat(rng.uniform(0.2, 0.6, images), sizes), [str(n) for n in np.repeat(np.arange(images), sizes)])


@given(rows)
def test_the_interval_contains_the_mean(made: list[tuple[float, float, str]]) -> None:
    a, b, names = columns(made)
    for interval in (bootstrap_interval(a, names, resamples=100), analytic_interval(a, names)):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for interval in (paired_difference(a, b, names, resamples=100), paired_analytic(a, b, names)):
        assert -1 <= interval.low <= interval.value <= interval.high <= 1


@given(coarse_rows)
def test_swapping_the_policies_flips_the_difference_and_keeps_p(made: list[tuple[float, float, str]]) -> None:
    a, b, names = columns(made)
    forth, back = paired_difference(a, b, names, resamples=100), paired_difference(b, a, names, resamples=100)
    assert forth == pytest.approx((-back.value, -back.high, -back.low))
    forth, back = paired_analytic(a, b, names), paired_analytic(b, a, names)
    assert forth == pytest.approx((-back.value, -back.high, -back.low))
    for resamples in (1, 100):
        assert permutation_p(a, b, names, resamples=resamples) == permutation_p(b, a, names, resamples=resamples)
    assert detectable_difference(a, b, names) == pytest.approx(detectable_difference(b, a, names))


@given(coarse_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_their_unit_change_nothing(made: list[tuple[float, float, str]], random: Random) -> None:
    a, b, names = columns(made)
    mixed = list(made)
    random.shuffle(mixed)
    x, y, others = columns(mixed)
    assert bootstrap_interval(x, others, resamples=100) == pytest.approx(bootstrap_interval(a, names, resamples=100))
    assert paired_difference(x, y, others, resamples=100) == pytest.approx(paired_difference(a, b, names, resamples=100))
    assert analytic_interval(x, others) == pytest.approx(analytic_interval(a, names))
    x, y = [value / 2 for value in x], [value / 2 for value in y]
    assert detectable_difference(x, y, others) == pytest.approx(detectable_difference(a, b, names) / 2)
    for resamples in (1, 100):
        assert permutation_p(x, y, others, resamples=resamples) == permutation_p(a, b, names, resamples=resamples)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values, clusters = np.random.default_rng(0).random(200).tolist(), [str(number // 3) for number in range(200)]
    assert bootstrap_interval(values, clusters) == bootstrap_interval(values, clusters, seed=0)
    assert bootstrap_interval(values, clusters) != bootstrap_interval(values, clusters, seed=1)


def test_a_difference_of_a_policy_with_itself_is_zero_for_sure() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    clusters = [str(number) for number in range(50)]
    assert paired_difference(values, values, clusters) == (0, 0, 0)
    assert paired_analytic(values, values, clusters) == (0, 0, 0)
    assert permutation_p(values, values, clusters) == 1
    assert detectable_difference(values, values, clusters) == 0


def test_answers_about_one_image_do_not_count_as_independent() -> None:
    values = [float(number // 10 % 2) for number in range(400)]
    for interval in (bootstrap_interval, analytic_interval):
        alone = interval(values, [str(number) for number in range(400)])
        together = interval(values, [str(number // 10) for number in range(400)])
        assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_one_image_tells_nothing_about_others() -> None:
    one, a, b = ["a", "a"], [1.0, 1.0], [0.0, 1.0]
    assert bootstrap_interval(b, one) == analytic_interval(b, one) == combine_seeds([b, b], [one, one]) == (0.5, 0, 1)
    assert paired_difference(a, b, one) == paired_analytic(a, b, one) == (0.5, -1, 1)
    assert combine_seeds([b, b], [one, one], differences=True) == (0.5, -1, 1)
    assert permutation_p(a, b, one) == 1
    assert detectable_difference(a, b, one) == math.inf


def test_a_perfect_score_is_not_certain() -> None:
    names = [str(number) for number in range(20)]
    perfect, hopeless = bootstrap_interval([1.0] * 20, names), bootstrap_interval([0.0] * 20, names)
    # Wilson's lower end for 20 of 20 is n / (n + t²), here with Student's t of 19 degrees of freedom, 2.0930.
    assert perfect == analytic_interval([1.0] * 20, names) == pytest.approx((1, 20 / (20 + 2.0930**2), 1), abs=1e-5)
    assert hopeless == pytest.approx((0, 0, 1 - perfect.low))


def test_the_analytic_interval_equals_a_hand_computation() -> None:
    a, b, names = [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], ["a", "b", "c", "d"]
    # Differences 1, 0, 1, 0: standard error √(1/12), Student's t of 3 degrees of freedom 3.18245.
    reach = 3.18245 / math.sqrt(12)
    assert paired_analytic(a, b, names) == pytest.approx((0.5, 0.5 - reach, 1), abs=1e-5)
    # Wilson's ends of 0.5 with that reach: 0.5 ± reach / 2√(1/4 + reach²).
    end = reach / math.sqrt(1 / 4 + reach**2) / 2
    assert analytic_interval(a, names) == pytest.approx((0.5, 0.5 - end, 0.5 + end), abs=1e-5)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "no values"), ([1.0], ["a", "b"], "2 clusters"), ([float("nan"), 1.0], ["a", "b"], "finite")],
    ids=["nothing", "unequal", "nan"],
)
def test_what_has_no_mean_is_refused(values: list[float], clusters: list[str], message: str) -> None:
    for refusing in (bootstrap_interval, analytic_interval):
        with pytest.raises(ValueError, match=message):
            refusing(values, clusters)
    for testing in (paired_difference, paired_analytic, permutation_p, detectable_difference):
        with pytest.raises(ValueError, match=message):
            testing(values, values, clusters)
    with pytest.raises(ValueError, match=message):
        combine_seeds([[0.5], values], [["a"], clusters])


def test_unpaired_values_are_refused() -> None:
    for testing in (paired_difference, paired_analytic, permutation_p, detectable_difference):
        with pytest.raises(ValueError, match="paired"):
            testing([1.0], [1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="paired"):
        mcnemar_p([1.0], [1.0, 0.0])


@pytest.mark.parametrize("images", [60, 200])
@pytest.mark.parametrize("accuracy", [0.5, 0.9])
def test_95_of_100_intervals_hold_the_truth(images: int, accuracy: float) -> None:
    rng = np.random.default_rng(0)
    bootstrap = analytic = 0
    for trial in range(1500):
        made = simulated(rng, images, accuracy)
        values = made.answered(rng)
        low, high = bootstrap_interval(values, made.images, seed=trial, resamples=400)[1:]
        bootstrap += low <= accuracy <= high
        low, high = analytic_interval(values, made.images)[1:]
        analytic += low <= accuracy <= high
    assert 0.93 <= bootstrap / 1500 <= 0.97
    assert 0.93 <= analytic / 1500 <= 0.97


def test_intervals_that_take_answers_as_independent_miss_the_truth_too_often() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        values = simulated(rng, 60, 0.5).answered(rng)
        low, high = analytic_interval(values, [str(number) for number in range(len(values))])[1:]
        hits += low <= 0.5 <= high
    assert hits / 500 < 0.87


def test_the_permutation_test_errs_as_seldom_as_it_says_and_sees_larger_gains_more_often() -> None:
    rng = np.random.default_rng(0)

    def found(gain: float, trials: int) -> float:
        hits = 0
        for trial in range(trials):
            made = mild(rng, 60)
            p = permutation_p(made.answered(rng, gain), made.answered(rng), made.images, seed=trial, resamples=499)
            hits += p <= 0.05
        return hits / trials

    # Sums of hits often tie with the observed one, and a tie counts against the policy: it errs a little less.
    never, small, middle, large = found(0.0, 1500), found(0.05, 200), found(0.1, 200), found(0.2, 200)
    assert 0.025 <= never <= 0.06
    assert never < small < middle < large
    assert large > 0.95


@given(coarse_rows)
def test_few_images_are_swapped_in_every_way(made: list[tuple[float, float, str]]) -> None:
    a, b, names = columns(made)
    sums = [sum(x - y for x, y, name in made if name == one) for one in sorted(set(names))]
    sizes = [abs(sum(map(math.prod, zip(signs, sums, strict=True)))) for signs in itertools.product((1, -1), repeat=len(sums))]
    expected = sum(size >= abs(sum(sums)) - 1e-9 for size in sizes) / len(sizes)
    assert permutation_p(a, b, names) == pytest.approx(expected)


def test_random_swaps_agree_with_all_swaps_and_never_give_zero() -> None:
    rng = np.random.default_rng(0)
    a, b, names = (rng.random(24) + 0.3).tolist(), rng.random(24).tolist(), [str(number // 2) for number in range(24)]
    exact = permutation_p(a, b, names, resamples=4096)
    assert 0.001 < exact < 0.2
    assert permutation_p(a, b, names, resamples=4095) == pytest.approx(exact, abs=0.015)
    assert permutation_p([1.0] * 100, [0.0] * 100, [str(number) for number in range(100)], resamples=999) == 1 / 1000


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1), (3, 3, 1), (5, 1, 14 / 64), (1, 8, 20 / 512), (0, 10, 2 / 1024)])
def test_mcnemar_equals_a_hand_computation(wins: int, losses: int, p: float) -> None:
    a, b = [1.0] * wins + [0.0] * losses + [1.0, 0.0], [0.0] * wins + [1.0] * losses + [1.0, 0.0]
    assert mcnemar_p(a, b) == mcnemar_p(b, a) == pytest.approx(p)


def test_mcnemar_refuses_what_is_not_a_hit_or_a_miss() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar_p([0.5], [1.0])


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    pilots = [mild(rng, 80) for _ in range(100)]
    gain = float(np.mean([detectable_difference(made.answered(rng), made.answered(rng), made.images) for made in pilots]))
    assert 0.05 < gain < 0.2
    shown = 0
    for _ in range(1000):
        made = mild(rng, 80)
        shown += paired_analytic(made.answered(rng, gain), made.answered(rng), made.images).low > 0
    assert 0.75 <= shown / 1000 <= 0.85


@pytest.mark.parametrize("effect", [0.0, 0.05], ids=["equal seeds", "different seeds"])
@pytest.mark.parametrize("design", ["crossed", "nested"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_of_several_seeds_holds_the_truth(seeds: int, design: str, effect: float) -> None:
    """Rates shift by ± `effect` with the seed; the truth is the mean over all seeds and images."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        shared = simulated(rng, 40, 0.5)
        values, clusters = [], []
        for seed in range(seeds):
            made = shared if design == "crossed" else simulated(rng, 40, 0.5, f"{seed}-")
            values.append(made.answered(rng, effect * rng.standard_normal()))
            clusters.append(made.images)
        low, high = combine_seeds(values, clusters)[1:]
        hits += low <= 0.5 <= high
    assert 0.93 <= hits / 500 <= 0.985


def test_one_seed_and_seeds_that_agree_say_what_the_images_say() -> None:
    rng = np.random.default_rng(0)
    made = simulated(rng, 30, 0.7)
    a, b, images = made.answered(rng), made.answered(rng), made.images
    differences = [x - y for x, y in zip(a, b, strict=True)]
    for seeds in (1, 3):
        assert combine_seeds([a] * seeds, [images] * seeds) == pytest.approx(analytic_interval(a, images))
        together = combine_seeds([differences] * seeds, [images] * seeds, differences=True)
        assert together == pytest.approx(paired_analytic(a, b, images))


def test_seeds_count_the_same_in_any_order_and_their_spread_widens_the_interval() -> None:
    names = [str(number) for number in range(40)]
    low, high = [0.0] * 20 + [1.0] * 20, [0.0] * 10 + [1.0] * 30
    short, few = [1.0, 0.0], ["0", "39"]
    together = combine_seeds([low, high, short], [names, names, few])
    assert together.value == pytest.approx((0.5 + 0.75 + 0.5) / 3)
    assert together == pytest.approx(combine_seeds([short, low, high], [few, names, names]))
    alone = analytic_interval(low, names)
    assert combine_seeds([low, high, low], [names] * 3).high > alone.high + 0.1


def test_seeds_that_cannot_be_combined_are_refused() -> None:
    with pytest.raises(ValueError, match="0 seeds"):
        combine_seeds([], [])
    with pytest.raises(ValueError, match="2 seeds, clusters of 1"):
        combine_seeds([[1.0], [0.0]], [["a"]])
    with pytest.raises(ValueError, match="differences=True"):
        combine_seeds([[1.0, -1.0]], [["a", "b"]])


def test_twenty_thousand_values_take_little_time() -> None:
    values = np.random.default_rng(0).random(20_000).tolist()
    start = time.process_time()
    bootstrap_interval(values, [str(number) for number in range(20_000)])
    assert time.process_time() - start < 2


def test_ten_thousand_swaps_of_six_thousand_images_take_little_time() -> None:
    a, b = np.random.default_rng(0).random((2, 6000)).tolist()
    start = time.process_time()
    permutation_p(a, b, [str(number) for number in range(6000)])
    assert time.process_time() - start < 0.5
