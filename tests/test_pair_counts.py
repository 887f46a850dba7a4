"""pair: every question that goes in made pairs or has one cause of drop, and a group is learned whole or not at all."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.judging import answers_of, judgment_on, write_answers, write_judgments
from stllava.config import DpoOptions, PairOptions
from stllava.errors import NothingLeftError, StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.records import Answers, Comparison, Judgment, Manifest, Preference
from stllava.stages.dpo import dpo
from stllava.stages.pair import pair
from stllava.store import read_records

Judged = tuple[Answers, Judgment]
TEXTS = ["", "yes", "Yes.", "no", "a mass", "a large mass", "a large mass on the left", "there is no mass"]
QUESTIONS = ["is there a mass?", "is this a mass?", "what is seen?"]


@st.composite
def judged_answers(draw: st.DrawFn, name: str) -> Judged:
    """Answers to a question and anything that an expert may say of them."""
    texts = draw(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=5))
    given = answers_of(draw(st.sampled_from(QUESTIONS)), texts, image=f"{name}.png")
    given = given.model_copy(update={"finished": tuple(draw(st.integers(0, 4)) > 0 for _ in texts)})
    kind = draw(st.sampled_from(["scores"] * 6 + ["none", "short", "corrected", "tied"]))
    if kind == "none":
        return given, judgment_on(given, None, cause=draw(st.sampled_from(["abstained", "unparsed", "failed"])))
    mark = {text: draw(st.sampled_from([0.0, 0.1 + 0.2, 0.3, 0.5, 0.9, 1.0])) for text in dict.fromkeys(texts)}
    judgment = judgment_on(given, [mark[text] for text in texts][: -1 if kind == "short" else None])
    if kind == "corrected":
        judgment = judgment.model_copy(update={"correction": "a cyst"})
    if kind == "tied" and texts[0] != texts[1]:
        judgment = judgment.model_copy(update={"comparisons": (Comparison(first=0, second=1, winner=None),)})
    return given, judgment


OPTIONS: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {
        "pairs": st.sampled_from(["extremes", "all", "group"]),
        "balance": st.booleans(),
        "balance_length": st.booleans(),
        "max_denial_share": st.sampled_from([0.0, 0.1, 1.0]),
        "min_chosen_score": st.sampled_from([0.0, 0.5, 1.0]),
        "margin": st.sampled_from([0.2, 0.5]),
        "min_confidence": st.sampled_from([0.0, 0.75]),
        "max_similarity": st.sampled_from([1.0, 0.6]),
        "counter_pairs": st.booleans(),
        "max_pairs_per_question": st.sampled_from([None, 1, 2]),
    }
)
NOT_OF_GROUPS = {"counter_pairs": False, "max_pairs_per_question": None}


def run_pair(options: PairOptions, rows: list[Judged], folder: Path) -> tuple[Manifest, list[Preference]]:
    """The stage on these judgments."""
    answers = write_answers(folder / "answer", [given for given, _ in rows])
    judgments = write_judgments(folder / "judge", [judgment for _, judgment in rows])
    manifest = pair(options, answers=answers, judgments=judgments, to=folder / "pair").manifest
    return manifest, read_records(folder / "pair", "preferences", Preference)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 7).flatmap(lambda count: st.tuples(*(judged_answers(str(number)) for number in range(count)))),
    OPTIONS,
)
def test_every_question_made_pairs_or_has_one_cause_of_drop(rows: tuple[Judged, ...], values: dict[str, object]) -> None:
    values |= {"expert_error": 0.1 if values["min_confidence"] else 0.0}
    options = PairOptions.model_validate(values | (NOT_OF_GROUPS if values["pairs"] == "group" else {}))
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest, made = run_pair(options, list(rows), Path(folder))
        except NothingLeftError:
            return
    of_judgment = Counter(row.lineage.judgment_id for row in made)
    assert manifest.counts_in == len(rows) == len(of_judgment) + sum(manifest.dropped.values())
    assert all(count > 0 for count in manifest.dropped.values())
    assert manifest.counts_out == len(made) == len({row.id for row in made})
    if options.pairs == "group":
        whole = {judgment.id: pairs_of(given, judgment, options=options) for given, judgment in rows}
        assert all(count == len(whole[key]) for key, count in of_judgment.items())
        in_all = sum(len(pairs) for pairs in whole.values() if not isinstance(pairs, str))
        assert manifest.measures["surplus_pairs"] == in_all - len(made)


def test_a_group_is_balanced_as_a_whole_and_counted(tmp_path: Path) -> None:
    texts = ("yes", "no", "maybe", "yes of course")
    rows = [answers_of("is there a mass?", texts, image=f"{number}.png") for number in range(6)]
    scores = [(0.0, 1.0, 0.0, 0.5), *[(1.0, 0.0, 0.0, 0.5)] * 5]
    judged = [(row, judgment_on(row, marks)) for row, marks in zip(rows, scores, strict=True)]
    manifest, made = run_pair(PairOptions(pairs="group"), judged, tmp_path)
    assert sorted(Counter(row.lineage.answers_id for row in made).values()) == [5, 5]  # One whose best is yes, one no.
    assert manifest.dropped == {"surplus of yes or no": 4}
    assert (manifest.measures["surplus_pairs"], manifest.measures["pairs_a_question"]) == (20, 5)


def test_a_question_that_made_a_counter_pair_alone_is_not_counted_as_dropped(tmp_path: Path) -> None:
    rows = [
        answers_of(
            "what is seen?", ["a large mass in the left lung", "a large mass in the right lung", "nodule"], image="x.png"
        ),
        answers_of("what is seen?", ["nodule", "mass", "mass"], image="y.png"),
    ]
    judged = [(row, judgment_on(row, marks)) for row, marks in zip(rows, [(1.0, 0.0, 0.1), (1.0, 0.0, 0.0)], strict=True)]
    manifest, made = run_pair(PairOptions(counter_pairs=True, max_similarity=0.8), judged, tmp_path)
    assert manifest.dropped == {}
    assert {(row.chosen, row.rejected) for row in made} == {("a large mass in the left lung", "nodule"), ("nodule", "mass")}


@pytest.mark.parametrize("max_similarity", [1.0, 0.6])
def test_counter_pairs_are_not_nearly_the_same_either(max_similarity: float, tmp_path: Path) -> None:
    rows = [
        answers_of("what is seen?", ["a mass on the left", "a mass on the right"], image="x.png"),
        answers_of("what is seen?", ["a mass on the right", "a nodule", "oedema"], image="y.png"),
    ]
    judged = [(row, judgment_on(row, marks)) for row, marks in zip(rows, [(1.0, 0.0), (1.0, 0.0, 0.5)], strict=True)]
    options = PairOptions(counter_pairs=True, max_similarity=max_similarity)
    manifest, made = run_pair(options, judged, tmp_path)
    assert {row.chosen for row in made if row.images == ("x.png",)} == (
        {"a mass on the left"} if max_similarity == 1 else set()
    )
    assert manifest.dropped == ({} if max_similarity == 1 else {"nearly the same text": 1})


@pytest.mark.parametrize(
    ("pairs", "loss"), [("extremes", "group"), ("all", "group"), ("group", "sigmoid"), ("group", "ipo"), ("group", "hinge")]
)
def test_pairs_that_were_not_made_for_the_loss_are_refused(pairs: str, loss: str, tmp_path: Path) -> None:
    given = answers_of("what is seen?", ["a", "b", "c"])
    run_pair(PairOptions.model_validate({"pairs": pairs}), [(given, judgment_on(given, (1.0, 0.5, 0.0)))], tmp_path)
    options = DpoOptions.model_validate({"loss": loss, "replay": 0})
    with pytest.raises(StllavaError, match=f"are {'groups' if pairs == 'group' else 'no groups'}, and the loss is {loss}"):
        dpo(options, policy=tmp_path, preferences=tmp_path / "pair", images=tmp_path, to=tmp_path / "dpo")
