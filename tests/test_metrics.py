"""The robust metrics: words are words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.metrics.robust import (
    closed_accuracy,
    is_yes_no,
    normalise,
    open_exact_match,
    open_recall,
    token_f1,
    yes_no,
)

words = st.lists(st.sampled_from(["the", "left", "lung", "no", "yes", "Two", "2", "nodule", "x-ray,", "."]), max_size=6)
texts = st.one_of(st.text(max_size=30), words.map(" ".join))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Left Lung.", "left lung"),
        ("two  nodules", "2 nodules"),
        ("X-ray / CT", "x ray ct"),
        ("1,200 ml and 3.5 cm.", "1200 ml and 3.5 cm"),
        ("Crohn's disease", "crohns disease"),
        ("ＣＴ", "ct"),
        ("A", "a"),
        ("T2_weighted", "t2 weighted"),
        ("...", ""),
    ],
)
def test_normalise_keeps_the_words_and_drops_the_rest(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("**Yes**", "yes"),
        ("Yes, there is no doubt.", "yes"),
        ("No; yes would be wrong", "no"),
        ("There is no pneumothorax.", "no"),
        ("The answer is yes", "yes"),
        ("yes or no", None),
        ("no/yes", None),
        ("It could be yes or no", None),
        ("nodule", None),
        ("normal", None),
        ("eyes", None),
        ("not seen", None),
        ("", None),
    ],
)
def test_yes_and_no_are_read_as_words(text: str, expected: str | None) -> None:
    assert yes_no(text) == expected


@pytest.mark.parametrize(
    ("prediction", "targets", "expected"),
    [
        ("Yes, a nodule.", ["yes"], 1),
        ("nodule", ["no"], 0),
        ("yes and no", ["no"], 0),
        ("Left.", ["left"], 1),
        ("on the left", ["left"], 0),
        ("no", ["yes", "No"], 1),
        ("no contrast", ["no contrast"], 1),
        ("no", ["no contrast"], 0),
        ("yes", [], 0),
        ("", ["yes"], 0),
    ],
)
def test_closed_accuracy_is_a_hit_or_not(prediction: str, targets: list[str], expected: float) -> None:
    assert closed_accuracy(prediction, targets) == expected


@pytest.mark.parametrize(
    ("prediction", "targets", "expected"),
    [
        ("left lung", ["the left lung"], 1),
        ("lung lung lung", ["left lung"], 0.5),
        ("lung", ["lung lung"], 0.5),
        ("right kidney", ["left lung", "kidney"], 1),
        ("nothing", [], 0),
        ("", ["left"], 0),
    ],
)
def test_open_recall_counts_each_word_once(prediction: str, targets: list[str], expected: float) -> None:
    assert open_recall(prediction, targets) == expected


def test_f1_punishes_what_was_not_asked_for() -> None:
    assert token_f1("left lung", ["left lung"]) == 1
    assert token_f1("left or right lung or both", ["left lung"]) == pytest.approx(0.5)
    assert token_f1("kidney", ["left lung"]) == 0


def test_only_a_bare_yes_or_no_is_a_yes_no_target() -> None:
    assert is_yes_no("No.")
    assert not is_yes_no("no contrast")


@given(texts)
def test_normalise_is_stable_for_what_it_made(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split())
    assert open_exact_match(text, [text]) == 1


@given(texts, st.lists(texts, max_size=3))
def test_every_metric_is_a_share_and_an_exact_match_is_recalled_in_full(prediction: str, targets: list[str]) -> None:
    values = [metric(prediction, targets) for metric in (closed_accuracy, open_recall, open_exact_match, token_f1)]
    assert all(0 <= value <= 1 for value in values)
    if open_exact_match(prediction, targets):
        assert open_recall(prediction, targets) == token_f1(prediction, targets) == 1


@given(texts, st.lists(texts, min_size=1, max_size=3), texts)
def test_one_more_target_never_lowers_a_score(prediction: str, targets: list[str], more: str) -> None:
    for metric in (closed_accuracy, open_recall, open_exact_match, token_f1):
        assert metric(prediction, [*targets, more]) >= metric(prediction, targets)
