"""An expert's error rate from a sample drawn by strata and read by people who err: unbiased, and honest about its width."""

import numpy as np
import pytest

from stllava.metrics.stratified import ReadVerdict, expert_errors, stratified_share

SIZES = {"uncertain": 400, "random": 1600}


def reading(
    draw: np.random.Generator, *, wrong: dict[str, float], reader: float, tasks: int = 300, overlap: float = 0.2
) -> list[ReadVerdict]:
    """Half of the tasks drawn from either stratum, three verdicts an image, each reader wrong so often."""
    read = []
    for number in range(tasks):
        stratum = "uncertain" if number % 2 else "random"
        error = draw.random() < wrong[stratum]
        count = 2 if draw.random() < overlap else 1
        votes = tuple(bool(error != (draw.random() < reader)) for _ in range(count))
        read.append(ReadVerdict(stratum, f"image {draw.integers(tasks)}", votes))
    return read


def test_the_estimated_error_rate_of_an_expert_holds_the_truth_as_often_as_it_says() -> None:
    """Of an expert that is wrong in 15 %, mostly where it is uncertain, read by people who are right in 95 %."""
    draw, wrong = np.random.default_rng(20), {"uncertain": 0.35, "random": 0.10}
    truth = sum(SIZES[name] * share for name, share in wrong.items()) / sum(SIZES.values())
    assert truth == pytest.approx(0.15)
    covered, values = 0, []
    for _ in range(500):
        found = expert_errors(reading(draw, wrong=wrong, reader=0.05), SIZES)
        assert found is not None
        assert found.expert_error is not None
        covered += found.expert_error.low <= truth <= found.expert_error.high
        values.append(found.expert_error.value)
    assert 0.93 <= covered / 500 <= 0.97
    assert np.mean(values) == pytest.approx(truth, abs=0.005)


def test_readers_who_always_agree_are_believed_and_each_stratum_counts_by_its_size() -> None:
    read = [ReadVerdict("uncertain", f"u{number}", (number < 40, number < 40)) for number in range(80)]
    read += [ReadVerdict("random", f"r{number}", (number < 5, number < 5)) for number in range(50)]
    found = expert_errors(read, SIZES)
    assert found is not None
    assert found.disagreed.value == pytest.approx(0.2 * 0.5 + 0.8 * 0.1)
    assert found.expert_error is not None
    assert found.expert_error.value == pytest.approx(found.disagreed.value)
    assert found.reader_error is not None
    assert found.reader_error.value == 0 < found.reader_error.high


def test_what_a_reader_cannot_judge_says_nothing_but_was_read() -> None:
    sure = [ReadVerdict("uncertain", f"u{number}", (number % 2 == 0,)) for number in range(40)]
    silent = [ReadVerdict("uncertain", f"s{number}", ()) for number in range(40)]
    rest = [ReadVerdict("random", f"r{number}", (False,)) for number in range(40)]
    found = expert_errors([*sure, *silent, *rest], SIZES)
    assert found is not None
    # Half of the uncertain verdicts can be judged at all, and half of these are wrong: 100 of 1,800.
    assert found.disagreed.value == pytest.approx(100 / 1800)
    assert (found.reader_error, found.expert_error) == (None, None)
    assert expert_errors(silent, SIZES) is None


def test_readers_who_agree_no_oftener_than_by_chance_measure_nothing() -> None:
    read = [ReadVerdict("random", f"r{number}", (number % 2 == 0, number % 4 < 2)) for number in range(80)]
    found = expert_errors(read, SIZES)
    assert found is not None
    assert (found.reader_error, found.expert_error) == (None, None)


def test_a_share_of_one_image_says_nothing_about_others() -> None:
    found = stratified_share([1.0, 0.0], ["random", "random"], ["a", "a"], SIZES)
    assert found == (0.5, 0.0, 1.0)
    assert stratified_share([None], ["random"], ["a"], SIZES) is None
