"""Questions that ask the same in other words: how they are told, and what verdicts in several wordings say together."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.judging import answers_of, judgment_on, write_answers, write_judgments
from stllava.config import AskOptions, PairOptions
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.confidence import WordingVerdict, paraphrases_among, reckon, verdict_odds
from stllava.experts.counter_pairs import counter_pairs
from stllava.experts.judged_answers import JudgedAnswers
from stllava.experts.paraphrases import (
    MAX_WORDINGS,
    MIN_IMAGES,
    MIN_KAPPA,
    AnswerErrors,
    Paraphrases,
    differ_by_error,
    is_one_sided,
    kappa_bound,
    share_alike,
)
from stllava.metrics.agreement import cohen_kappa
from stllava.records import Conversation, Preference, Question, QuestionParaphrase
from stllava.review.overrides import Decision, Decisions
from stllava.review.voted_answers import voted_answers
from stllava.stages.final_data import final_data
from stllava.stages.pair import pair
from stllava.store import Stage, read_records

ALIKE = ("What is seen?", "What does the image show?", "How would you report this?")
OTHER = "Which side is it on?"
FINDINGS = ("cyst", "glioma", "oedema")
SURE = PairOptions(min_confidence=0.75, expert_error=0.15, min_chosen_score=1.0, margin=0.5)
ALONE = SURE.model_copy(update={"pool_paraphrases": False})


def verdicts(*, images: int, wrong: float, steady: float = 0.0, seed: int = 0) -> tuple[list[JudgedAnswers], dict[str, str]]:
    """Every image asked the same in three wordings and one other thing, by an expert that errs; and each answers' right one.

    `wrong` is the share of verdicts that are wrong in one wording, `steady` that of answers on which it is wrong in all.
    """
    draw = random.Random(seed)
    judged, truth = [], {}
    for number in range(images):
        image, finding, side = f"{number}.png", draw.choice(FINDINGS), draw.choice(("left", "right"))
        believed = {text: (text == finding) != (draw.random() < steady) for text in FINDINGS}
        for question in (*ALIKE, OTHER):
            right, rest = (side, ("left", "right")) if question == OTHER else (finding, FINDINGS)
            given = tuple(draw.choice((right, *rest)) for _ in range(8))
            called = {text: believed.get(text, text == right) != (draw.random() < wrong) for text in rest}
            answers = answers_of(question, given, image=image)
            judged.append((answers, judgment_on(answers, [float(called[text]) for text in given])))
            truth[answers.id] = right
    return judged, truth


def chosen(judged: Sequence[JudgedAnswers], truth: dict[str, str], *, options: PairOptions) -> Counter[bool]:
    """How many answers are chosen, by whether they are right."""
    paraphrases = paraphrases_among(judged, options=options)
    counts = Counter[bool]()
    for answers, judgment in judged:
        pairs = pairs_of(answers, judgment, options=options, paraphrases=paraphrases)
        counts.update(made.chosen == truth[answers.id] for made in ([] if isinstance(pairs, str) else pairs))
    return counts


def says(*right: bool, error: float, fresh: float, reliability: float = 1.0) -> list[WordingVerdict]:
    """Verdicts on an answer in so many wordings."""
    return [WordingVerdict(called, AnswerErrors(error, error), fresh, reliability) for called in right]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.booleans(), st.floats(0.02, 0.9), st.floats(0.02, 0.45), st.floats(0.02, 1)), max_size=5
    ),
    st.floats(0, 1),
)
def test_the_odds_are_what_bayes_rule_says_of_every_case(
    others: list[tuple[float, bool, float, float, float]], prior: float
) -> None:
    """All cases in turn: how far the wordings are the same here, whether the answer is right there, and what is believed."""
    own = WordingVerdict(True, AnswerErrors(0.2, 0.2), 0.1)
    rest = [
        WordingVerdict(right, AnswerErrors(misses, alarms), AnswerErrors(misses, alarms).most_fresh * share, reliability)
        for reliability, right, misses, alarms, share in others
    ]
    ranked = sorted(rest, key=lambda verdict: -verdict.reliability)

    def likelihood(verdicts: Sequence[WordingVerdict], *, right: bool) -> float:
        errors = [each.errors.misses if right else each.errors.false_alarms for each in verdicts]
        steady = [min(1.0, (error - each.fresh) / (1 - 2 * each.fresh)) for each, error in zip(verdicts, errors, strict=True)]
        ends = sorted({0.0, 1.0, *steady})
        total = 0.0
        for low, high in pairwise(ends):
            chance = high - low
            for each, share in zip(verdicts, steady, strict=True):
                believes = right != (share > low)
                chance *= 1 - each.fresh if each.called_right == believes else each.fresh
            total += chance
        return total

    def told(*, right: bool) -> float:
        bounds = [1.0, *(each.reliability for each in ranked), 0.0]
        total = 0.0
        for count, (above, below) in enumerate(pairwise(bounds)):
            another = ranked[count:]
            there = prior * likelihood(another, right=True) + (1 - prior) * likelihood(another, right=False)
            total += (above - below) * likelihood([own, *ranked[:count]], right=right) * there
        return total

    expected = told(right=True) / told(right=False)
    assert verdict_odds([own, *rest], prior=prior) == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(0.01, 0.45), st.floats(0.01, 1), st.floats(0, 1))
def test_verdicts_that_are_the_wrong_way_round_turn_the_odds_over_and_none_go_beyond_what_is_steady(
    right: list[bool], error: float, share: float, prior: float
) -> None:
    fresh = share * error
    alone = verdict_odds(says(True, error=error, fresh=fresh), prior=prior)
    assert alone == pytest.approx((1 - error) / error, rel=1e-3)
    odds = verdict_odds(says(*right, error=error, fresh=fresh), prior=prior)
    flipped = says(*(not called for called in right), error=error, fresh=fresh)
    assert odds * verdict_odds(flipped, prior=prior) == pytest.approx(1)
    steady = (error - fresh) / (1 - 2 * fresh)
    assert odds * steady <= (1 - steady) * (1 + 1e-9)
    unrelated = says(*right, error=error, fresh=fresh, reliability=0.0)
    assert verdict_odds([*says(True, error=error, fresh=fresh), *unrelated], prior=prior) == pytest.approx(alone)


def test_other_wordings_go_no_further_than_they_are_reliable() -> None:
    own = says(False, error=0.15, fresh=0.15)
    many = verdict_odds([*own, *says(*[True] * 12, error=0.15, fresh=0.15, reliability=0.6)], prior=0.5)
    assert many == pytest.approx(0.15 / 0.85 * (1 + 0.6 / (0.4 * 0.5)), rel=1e-6)
    assert verdict_odds([*own, *says(*[True] * MAX_WORDINGS, error=0.15, fresh=0.0, reliability=0.9)], prior=0.5) < 2


def test_only_questions_whose_answers_agree_beyond_chance_ask_the_same() -> None:
    judged, _ = verdicts(images=60, wrong=0.15)
    found = paraphrases_among(judged, options=SURE)
    same = {"what is seen?", "what does the image show?", "how would you report this?"}
    assert set(found.reliability) == {(one, other) for one in same for other in same if one != other}
    assert {round(value, 6) for value in found.reliability.values()} == {
        round(found.reliability[other, one], 6) for one, other in found.reliability
    }
    shuffled = random.Random(1).sample(judged, len(judged))
    assert paraphrases_among(shuffled, options=SURE).reliability == found.reliability
    few, _ = verdicts(images=MIN_IMAGES - 1, wrong=0.0)
    assert not paraphrases_among(few, options=SURE).reliability
    assert paraphrases_among(judged, options=ALONE) == paraphrases_among(judged, options=PairOptions()) == Paraphrases()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60))
def test_the_bound_is_below_kappa_and_nears_it_with_more_images(rows: list[tuple[int, int]]) -> None:
    names = Counter((str(one), str(other)) for one, other in rows)
    if len({one for one, _ in rows}) == 1 or len({other for _, other in rows}) == 1:
        assert kappa_bound(names) == 0
        return
    kappa = cohen_kappa(*(list(column) for column in zip(*rows, strict=True)))
    assert kappa_bound(names) < kappa + 1e-9
    many = {both: 10**8 * count for both, count in names.items()}
    assert kappa_bound(names) <= kappa_bound(many) + 1e-9
    assert kappa_bound(many) == pytest.approx(kappa, abs=1e-3)


def test_one_image_with_a_rare_answer_proves_nothing() -> None:
    assert kappa_bound({("no", "no"): 99, ("yes", "yes"): 1}) < MIN_KAPPA
    assert kappa_bound({("no", "no"): 50, ("yes", "yes"): 50}) > 0.9


@pytest.mark.parametrize("same", [1.0, 0.8])
def test_the_share_of_images_on_which_two_questions_are_the_same_is_found(same: float) -> None:
    draw = random.Random(0)
    differing, count = 0, 4000
    for _ in range(count):
        alike, wrong, other = draw.random() < same, draw.random() < 0.15, draw.random() < 0.3
        differing += (wrong != other) if alike else (wrong == other)
    by_error = differ_by_error(AnswerErrors(0.15, 0.15), AnswerErrors(0.3, 0.3))
    found = share_alike(differing, count, by_error=by_error)
    assert same - 0.08 < found <= min(1.0, same + 0.02)
    assert share_alike(0, 0, by_error=2 * 0.15 * 0.85) < 0.75
    assert share_alike(0, 100, by_error=0.5) == share_alike(0, 100, by_error=0.8) == 0.0


def implied(*, images: int) -> tuple[list[JudgedAnswers], dict[str, str]]:
    """A mass in six images of ten, malignant in half of these; asked twice for the mass and once whether it is malignant."""
    draw = random.Random(0)
    judged, truth = [], {}
    for number in range(images):
        mass = draw.random() < 0.6
        malignant = mass and draw.random() < 0.5
        for question, holds in (("Is there a mass?", mass), ("Can a mass be seen?", mass), ("Is a mass malignant?", malignant)):
            right = "yes" if holds else "no"
            given = tuple(draw.choice(("yes", "no", right)) for _ in range(8))
            called = {text: (text == right) != (draw.random() < 0.15) for text in ("yes", "no")}
            answers = answers_of(question, given, image=f"{number}.png")
            judged.append((answers, judgment_on(answers, [float(called[text]) for text in given])))
            truth[answers.id] = right
    return judged, truth


def test_a_question_that_another_one_implies_is_not_the_same() -> None:
    judged, truth = implied(images=400)
    found = paraphrases_among(judged, options=SURE)
    assert set(found.reliability) == {
        ("is there a mass?", "can a mass be seen?"),
        ("can a mass be seen?", "is there a mass?"),
    }
    assert is_one_sided({("yes", "yes"): 100, ("no", "no"): 100, ("yes", "no"): 60, ("no", "yes"): 10})
    assert not is_one_sided({("yes", "yes"): 100, ("no", "no"): 100, ("yes", "no"): 30, ("no", "yes"): 25})
    pooled, alone = chosen(judged, truth, options=SURE), chosen(judged, truth, options=ALONE)
    assert pooled[False] <= alone[False]


def test_an_expert_that_knows_one_wording_better_is_not_dragged_down_by_the_others() -> None:
    draw = random.Random(0)
    good, bad = "How is this tumour classified?", ("What type of tumour is it?", "What type of mass is it?")
    judged, truth = [], {}
    for number in range(300):
        right = draw.choice(FINDINGS)
        for question in (good, *bad):
            given = tuple(draw.choice((right, *FINDINGS)) for _ in range(8))
            wrong = 0.02 if question == good else 0.4
            called = {text: (text == right) != (draw.random() < wrong) for text in FINDINGS}
            answers = answers_of(question, given, image=f"{number}.png")
            judged.append((answers, judgment_on(answers, [float(called[text]) for text in given])))
            truth[answers.id] = right
    errors = {"how is this": 0.02, "what type of": 0.4}
    shares = []
    for pooled in (True, False):
        options = SURE.model_copy(update={"expert_errors": errors, "pool_paraphrases": pooled})
        found = paraphrases_among(judged, options=options)
        counts = Counter[bool]()
        for answers, judgment in judged:
            pairs = pairs_of(answers, judgment, options=options, paraphrases=found)
            if answers.question == good:
                counts.update(row.chosen == truth[answers.id] for row in ([] if isinstance(pairs, str) else pairs))
        shares.append(counts[False] / counts.total())
    assert shares[0] <= shares[1] + 0.005


@pytest.mark.parametrize("seed", range(3))
def test_more_answers_are_chosen_and_fewer_of_them_wrong_where_wordings_are_pooled(seed: int) -> None:
    judged, truth = verdicts(images=300, wrong=0.15, seed=seed)
    alone, pooled = chosen(judged, truth, options=ALONE), chosen(judged, truth, options=SURE)
    assert pooled[True] > alone[True]
    assert pooled[False] < 0.75 * alone[False]


def test_an_expert_that_errs_alike_in_every_wording_is_believed_no_more_for_repeating_itself() -> None:
    judged, truth = verdicts(images=400, wrong=0.01, steady=0.15)
    found = paraphrases_among(judged, options=SURE)
    assert found.fresh_error(ALIKE[0], AnswerErrors(0.15, 0.15)) < 0.03
    alone, pooled = chosen(judged, truth, options=ALONE), chosen(judged, truth, options=SURE)
    share, shares = (counts[False] / counts.total() for counts in (alone, pooled))
    assert shares <= share + 0.005
    # As an expert whose errors are new in every wording it would be believed, and more wrong answers be chosen.
    fooled = Paraphrases(found.verdicts, found.reliability)
    assert (
        found.fresh_error(ALIKE[0], AnswerErrors(0.15, 0.15)) < fooled.fresh_error(ALIKE[0], AnswerErrors(0.15, 0.15)) == 0.15
    )


def test_errors_that_come_anew_with_every_wording_are_found_to_do_so() -> None:
    judged, _ = verdicts(images=400, wrong=0.1)
    assert paraphrases_among(judged, options=SURE).fresh_error(ALIKE[0], AnswerErrors(0.45, 0.45)) == pytest.approx(
        0.1, abs=0.02
    )
    assert Paraphrases().fresh_error(ALIKE[0], AnswerErrors(0.2, 0.2)) == 0.2


def asked_alike(scores: Sequence[Sequence[float]]) -> tuple[list[JudgedAnswers], list[JudgedAnswers]]:
    """Enough images to tell that the wordings are alike; and one more, with these scores of two answers in each wording."""
    judged, _ = verdicts(images=60, wrong=0.1)
    more = [answers_of(question, ("cyst",) * 4 + ("glioma",) * 4, image="more.png") for question in ALIKE]
    rows = [(answers, judgment_on(answers, [row[0]] * 4 + [row[1]] * 4)) for answers, row in zip(more, scores, strict=True)]
    return [*judged, *rows], rows


def test_what_is_called_right_in_most_wordings_is_chosen_in_all(tmp_path: Path) -> None:
    judged, rows = asked_alike([(0.0, 1.0), (1.0, 0.0), (1.0, 0.0)])
    found = paraphrases_among(judged, options=SURE)
    reckoned = reckon(*rows[0], options=SURE, paraphrases=found)
    assert reckoned.judgment.scores == (1.0,) * 4 + (0.0,) * 4
    assert reckoned.sure == [True] * 4 + [False] * 4
    assert reckon(*rows[0], options=ALONE).judgment is rows[0][1]
    answers, judgments = write_round(tmp_path, judged)
    made = pair(SURE, answers=answers, judgments=judgments, to=tmp_path / "pair")
    assert made.manifest.measures["paraphrases"] == 3
    assert made.manifest.measures["overruled_judgments"] >= 1
    same = read_records(tmp_path / "pair", "paraphrases", QuestionParaphrase)
    assert {row.questions for row in same} == set(combinations(sorted(text.lower() for text in ALIKE), 2))
    pairs = {(row.images[0], row.prompt[0].content): row for row in read_records(tmp_path / "pair", "preferences", Preference)}
    kept = [pairs["more.png", question] for question in ALIKE]
    assert [(row.chosen, row.rejected, row.margin) for row in kept] == [("cyst", "glioma", 1.0)] * 3
    assert [row.lineage.overruled for row in kept] == [True, False, False]


def test_an_answer_that_most_wordings_call_wrong_is_not_chosen_where_it_is_called_right() -> None:
    judged, rows = asked_alike([(1.0, 0.0), (0.0, 0.0), (0.0, 0.0)])
    found = paraphrases_among(judged, options=SURE)
    assert pairs_of(*rows[0], options=SURE, paraphrases=found) == "tie"
    lone = [key for key, *_ in counter_pairs(judged, known=(), options=SURE, paraphrases=found)]
    assert rows[0][0].id not in lone


def test_a_right_answer_that_was_missed_makes_the_experts_own_one_needless() -> None:
    judged, rows = asked_alike([(0.0, 0.0), (1.0, 0.0), (1.0, 0.0)])
    found = paraphrases_among(judged, options=SURE)
    missed = rows[0][1].model_copy(update={"correction": "abscess"})
    assert reckon(rows[0][0], missed, options=SURE, paraphrases=found).judgment.correction is None
    assert reckon(rows[0][0], missed, options=ALONE).judgment.correction == "abscess"


def test_the_last_training_pools_the_wordings_of_all_rounds(tmp_path: Path) -> None:
    judged, rows = asked_alike([(0.0, 0.0), (1.0, 0.0), (1.0, 0.0)])
    later = {answers.id for answers, _ in rows[1:]}
    rounds = []
    for number, part in enumerate(([row for row in judged if row[0].id not in later], rows[1:]), 1):
        answers = write_answers(tmp_path / f"answers-{number}", [answers for answers, _ in part])
        rounds.append((answers, write_judgments(tmp_path / f"judge-{number}", [judgment for _, judgment in part])))
    labels = tmp_path / "conversations.json"
    turns = [{"from": "human", "value": "<image>\nIs it big?"}, {"from": "gpt", "value": "no"}]
    labels.write_text(json.dumps([{"id": "label", "image": "label.png", "conversations": turns}]))
    learned, overruled = [], []
    for options, to in ((SURE, tmp_path / "pooled"), (ALONE, tmp_path / "alone")):
        made = final_data(options, conversations=labels, rounds=rounds, to=to)
        overruled.append(made.manifest.measures.get("overruled_judgments"))
        said = read_records(to, "conversations", Conversation)
        learned.append({row.messages[0].content: row.messages[1].content for row in said if row.images == ("more.png",)})
    assert learned[0] == dict.fromkeys(ALIKE, "cyst")
    assert ALIKE[0] not in learned[1]
    assert overruled[0]
    assert overruled[1] is None


def write_round(folder: Path, judged: Sequence[JudgedAnswers]) -> tuple[Path, Path]:
    """The folders of answers and of their judgments."""
    answers = write_answers(folder / "answers", [row for row, _ in judged])
    return answers, write_judgments(folder / "judge", [row for _, row in judged])


@pytest.mark.parametrize("refuted", [False, True])
def test_readers_are_not_overruled_by_what_the_expert_says_in_other_words(
    refuted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They confirm the first verdict, or refute the two others, which say otherwise."""
    judged, rows = asked_alike([(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)])
    decision = partial(Decision, first=0, second=4, choice="first", correct_answer=None, readers=("ada", "bo"))
    decided = {rows[0][0].id: decision(verdict="first")}
    if refuted:
        decided = {answers.id: decision(verdict="second") for answers, _ in rows[1:]}
    decisions = Decisions(decided)
    answers, judgments = write_round(tmp_path, judged)
    monkeypatch.setattr("stllava.stages.pair.read_decisions", lambda folder: decisions)
    monkeypatch.setattr(
        "stllava.stages.final_data.read_voted_answers", lambda folders, rows: voted_answers([decisions], judged)
    )
    for module in ("pair", "final_data"):
        monkeypatch.setattr(f"stllava.stages.{module}.votes_hash", lambda folder: "votes")
    pair(SURE, answers=answers, judgments=judgments, votes=tmp_path, to=tmp_path / "pair")
    pairs = [row for row in read_records(tmp_path / "pair", "preferences", Preference) if row.images == ("more.png",)]
    of_first = [row for row in pairs if row.prompt[0].content == ALIKE[0]]
    assert [(row.chosen, row.rejected) for row in of_first] == [("cyst", "glioma")]
    labels = tmp_path / "conversations.json"
    turns = [{"from": "human", "value": "<image>\nIs it big?"}, {"from": "gpt", "value": "no"}]
    labels.write_text(json.dumps([{"id": "label", "image": "label.png", "conversations": turns}]))
    final_data(SURE, conversations=labels, rounds=[(answers, judgments)], votes=[tmp_path], to=tmp_path / "last")
    said = read_records(tmp_path / "last", "conversations", Conversation)
    learned = {row.messages[0].content: row.messages[1].content for row in said if row.images == ("more.png",)}
    assert learned[ALIKE[0]] == "cyst"
    assert not refuted or learned == dict.fromkeys(ALIKE, "cyst")


def test_a_question_that_made_a_pair_is_not_held_to_be_settled(tmp_path: Path) -> None:
    """By the expert alone all answers to the first one are right, and by the other wordings one is not."""
    judged, _ = asked_alike([(1.0, 1.0), (1.0, 0.0), (1.0, 0.0)])
    asked = Stage("ask", tmp_path / "ask", AskOptions(), inputs={}, existing="resume")
    asked.write_records(
        "questions",
        [
            Question(
                id=row.question_id, images=row.images, text=row.question, description="", policy="p", sampling=row.sampling
            )
            for row, _ in judged
        ],
    )
    asked.finish(counts_in=len(judged), counts_out=len(judged))
    options = SURE.model_copy(update={"question_pairs": 3, "balance": False})
    answers, judgments = write_round(tmp_path, judged)
    pair(options, answers=answers, judgments=judgments, questions=tmp_path / "ask", to=tmp_path / "pair")
    about = [row for row in read_records(tmp_path / "pair", "preferences", Preference) if row.images == ("more.png",)]
    assert [(row.chosen, row.rejected) for row in about] == [("cyst", "glioma")] * 3


def test_answers_without_scores_or_with_too_few_of_them_say_nothing() -> None:
    judged, rows = asked_alike([(1.0, 0.0)] * 3)
    answers = rows[0][0]
    for row in (judgment_on(answers, None), judgment_on(answers, [1.0]), judgment_on(answers, [1.0] * 8, expert="itself")):
        others = [each for each in judged if each[0].id != answers.id]
        found = paraphrases_among([*others, (answers, row)], options=SURE)
        assert "what is seen?" not in found.verdicts[answers.images]
        assert reckon(answers, row, options=SURE, paraphrases=found).judgment is row


def test_a_question_in_other_letters_is_no_paraphrase_of_itself() -> None:
    judged, rows = asked_alike([(1.0, 0.0)] * 3)
    (answers, judgment), *_ = rows
    again = answers.model_copy(update={"question": answers.question.upper()})
    found = paraphrases_among([*judged, (again, judgment)], options=SURE)
    assert len(found.of(answers.images, answers.question)) == 2
