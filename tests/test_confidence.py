"""How sure it is that an answer is right, and what becomes of answers of which it is not."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from helpers.judging import answers_of, judgment_on, write_answers, write_judgments
from stllava.config import DpoOptions, JudgeOptions, PairOptions
from stllava.errors import StllavaError
from stllava.experts.answer_pairs import pairs_of
from stllava.experts.confidence import WordingVerdict, posterior, reckon, verdict_odds
from stllava.experts.counter_pairs import counter_pairs
from stllava.experts.paraphrases import AnswerErrors
from stllava.recipe import RunOptions
from stllava.records import Answers, AuditedKind, ExpertAudit, Judgment, Rate, Sample
from stllava.stages.calibrate import audit_expert, audit_of, audit_warnings, error_of, with_errors
from stllava.stages.final_data import final_data
from stllava.stages.judge import judge
from stllava.store import Stage, to_jsonl

SURE = PairOptions(min_confidence=0.8, expert_error=0.15)
VERDICTS = st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=6)


def judged(answers: Answers, *scores: float) -> Judgment:
    return Judgment(
        id=f"j {answers.id}", answers_id=answers.id, scores=scores, cause=None, reason="", expert="e", prompt_hash="h"
    )


def chances(votes: Sequence[int], called: Sequence[bool], *, answers: int, error: float) -> list[float]:
    """How likely each answer is the right one, by the votes and one verdict on each."""
    prior = [count / (answers + 1) for count in votes]
    odds = [
        verdict_odds([WordingVerdict(right, AnswerErrors(error, error), fresh=error)], prior=chance)
        for right, chance in zip(called, prior, strict=True)
    ]
    return posterior(prior, odds)


def may_be_chosen(answers: Answers, judgment: Judgment, *, options: PairOptions) -> list[bool]:
    return reckon(answers, judgment, options=options).sure


@given(VERDICTS, st.integers(0, 4), st.floats(0.01, 0.49))
def test_the_posterior_is_what_bayes_rule_says_of_every_hypothesis(
    verdicts: list[tuple[int, bool]], others: int, error: float
) -> None:
    votes, called = zip(*verdicts, strict=True)
    answers = sum(votes) + others

    def likelihood(right: int | None) -> float:
        chance = 1.0
        for place, says in enumerate(called):
            chance *= 1 - error if says == (place == right) else error
        return chance

    joint = [count / (answers + 1) * likelihood(place) for place, count in enumerate(votes)]
    total = sum(joint) + (1 - sum(votes) / (answers + 1)) * likelihood(None)
    assert chances(votes, called, answers=answers, error=error) == pytest.approx([part / total for part in joint])


def test_an_expert_that_never_errs_is_believed_and_one_that_guesses_leaves_the_votes() -> None:
    assert chances([1, 7], [True, False], answers=8, error=0.0) == pytest.approx([1.0, 0.0], abs=1e-4)
    assert chances([1, 7], [False, False], answers=8, error=0.0) == pytest.approx([0.0, 0.0], abs=1e-4)
    assert chances([1, 7], [True, False], answers=8, error=0.4999999) == pytest.approx([1 / 9, 7 / 9], abs=1e-6)


def test_votes_for_an_answer_and_silence_on_others_make_it_surer() -> None:
    one, many = (chances([votes], [True], answers=8, error=0.15)[0] for votes in (1, 5))
    rivalled = chances([5, 3], [True, True], answers=8, error=0.15)[0]
    denied = chances([5, 3], [True, False], answers=8, error=0.15)[0]
    assert one < many
    assert rivalled < denied


def test_confidence_is_the_share_of_right_answers_among_those_called_so_in_a_world_like_the_model() -> None:
    """Ten thousand questions whose right answer is drawn by the votes, and an expert wrong in 15 % of its verdicts."""
    draw = random.Random(0)
    counts: Counter[bool] = Counter()
    expected = 0.0
    for _ in range(10_000):
        votes = Counter(draw.choices("abc", weights=(4, 2, 1), k=8))
        texts = sorted(votes)
        right = draw.choices([*texts, ""], weights=[*(votes[text] for text in texts), 1])[0]
        called = [(text == right) != (draw.random() < 0.15) for text in texts]
        found = chances([votes[text] for text in texts], called, answers=8, error=0.15)
        for text, chance in zip(texts, found, strict=True):
            if chance >= 0.8:
                counts[text == right] += 1
                expected += chance
    assert counts.total() > 2000
    assert counts[True] / counts.total() == pytest.approx(expected / counts.total(), abs=0.02)


def test_without_a_minimum_every_answer_may_be_chosen() -> None:
    answers = answers_of("Is it big?", ("yes", "", "no"))
    assert may_be_chosen(answers, judged(answers, 1.0, 0.0, 1.0), options=PairOptions()) == [True] * 3


def test_a_lone_answer_that_is_called_right_beside_a_common_one_is_not_chosen() -> None:
    answers = answers_of("What is it?", ("glioma",) * 6 + ("cyst", "Glioma."))
    scores = (1.0,) * 6 + (1.0, 1.0)
    assert may_be_chosen(answers, judged(answers, *scores), options=SURE) == [True] * 6 + [False, True]
    lone = (0.0,) * 6 + (1.0, 0.0)
    assert may_be_chosen(answers, judged(answers, *lone), options=SURE) == [False] * 8
    own = judged(answers, *lone).model_copy(update={"expert": "itself"})
    assert may_be_chosen(answers, own, options=SURE) == [True] * 8


def test_pairs_counter_pairs_and_the_last_training_choose_only_what_is_sure(tmp_path: Path) -> None:
    lone = answers_of("What is it?", ("glioma",) * 7 + ("cyst",), image="a.png")
    verdict = judged(lone, *(0.0,) * 7, 1.0)
    assert pairs_of(lone, verdict, options=SURE) == "chosen answer not sure enough"
    assert not isinstance(pairs_of(lone, verdict, options=PairOptions()), str)
    agreed = answers_of("What is it?", ("cyst",) * 6 + ("glioma",) * 2, image="b.png")
    right = judged(agreed, *(1.0,) * 6, 0.0, 0.0)
    made = pairs_of(agreed, right, options=SURE)
    assert not isinstance(made, str)
    assert [(pair.chosen, pair.rejected) for pair in made] == [("cyst", "glioma")]
    other = answers_of("What is it?", ("glioma",) * 6 + ("cyst",) * 2, image="c.png")
    third = judged(other, *(1.0,) * 6, 0.0, 0.0)
    rows = [(lone, verdict), (agreed, right), (other, third)]
    sure = {key for key, *_ in counter_pairs(rows, known=(), options=SURE)}
    assert sure == {agreed.id, other.id}
    assert {key for key, *_ in counter_pairs(rows, known=(), options=PairOptions())} == {lone.id, agreed.id, other.id}


def sample(question: str, target: str, image: str) -> Sample:
    return Sample(
        id=f"{image} {question}", image=image, question=question, targets=(target,), kind="closed", split="validation"
    )


def test_an_audit_finds_how_often_an_expert_is_wrong_and_about_what() -> None:
    known = []
    for number in range(100):
        for question, wrong in (("Is it a cyst?", number < 40), ("Is there a mass?", number < 4)):
            answers = answers_of(question, ("yes", "no", "yes"), image=f"{number}.png")
            says = (0.0, 1.0, 0.0) if wrong else (1.0, 0.0, 1.0)
            known.append((answers, judged(answers, *says), (1.0, 0.0, 1.0)))
    found = audit_of(known, options=PairOptions(), expert="e")
    assert found.wrong is not None
    assert found.misses is not None
    assert found.false_alarms is not None
    assert (found.questions, found.wrong.n, found.wrong.value) == (200, 400, 88 / 400)
    assert (found.misses.value, found.false_alarms.value) == (44 / 200, 44 / 200)
    assert found.wrong.low < 88 / 400 < found.wrong.high
    assert [(topic.word, topic.wrong.value, topic.wrong.n) for topic in found.topics] == [("cyst", 0.4, 200)]
    assert found.elsewhere is not None
    assert (found.elsewhere.value, found.elsewhere.n) == (0.04, 200)
    assert {kind.opening: kind.wrong.value for kind in found.kinds} == {"is there a": 0.04}
    assert re.search(r"errs more about “cyst” 40.0% .* than elsewhere \(4.0% ", found.sentences[-1])


def test_an_audit_counts_the_pairs_that_are_the_wrong_way_round() -> None:
    known = []
    for number in range(40):
        answers = answers_of("Is it a cyst?", ("yes", "no", "no"), image=f"{number}.png")
        says = (0.0, 1.0, 1.0) if number < 10 else (1.0, 0.0, 0.0)
        known.append((answers, judged(answers, *says), (1.0, 0.0, 0.0)))
    found = audit_of(known, options=PairOptions(), expert="e")
    assert found.wrong_pairs is not None
    assert found.wrong_chosen is not None
    assert found.wrong_pairs.value == found.wrong_chosen.value == 0.25
    assert "25.0%" in found.sentences[1]


def test_an_answer_that_is_partly_right_tells_nothing_of_the_expert() -> None:
    answers = answers_of("Where is it?", ("left upper lobe", "left lobe"))
    assert audit_of([(answers, judged(answers, 1.0, 0.0), (1.0, 0.8))], options=PairOptions(), expert="e").wrong is not None
    found = audit_of([(answers, judged(answers, 1.0, 0.0), (0.8, 0.8))], options=PairOptions(), expert="e")
    assert found.wrong is None
    assert found.sentences == ("The audit of e found no verdict on an answer that is known.",)


def test_a_rate_to_reckon_with_is_never_nothing_nor_one_half() -> None:
    assert error_of(Rate(value=0.0, low=0, high=0, n=98)) == 0.01
    assert error_of(Rate(value=0.15, low=0, high=1, n=100)) == 16 / 102
    assert error_of(Rate(value=1.0, low=0, high=1, n=50)) == 0.45


def an_audit(wrong: Rate | None, *, kinds: tuple[AuditedKind, ...] = (), pairs: Rate | None = None) -> ExpertAudit:
    return ExpertAudit(
        expert="e",
        questions=400,
        wrong=wrong,
        misses=None,
        false_alarms=None,
        wrong_pairs=pairs,
        wrong_chosen=None,
        kinds=kinds,
    )


def audited(*, wrong: float | None, pairs: float | None = 0.1, kind: float = 0.1) -> ExpertAudit:
    """An audit that found these shares of errors."""

    def found(value: float) -> Rate:
        return Rate(value=value, low=max(0.0, value - 0.05), high=min(1.0, value + 0.05), n=400)

    return an_audit(
        None if wrong is None else found(wrong),
        kinds=(AuditedKind(opening="what type of", wrong=found(kind)),),
        pairs=None if pairs is None else found(pairs),
    )


@pytest.mark.parametrize(
    ("found", "min_confidence", "smooth_labels", "told"),
    [
        (audited(wrong=0.15), 0.75, True, []),
        (audited(wrong=1.0), 0.0, False, ["wrong about 100.0% of single answers.*no better than chance. Choose"]),
        (audited(wrong=1.0), 0.75, False, ["no better than chance; pair.min_confidence reckons with 45%, the most it can"]),
        (audited(wrong=0.15, kind=0.9), 0.75, False, ["“what type of …” .90.0%. e is wrong so often.*reckons with 45%"]),
        (audited(wrong=0.15, kind=0.9), 0.0, False, []),
        (audited(wrong=0.15, pairs=None), 0.0, True, ["No pair.*smooth_labels has no effect"]),
        (audited(wrong=None, pairs=None), 0.0, True, ["No pair.*smooth_labels has no effect"]),
        (audited(wrong=0.15, pairs=0.8), 0.0, True, ["80.0% are the wrong way round.*smoothing of 0.45"]),
        (audited(wrong=0.15, pairs=0.8), 0.0, False, []),
        (audited(wrong=0.9, pairs=0.8), 0.75, True, ["no better than chance", "the wrong way round"]),
    ],
)
def test_a_run_is_told_of_errors_that_cannot_be_reckoned_with(
    found: ExpertAudit, min_confidence: float, smooth_labels: bool, told: list[str]
) -> None:
    warnings = audit_warnings(found, options=PairOptions(min_confidence=min_confidence), smooth_labels=smooth_labels)
    assert len(warnings) == len(told)
    assert all(re.search(pattern, warning) for pattern, warning in zip(told, warnings, strict=True))


def test_an_audit_of_nothing_disarms_no_confidence(tmp_path: Path) -> None:
    label = sample("Is it a cyst?", "yes", "x.png")
    file = tmp_path / "validation.jsonl"
    file.write_text(to_jsonl([label]))
    given = answers_of(label.question, ("yes", "no"), image=label.image)
    answers = write_answers(tmp_path / "answers", [given])
    judgments = write_judgments(tmp_path / "judge", [judgment_on(given, None)])
    audit = partial(audit_expert, answers=answers, judgments=judgments, labels=file)
    confident = PairOptions(min_confidence=0.75)
    with pytest.raises(StllavaError, match=r"no verdict on an answer that is known.*min_confidence, 0.75, has no rate"):
        audit(confident, to=tmp_path / "audit")
    # With a rate of errors, or without the need for one, the same audit goes on.
    assert audit(confident.model_copy(update={"expert_error": 0.1}), to=tmp_path / "audit").wrong is None
    assert audit(PairOptions(), to=tmp_path / "plain").wrong is None


def test_a_kind_of_question_about_which_the_expert_errs_more_needs_more_votes() -> None:
    answers = answers_of("What type of tumour is it?", ("glioma",) * 5 + ("cyst",) * 3)
    verdict = judged(answers, *(1.0,) * 5, *(0.0,) * 3)
    assert may_be_chosen(answers, verdict, options=SURE)[0]
    wrong = Rate(value=0.1, low=0, high=1, n=400)
    kind = AuditedKind(opening="what type of", wrong=Rate(value=0.9, low=0.5, high=1, n=50))
    like = AuditedKind(opening="what is it?", wrong=Rate(value=0.3, low=0.05, high=0.5, n=30))
    options = with_errors(PairOptions(min_confidence=0.8), an_audit(wrong, kinds=(kind, like)))
    assert (options.expert_error, options.expert_errors) == (41 / 402, {"what type of": 0.45})
    assert not any(may_be_chosen(answers, verdict, options=options))
    other = answers.model_copy(update={"question": "What is it?"})
    assert may_be_chosen(other, verdict, options=options)[0]


def test_errors_that_are_given_or_that_do_not_matter_are_left_as_they_are() -> None:
    wrong = Rate(value=0.1, low=0, high=1, n=400)
    for options in (PairOptions(), PairOptions(min_confidence=0.8, expert_error=0.2)):
        assert with_errors(options, an_audit(wrong)) == options
    assert with_errors(PairOptions(min_confidence=0.8), an_audit(None)).expert_error == 0


def test_the_audit_of_a_simulated_expert_finds_the_errors_it_was_given(tmp_path: Path) -> None:
    labels = [sample("Is it a cyst?", "yes" if number % 2 else "no", f"{number}.png") for number in range(400)]
    file = tmp_path / "validation.jsonl"
    file.write_text(to_jsonl(labels))
    answers = write_answers(
        tmp_path / "answers", [answers_of(row.question, ("yes", "no", "yes"), image=row.image) for row in labels]
    )
    options = JudgeOptions.model_validate({"expert": "simulated", "simulated": {"of": "reference", "wrong": 0.15}})
    judge(options, answers=answers, truth=file, to=tmp_path / "judge")
    to = tmp_path / "audit"
    found = audit_expert(PairOptions(), answers=answers, judgments=tmp_path / "judge", labels=file, to=to)
    assert found.wrong is not None
    assert found.wrong.value == pytest.approx(0.15, abs=3 * (0.15 * 0.85 / found.wrong.n) ** 0.5)
    assert audit_expert(PairOptions(), answers=answers, judgments=tmp_path / "judge", labels=file, to=to) == found


def test_the_last_training_leaves_out_what_is_not_sure(tmp_path: Path) -> None:
    given = [
        answers_of("What is it?", ("glioma",) * 7 + ("cyst",), image="a.png"),
        answers_of("What is it?", ("cyst",) * 6 + ("glioma",) * 2, image="b.png"),
    ]
    folder = write_answers(tmp_path / "answers", given)
    stage = Stage("judge", tmp_path / "judge", JudgeOptions(), inputs={}, existing="resume")
    stage.write_records("judgments", [judged(given[0], *(0.0,) * 7, 1.0), judged(given[1], *(1.0,) * 6, 0.0, 0.0)])
    stage.finish(counts_in=2, counts_out=2)
    labels = tmp_path / "conversations.jsonl"
    labels.write_text(
        '{"id": "x", "images": ["x.png"], "messages": [{"role": "user", "content": "?"}, '
        '{"role": "assistant", "content": "yes"}]}\n'
    )
    made = {}
    for name, options in (("all", PairOptions(balance=False)), ("sure", SURE.model_copy(update={"balance": False}))):
        rounds = [(folder, tmp_path / "judge")]
        made[name] = final_data(options, conversations=labels, rounds=rounds, to=tmp_path / name)
    assert (made["all"].right, made["sure"].right) == (2, 1)
    assert made["sure"].dropped["answer not sure enough"] == 1
    assert "answer not sure enough" not in made["all"].dropped


def test_an_audit_asks_who_can_tell() -> None:
    for expert in ("oracle", "itself"):
        with pytest.raises(ValueError, match="can judge answers about labelled images"):
            JudgeOptions.model_validate({"expert": expert, "audit": 10})
    with pytest.raises(ValueError, match="an audit that finds"):
        JudgeOptions.model_validate({"expert": "reference", "smooth_labels": True})


@pytest.mark.parametrize("loss", get_args(DpoOptions.model_fields["loss"].annotation))
def test_labels_are_smoothed_with_every_loss_that_takes_a_smoothing_and_refused_with_the_others(loss: str) -> None:
    values: dict[str, JsonValue] = {
        "name": "x",
        "data": {"kind": "phantom"},
        "judge": {"expert": "chat", "audit": 10, "smooth_labels": True},
        "pair": {"pairs": "group" if loss == "group" else "extremes"},
    }
    try:
        DpoOptions.model_validate({"loss": loss, "label_smoothing": 0.1})
    except ValidationError:
        with pytest.raises(ValidationError, match=f"judge.smooth_labels false with dpo.loss {loss}"):
            RunOptions.model_validate(values | {"dpo": {"loss": loss}})
    else:
        RunOptions.model_validate(values | {"dpo": {"loss": loss}})
        with pytest.raises(ValidationError, match=r"dpo.label_smoothing 0 with judge.smooth_labels"):
            RunOptions.model_validate(values | {"dpo": {"loss": loss, "label_smoothing": 0.1}})


@pytest.mark.parametrize("key", ["What type of", "what type of tumour", "what  type of", "", " what"])
def test_a_kind_of_question_is_its_first_words_in_small_letters(key: str) -> None:
    with pytest.raises(ValidationError, match="first three words of questions, in small letters"):
        PairOptions(min_confidence=0.75, expert_error=0.1, expert_errors={key: 0.3})


def test_what_min_confidence_alone_takes_is_refused_without_it() -> None:
    with pytest.raises(ValidationError, match="min_confidence above 0 with pool_paraphrases"):
        PairOptions(pool_paraphrases=False)
