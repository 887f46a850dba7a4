"""The published metrics, to the last digit: a table of their quirks, and the reference results where they are at hand.

STLLAVA_CONFORMANCE names the folder with metrics_conformance.jsonl, which the original functions computed.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.errors import StllavaError
from stllava.metrics.llava_med import (
    AnsweredQuestion,
    Script,
    bleu,
    closed_hit,
    closed_hit_batch,
    closed_hit_prefix,
    evaluate,
    exact_match,
    f1,
    normalize_word,
    open_hit,
    overlap,
    precision,
    recall,
)

TINY = sys.float_info.min
sentences = st.lists(st.sampled_from(["left", "right", "lung", "no", "two", "the", "x-ray"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Left KIDNEY", "left kidney"),
        ("post-operative", "post operative"),
        ("pre- and post-operative", "pre and postoperative"),
        ("post-\toperative", "post operative"),
        ("pre -operative and post-operative", "pre operative and postoperative"),
        ("thin,walled cyst", "thin walled cyst"),
        ("thin,walled cyst, benign", "thinwalled cyst benign"),
        ("2,400 cells (post-operative)", "2400 cells postoperative"),
        ("levels 3,4", "levels 34"),
        ("6.2 mm.", "6.2 mm"),
        ("bone.marrow", "bonemarrow"),
        ("spine" + "." * 34, "spine.."),
        ("None", "0"),
        ("nine or ten, not eleven", "9 or 10 not eleven"),
        ("hepatitis A", "hepatitis"),
        ("an a the", ""),
        ("it doesnt and couldntve and couldn'tve", "it doesn't and couldntve and couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im sure its Youre", "im sure its you're"),
        ("yall'd've 'twas twas", "y'all'd've 'twas 'twas"),
        ("**cyst**: 'clear'", "**cyst**: 'clear'"),
        ("?", ""),
    ],
)
def test_normalising_has_the_published_quirks(text: str, expected: str) -> None:
    assert normalize_word(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("cyst", "simple cyst", (1.0, 1.0, 1 / 2, 2 / 3)),
        ("cyst cyst cyst", "simple cyst", (1 / 3, 1.0, 3 / 4, 6 / 7)),
        ("cyst cyst fluid", "cyst", (1 / 3, 2 / 3, 1.0, 4 / 5)),
        ("cyst simple", "simple cyst", (1.0, 1.0, 1.0, 1.0)),
        ("cyst", "cyst cyst", (1.0, 1.0, 1.0, 1.0)),
        ("a large cyst", "cyst", (1 / 2, 1 / 2, 1.0, 2 / 3)),
        ("fluid", "cyst", (0.0, 0.0, 0.0, 0.0)),
        ("the", "the", (0.0, 0.0, 0.0, 0.0)),
        ("spine" + "." * 34, "spine", (1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_open_scores_reward_repetition_and_forget_order(
    prediction: str, reference: str, expected: tuple[float, float, float, float]
) -> None:
    rules = (exact_match, precision, recall, f1)
    assert tuple(rule(prediction, reference) for rule in rules) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("prediction", "reference", "gated", "batch", "prefix"),
    [
        ("No", "no", 1.0, 1.0, 1.0),
        ("a nodule", "no", 1.0, 1.0, 1.0),
        ("a normal scan", "no", 1.0, 1.0, 1.0),
        ("both eyes", "yes", 1.0, 1.0, 1.0),
        ("Yes, no doubt", "yes", 1.0, 1.0, 1.0),
        ("Yes, no doubt", "no", 1.0, 1.0, 1.0),
        ("yes", "no", 0.0, 0.0, None),
        ("absent", "no", 0.0, 0.0, 0.0),
        ("none", "no", 0.0, 0.0, 0.0),
        ("axial", "Axial", 0.0, 1.0, 0.0),
        ("Axial, not sagittal", "axial", 1.0, 1.0, 1.0),
        ("coronal, not sagittal", "axial", 0.0, 0.0, None),
        ("axial", "the", 0.0, 1.0, 0.0),
    ],
)
def test_closed_hits_read_letters_not_words(
    prediction: str, reference: str, gated: float, batch: float, prefix: float | None
) -> None:
    assert closed_hit(prediction, reference) == gated
    assert closed_hit_batch(prediction, reference) == batch
    assert closed_hit_prefix(prediction, reference) == prefix


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("simple renal cyst", "simple renal cyst", (TINY**0.25, 1.0, 1.0, 1.0)),
        ("cyst", "cyst", (TINY**0.75, 1.0, TINY, TINY)),
        ("cyst renal simple fluid", "simple renal cyst", (0.75**0.25 * TINY**0.75, 0.75, TINY, TINY)),
        ("cyst cyst", "cyst", (0.5**0.25 * TINY**0.75, 0.5, TINY, TINY)),
        ("simple cyst", "simple cyst left kidney", (math.exp(-1) * TINY**0.5, math.exp(-1), math.exp(-1), math.exp(-1) * TINY)),
        ("one simple renal cyst", "1 simple renal cyst", (1.0, 1.0, 1.0, 1.0)),
        ("fluid", "cyst", (0.0, 0.0, 0.0, 0.0)),
        ("", "", (0.0, 0.0, 0.0, 0.0)),
        ("spine" + "." * 34, "spine", (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_bleu_is_not_smoothed_and_short_answers_all_but_vanish(
    prediction: str, reference: str, expected: tuple[float, float, float, float]
) -> None:
    # No absolute tolerance: it would let 1e-154 pass for 0.
    assert bleu(prediction, reference) == pytest.approx(expected, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(
    ("prediction", "reference", "candidates", "expected"),
    [
        ("left kidney", "left kidney", ["kidney", "left kidney"], (0.0, "kidney")),
        ("left kidney", "left kidney", ["left kidney", "kidney"], (1.0, "left kidney")),
        ("fluid", "The spine", ["the spine", "kidney"], (1.0, "spine")),
        ("fluid", "fluid", ["spine", "kidney"], (0.0, "spine")),
        ("three of them", "3", ["kidney", 3, "none of them"], (1.0, "3")),
        ("kidney", "kidney", ["", "the", "left kidney left"], (0.0, "left kidney left")),
    ],
)
def test_the_first_of_the_likest_candidates_is_the_answer(
    prediction: str, reference: str, candidates: list[str | int], expected: tuple[float, str]
) -> None:
    assert open_hit(prediction, reference, candidates) == expected


@given(sentences, st.lists(sentences, min_size=1, max_size=6))
def test_no_other_candidate_is_likelier_and_none_before_is_as_likely(prediction: str, candidates: list[str]) -> None:
    said = set(normalize_word(prediction).split())
    texts = [normalize_word(candidate) for candidate in candidates]
    likeness = [len(set(text.split()) & said) / max(1, len(set(text.split()))) for text in texts]
    assert open_hit(prediction, prediction, candidates).choice == texts[likeness.index(max(likeness))]


@given(st.text(alphabet="aZ1, -._'!\n", max_size=30))
def test_normalised_words_are_lower_case_without_blanks_or_marks_between(text: str) -> None:
    normal = normalize_word(text)
    assert normal == normal.lower() == " ".join(normal.split())
    assert not set(normal) & set(",-_!")
    assert all(following.isdigit() for point, following in pairwise(normal) if point == ".")


@given(sentences, sentences)
def test_scores_are_shares_and_f1_lies_between_precision_and_recall(prediction: str, reference: str) -> None:
    score = overlap(normalize_word(prediction).split(), normalize_word(reference).split())
    assert all(0 <= value <= 1 for value in (*score, *bleu(prediction, reference)))
    ends = sorted((score.precision, score.recall))
    assert ends[0] * (1 - 1e-15) <= score.f1 <= ends[1] * (1 + 1e-15)
    assert closed_hit(prediction, reference) <= closed_hit_batch(prediction, reference)


ROWS = [
    AnsweredQuestion("cyst", "simple cyst", "OPEN"),
    AnsweredQuestion("fluid", "cyst", "OPEN"),
    AnsweredQuestion("yes", "no", "CLOSED"),
    AnsweredQuestion("a nodule", "no", "CLOSED"),
    AnsweredQuestion("axial", "axial", "CLOSED"),
    AnsweredQuestion("yes", "yes", "closed"),
]


@pytest.mark.parametrize(
    ("script", "opened", "closed"),
    [
        ("run_eval.py@b9a98a7", 50.0, 100 / 3),
        ("run_eval.py@ad758b6", 50.0, 50.0),
        ("run_eval_batch.py@b9a98a7", 0.0, 200 / 3),
    ],
)
def test_each_script_has_its_own_open_and_closed_accuracy(script: Script, opened: float, closed: float) -> None:
    found = evaluate(ROWS, ["simple cyst"], script=script)
    assert found["recall"] == 25.0
    assert found["open accuracy"] == opened
    assert found["yes/no accuracy"] == pytest.approx(closed, rel=1e-15)
    assert found.get("recall_closed") == (pytest.approx(100 / 3, rel=1e-15) if script.startswith("run_eval_batch") else None)


def test_no_closed_rows_are_zero_percent_but_other_means_over_nothing_are_refused() -> None:
    opened, closed = ROWS[:2], ROWS[2:]
    assert evaluate(opened, ["cyst"])["yes/no accuracy"] == 0.0
    with pytest.raises(StllavaError, match="none of 2 rows has the answer type CLOSED"):
        evaluate(opened, ["cyst"], script="run_eval_batch.py@b9a98a7")
    with pytest.raises(StllavaError, match="none of 4 rows has the answer type OPEN"):
        evaluate(closed, ["cyst"])
    with pytest.raises(StllavaError, match="no candidate answers"):
        evaluate(opened, [])


class Case(TypedDict):
    """One published case; `expected` is read by `json` and compared, never trusted."""

    id: str
    prediction: str
    reference: str
    answer_type: str
    expected: dict[str, object]


class Aggregate(TypedDict):
    """One published run of a script over some cases."""

    case_ids: list[str]
    script: Script
    candidates: str
    expected: dict[str, object]


@dataclass(frozen=True)
class Published:
    """The reference results."""

    candidates: dict[str, list[str | int]]
    cases: dict[str, Case]
    aggregates: list[Aggregate]


@pytest.fixture(scope="module")
def published() -> Published:
    folder = os.environ.get("STLLAVA_CONFORMANCE")
    if not folder:
        pytest.skip(
            "STLLAVA_CONFORMANCE is not set: the published metrics are compared with the small table only, NOT the file"
        )
    rows = [json.loads(line) for line in (Path(folder) / "metrics_conformance.jsonl").read_text("utf-8").splitlines()]
    return Published(
        candidates=rows[0]["candidates"],
        cases={row["id"]: row for row in rows if row["kind"] == "case"},
        aggregates=[row for row in rows if row["kind"] == "aggregate"],
    )


def test_every_field_of_every_published_case_is_equal(published: Published) -> None:
    assert len(published.cases) == 467
    for case in published.cases.values():
        assert_equal(fields(case, published.candidates), case["expected"])


def assert_equal(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    """To the last digit for all but BLEU, whose logarithms may differ there from one machine to another."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-9, abs=0.0) if name.startswith("bleu") else value), name


def fields(case: Case, candidates: dict[str, list[str | int]]) -> dict[str, object]:
    """All that the file expects of a case; its `raw` scores normalise once, as the functions do when called alone."""
    prediction, reference = case["prediction"], case["reference"]
    said, wanted = normalize_word(prediction), normalize_word(reference)
    choices = {name: open_hit(prediction, reference, texts) for name, texts in candidates.items()}
    return {
        "pred_norm": said,
        "ref_norm": wanted,
        "pred_norm_twice": normalize_word(said),
        "ref_norm_twice": normalize_word(wanted),
        "exact_match": exact_match(prediction, reference),
        "f1": f1(prediction, reference),
        "precision": precision(prediction, reference),
        "recall": recall(prediction, reference),
        **bleu(prediction, reference)._asdict(),
        "open_hit": {name: choice.hit for name, choice in choices.items()},
        "open_choice": {name: choice.choice for name, choice in choices.items()},
        "open_hit_substring": closed_hit_batch(prediction, reference),
        "closed_hit": closed_hit(prediction, reference),
        "closed_hit_prefix": closed_hit_prefix(prediction, reference),
        "closed_hit_batch": closed_hit_batch(prediction, reference),
        "raw": overlap(said.split(), wanted.split())._asdict(),
    }


def test_every_published_aggregate_is_equal(published: Published) -> None:
    assert len(published.aggregates) == 60
    assert {aggregate["script"] for aggregate in published.aggregates} == set(get_args(Script))
    for aggregate in published.aggregates:
        cases = [published.cases[name] for name in aggregate["case_ids"]]
        rows = [AnsweredQuestion(case["prediction"], case["reference"], case["answer_type"]) for case in cases]
        found = evaluate(rows, published.candidates[aggregate["candidates"]], script=aggregate["script"])
        # `_printed` is no percentage but a line of text, in which some scripts exchange the numbers of open and closed rows.
        assert_equal(found, {name: value for name, value in aggregate["expected"].items() if name != "_printed"})
