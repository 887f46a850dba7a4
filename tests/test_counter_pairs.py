"""Counter-pairs reject what is right elsewhere and wrong here, and never what the expert calls right."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from helpers.judging import answers_of, write_answers
from stllava.config import JudgeOptions, PairOptions
from stllava.experts.counter_pairs import counter_pairs
from stllava.experts.selection import vote
from stllava.records import Answers, Comparison, Judgment, Preference, content_id
from stllava.stages.pair import pair
from stllava.store import Stage, read_records

QUESTION = "Which tumour is it?"
OPTIONS = PairOptions(margin=0.5, min_chosen_score=1.0, counter_pairs=True, balance=False)
TUMOURS = ("glioma", "meningioma", "pituitary")


def judged(answers: Answers, scores: tuple[float, ...], comparisons: tuple[Comparison, ...] = ()) -> Judgment:
    """A verdict on answers."""
    return Judgment(
        id=content_id(answers.id),
        answers_id=answers.id,
        scores=scores,
        cause=None,
        reason="so",
        expert="e",
        prompt_hash="p",
        comparisons=comparisons,
    )


def row(image: int, truth: str, *texts: str) -> tuple[Answers, Judgment]:
    """Answers about an image, judged by its truth."""
    answers = answers_of(QUESTION, texts, image=f"{image}.png")
    return answers, judged(answers, tuple(float(text == truth) for text in texts))


def test_what_is_right_of_another_image_is_rejected_where_it_is_wrong() -> None:
    rows = [row(0, "glioma", "glioma", "nothing", "meningioma"), row(1, "meningioma", "meningioma", "nothing")]
    made = counter_pairs(rows, known=set(), options=OPTIONS)
    # "nothing" is right nowhere, and the second image's policy never said "glioma".
    assert made == [(rows[0][0].id, 0, 2)]
    assert counter_pairs(rows, known={(rows[0][0].id, "glioma", "meningioma")}, options=OPTIONS) == []


def test_answers_that_the_expert_could_not_decide_between_make_none() -> None:
    answers = answers_of(QUESTION, ("glioma", "meningioma"), image="0.png")
    tied = (answers, judged(answers, (1.0, 0.0), (Comparison(first=0, second=1, winner=None),)))
    assert counter_pairs([tied, row(1, "meningioma", "meningioma")], known=set(), options=OPTIONS) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(TUMOURS), st.lists(st.sampled_from((*TUMOURS, "nothing")), min_size=1, max_size=5)),
        min_size=1,
        max_size=14,
    )
)
def test_none_rejects_what_the_expert_calls_right(drawn: list[tuple[str, list[str]]]) -> None:
    rows = [row(image, truth, *texts) for image, (truth, texts) in enumerate(drawn)]
    by_id = {answers.id: (answers, judgment) for answers, judgment in rows}
    right = {answers.id: truth for (answers, _), (truth, _) in zip(rows, drawn, strict=True)}
    made = counter_pairs(rows, known=set(), options=OPTIONS)
    assert len({key for key, *_ in made}) == len(made)
    for key, chosen, rejected in made:
        answers, judgment = by_id[key]
        assert judgment.scores is not None
        assert (judgment.scores[chosen], judgment.scores[rejected]) == (1.0, 0.0)
        elsewhere = {truth for other, truth in right.items() if other != key}
        assert vote(answers.final_answers[rejected]) in elsewhere - {right[key]}


def test_each_answer_is_rejected_about_as_often_as_it_is_chosen() -> None:
    rows = [row(image, TUMOURS[image % 3], *TUMOURS) for image in range(60)]
    by_id = {answers.id: answers for answers, _ in rows}
    made = counter_pairs(rows, known=set(), options=OPTIONS)
    rejected = [by_id[key].final_answers[place] for key, _, place in made]
    assert len(made) == 60
    assert max(map(rejected.count, TUMOURS)) - min(map(rejected.count, TUMOURS)) <= 2


def test_the_stage_adds_them_beside_the_other_pairs(tmp_path: Path) -> None:
    rows = [row(0, "glioma", "glioma", "nothing", "nothing", "meningioma"), row(1, "meningioma", "meningioma", "nothing")]
    answers = write_answers(tmp_path / "answer", [answers for answers, _ in rows])
    stage = Stage("judge", tmp_path / "judge", JudgeOptions(), inputs={}, existing="resume")
    stage.write_records("judgments", [judgment for _, judgment in rows])
    stage.finish(counts_in=2, counts_out=2)
    pair(
        OPTIONS.model_copy(update={"counter_pairs": False}),
        answers=answers,
        judgments=tmp_path / "judge",
        to=tmp_path / "plain",
    )
    pair(OPTIONS, answers=answers, judgments=tmp_path / "judge", to=tmp_path / "countered")
    plain, countered = (read_records(tmp_path / name, "preferences", Preference) for name in ("plain", "countered"))
    assert countered[: len(plain)] == plain
    (added,) = countered[len(plain) :]
    assert (added.chosen, added.rejected, added.images) == ("glioma", "meningioma", ("0.png",))


def test_silence_is_never_chosen_nor_the_same_answer_in_other_words_rejected() -> None:
    silent = [row(0, "", "", "glioma"), row(1, "glioma", "glioma", "")]
    assert counter_pairs(silent, known=set(), options=OPTIONS) == []
    yes = [row(image, "yes", "yes", "yes, it is") for image in range(2)]
    assert counter_pairs(yes, known=set(), options=OPTIONS) == []
