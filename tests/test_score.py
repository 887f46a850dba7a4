"""Both families of rules over predictions: which metric is for which question, what is counted, what is compared."""

import time
from collections.abc import Sequence
from typing import Literal

import pytest

from stllava.metrics import llava_med
from stllava.metrics.score import (
    METRICS,
    TWINS,
    compare,
    differences_by_label,
    label_names,
    measured,
    score,
    scores_by_label,
    values,
)
from stllava.metrics.semantic import agreement, compared, verdicts
from stllava.records import Comparison, Judgment, Prediction, Sampling, Score
from stllava.report.disagreements import disagreements

GREEDY = Sampling(temperature=0, top_k=0, top_p=1, max_new_tokens=8, seed=0)


def said(
    text: str,
    targets: Sequence[str],
    *,
    kind: Literal["open", "closed"] = "open",
    key: str = "1",
    image: str = "a.png",
    choices: Sequence[str] = (),
) -> Prediction:
    return Prediction(
        id=f"p{key}",
        sample_id=key,
        image=image,
        question=f"question {key}?",
        targets=tuple(targets),
        kind=kind,
        choices=tuple(choices),
        completion=text,
        policy="x",
    )


def by_metric(rows: Sequence[Prediction], **more: Sequence[str]) -> dict[str, Score]:
    return {one.metric: one for one in score(rows, policy="x", benchmark="b", **more)}


def test_every_score_names_its_rule() -> None:
    rows = [said("yes", ["yes"], kind="closed"), said("left lung", ["lung"], key="2")]
    found = by_metric(rows, candidates=["lung", "liver"])
    assert set(found) == {*METRICS, "llava_med_open_accuracy"}
    assert {one.rule for one in found.values()} == {"robust-2", "llava_med-1.0.0"}
    assert all(one.rule.startswith("llava_med") == name.startswith("llava_med") for name, one in found.items())


def test_the_published_rule_is_fooled_where_ours_is_not() -> None:
    found = by_metric([said("There is a nodule.", ["no"], kind="closed")])
    assert found["llava_med_closed"].value == 1
    assert found["closed_accuracy"].value == 0


def test_an_answer_that_cannot_be_read_is_wrong_and_counted() -> None:
    rows = [said("yes", ["yes"], kind="closed"), said("I cannot tell.", ["no"], kind="closed", key="2", image="b.png")]
    found = by_metric(rows)["closed_accuracy"]
    assert (found.value, found.n, found.abstained) == (0.5, 2, 1)


def test_what_stands_behind_a_thought_is_scored_and_nothing_where_it_has_no_end() -> None:
    thoughts = {"<think>\nNo mass? Not left.\n</think>\n\nyes": 1.0, "<think>yes</think>no": 0.0, "<think>Yes, yes": 0.0}
    for text, expected in thoughts.items():
        found = by_metric([said(text, ["yes"], kind="closed")])
        assert (found["closed_accuracy"].value, found["llava_med_closed"].value) == (expected, expected), text
    assert by_metric([said("[THINK]liver or lung[/THINK]lung", ["lung"])])["open_f1"].value == 1


def test_multiple_choice_is_scored_by_our_rule_alone() -> None:
    rows = [said("B", ["liver"], kind="closed", choices=["lung", "liver"])]
    assert {name: one.value for name, one in by_metric(rows).items()} == {"closed_accuracy": 1.0}


def test_of_several_references_the_best_counts_in_both_families() -> None:
    found = by_metric([said("heart", ["lung", "heart"])])
    assert found["open_recall"].value == found["llava_med_open_recall"].value == 1


def test_the_mean_of_the_values_is_the_score() -> None:
    rows = [said(text, ["left lung"], key=str(n), image=f"{n}.png") for n, text in enumerate(["lung", "left lung", "x"])]
    for name, one in by_metric(rows).items():
        assert one.value == pytest.approx(sum(values(measured(rows, name), name)) / 3)


def test_our_metrics_and_their_published_twins_exist_for_the_same_questions() -> None:
    assert all(METRICS[ours].kind == METRICS[theirs].kind for ours, theirs in TWINS)


def test_a_difference_has_a_p_value_and_says_what_could_be_shown() -> None:
    better = [said("yes", ["yes"], kind="closed", key=str(n), image=f"{n}.png") for n in range(30)]
    worse = [row.model_copy(update={"completion": "no" if n % 2 else "yes"}) for n, row in enumerate(better)]
    gains = {one.metric: one for one in compare(better, worse, policy="a", against="b", benchmark="x")}
    gain = gains["closed_accuracy"]
    assert gain.value == 0.5
    assert gain.p is not None
    assert gain.p < 0.01
    assert gain.detectable is not None
    assert 0 < gain.detectable < 0.5
    same = compare(better, better, policy="a", against="b", benchmark="x")[0]
    assert (same.value, same.p) == (0, 1)


def test_disagreements_are_counted_and_shown() -> None:
    rows = [
        said("nodule", ["no"], kind="closed", key="1"),
        said("no", ["no"], kind="closed", key="2", image="b.png"),
        said("left", ["Left"], kind="closed", key="3", image="c.png"),
    ]
    (found,) = [one for one in disagreements(rows) if one.ours == "closed_accuracy"]
    assert (found.n, found.differ, found.higher) == (3, 2, 1)
    assert {(one.answer, one.ours, one.published) for one in found.examples} == {("nodule", None, 1.0), ("left", 1.0, 0.0)}


def test_twenty_thousand_predictions_are_scored_in_seconds() -> None:
    words = ["left", "right", "lung", "yes", "no", "there is no", "mass", "the", "pleural effusion", "3 cm", "nodule"]
    rows = [
        said(
            " ".join(words[(n * k) % len(words)] for k in range(1, 2 + n % 7)) + f" {n % 97}",
            ["yes" if n % 2 else "left lung"],
            kind="closed" if n % 2 else "open",
            key=str(n),
            image=f"{n // 4}.png",
        )
        for n in range(20_000)
    ]
    llava_med.normalize_word.cache_clear()
    began = time.process_time()
    found = by_metric(rows, candidates=["left lung", "mass", "right lung"])
    seconds = time.process_time() - began
    assert len(found) == len(METRICS) + 1
    assert seconds < 20, f"{seconds:.1f} s"


def judged(row: Prediction, *, scores: tuple[float, ...] | None, comparisons: tuple[Comparison, ...] = ()) -> Judgment:
    (given,) = compared([row], GREEDY)
    return Judgment(
        id="j" + row.id,
        answers_id=given.id,
        scores=scores,
        cause=None if scores else "failed",
        reason="",
        expert="wise",
        prompt_hash="",
        comparisons=comparisons,
    )


def test_an_expert_compares_every_open_answer_with_its_references() -> None:
    rows = [said("a CT", ["CT", "computed tomography"]), said("yes", ["yes"], kind="closed", key="2")]
    (given,) = compared(rows, GREEDY)
    assert given.completions == ("a CT", "CT", "computed tomography")
    assert (given.question_id, given.images) == ("1", ("a.png",))


@pytest.mark.parametrize(
    ("scores", "comparisons", "expected"),
    [
        ((1.0, 0.5), (), 1.0),
        ((0.5, 0.5), (), 1.0),
        ((0.0, 1.0), (), 0.0),
        ((0.5, 0.5), (Comparison(first=0, second=1, winner=None),), 1.0),
        ((0.0, 1.0), (Comparison(first=0, second=1, winner=1),), 0.0),
        ((0.5, 0.5), (Comparison(first=0, second=1, winner=None, flipped=True),), None),
        (None, (), None),
    ],
    ids=["better", "as good", "worse", "tie", "beaten", "hangs on the order", "no verdict"],
)
def test_an_answer_no_worse_than_its_reference_is_right(
    scores: tuple[float, ...] | None, comparisons: tuple[Comparison, ...], expected: float | None
) -> None:
    row = said("a CT", ["CT"])
    assert verdicts([row], [judged(row, scores=scores, comparisons=comparisons)]) == [expected]


def test_the_reference_itself_needs_no_expert() -> None:
    assert verdicts([said("CT", ["CT"])], []) == [1.0]


def kappa_of(rows: Sequence[Prediction], heard: Sequence[float | None]) -> float | None:
    found = agreement(rows, heard).kappa
    return None if found is None else found.value


def test_an_experts_agreement_with_the_words_is_measured_on_answers_that_it_was_asked_about() -> None:
    texts = ("ct", "computed tomography", "MRI", "x-ray")
    rows = [said(text, ["CT"], key=text, image=f"{text}.png") for text in texts]
    assert kappa_of(rows, [1.0, 1.0, 0.0, 0.0]) == 1
    assert kappa_of(rows, [1.0, 0.0, 0.0, 1.0]) == 0
    assert kappa_of(rows, [None] * 4) is None
    unasked = [said("CT", ["CT"], key=f"same {number}", image=f"{number}.png") for number in range(31)]
    found = agreement([*rows, *unasked], [1.0, 0.0, None, 1.0, *[1.0] * 31])
    assert (found.identical, found.asked, found.verdicts, found.expert_right, found.words_right) == (31, 4, 3, 2, 2)
    assert found.kappa == agreement(rows, [1.0, 0.0, None, 1.0]).kappa
    assert found.sentence.startswith("was asked about 4 of 35 open answers: 31 are the reference word for word.")
    assert "n = 3" in found.sentence


def test_where_expert_and_words_say_the_same_of_all_there_is_no_kappa() -> None:
    wrong = [said("MRI", ["CT"], key=str(number), image=f"{number}.png") for number in range(3)]
    unasked = [said("CT", ["CT"], key="same")]
    found = agreement([*wrong, *unasked], [0.0] * 3 + [1.0])
    assert found.kappa is None
    assert "not defined" in found.sentence
    assert "nothing is known" in agreement(unasked, [1.0]).sentence


def labelled(kinds: Sequence[str], *, right: Sequence[bool]) -> list[Prediction]:
    """Closed questions about an image each, with a kind of question and one source."""
    return [
        said("yes" if good else "no", ["yes"], kind="closed", key=str(place), image=f"{place}.png").model_copy(
            update={"labels": {"question": kind, "source": "clinic"}}
        )
        for place, (kind, good) in enumerate(zip(kinds, right, strict=True))
    ]


def test_scores_by_label_are_the_scores_of_the_samples_that_carry_it() -> None:
    rows = labelled(["side", "size", "side", "side"], right=[True, False, False, True])
    found = scores_by_label(rows, "question", policy="x", benchmark="b")
    assert list(found) == ["side", "size"]
    for value, scores in found.items():
        part = [row for row in rows if row.labels["question"] == value]
        assert scores == [one for one in score(part, policy="x", benchmark="b") if one.metric == "closed_accuracy"]


def test_a_sample_without_the_label_is_in_no_group() -> None:
    rows = [*labelled(["side"], right=[True]), said("yes", ["yes"], kind="closed", key="9")]
    assert [one.n for one in scores_by_label(rows, "question", policy="x", benchmark="b")["side"]] == [1]


def test_only_the_commonest_values_of_a_label_are_looked_at() -> None:
    rows = labelled(["rare", "common", "common"], right=[True] * 3)
    assert list(scores_by_label(rows, "question", policy="x", benchmark="b", max_values=1)) == ["common"]


def test_a_label_that_all_samples_share_tells_nothing() -> None:
    assert label_names(labelled(["side", "size"], right=[True, True])) == ["question"]


def test_differences_by_label_are_those_of_the_samples_that_carry_it() -> None:
    before = labelled(["side", "size"] * 6, right=[False] * 12)
    after = labelled(["side", "size"] * 6, right=[place % 3 == 0 for place in range(12)])
    found = differences_by_label(after, before, "question", policy="x", against="y", benchmark="b")
    for value, (gain,) in found.items():
        part = [row for row in after if row.labels["question"] == value]
        whole = next(
            one for one in compare(part, before, policy="x", against="y", benchmark="b") if one.metric == "closed_accuracy"
        )
        assert gain == whole.model_copy(update={"p": None, "detectable": None})
