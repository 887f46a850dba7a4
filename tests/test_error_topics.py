"""What an expert errs about more than elsewhere: found by an audit, reckoned with where answers are chosen."""

import random
from collections import Counter
from functools import partial

import pytest
from pydantic import ValidationError

from helpers.judging import answers_of, judgment_on
from stllava.config import PairOptions
from stllava.errors import StllavaError
from stllava.experts.confidence import (
    ReckonedJudgment,
    errors_about,
    paraphrases_among,
    posterior,
    reckon,
    refuse_unknown_errors,
)
from stllava.experts.error_topics import MIN_IMAGES, KnownVerdict, find_error_topics, words_named, words_of
from stllava.experts.judged_answers import JudgedAnswers
from stllava.records import ExpertAudit
from stllava.stages.calibrate import audit_of, audit_warnings, error_of, with_errors

TUMOURS = ("glioma", "meningioma", "pituitary tumour")
MIXED = {"glioma": "meningioma", "meningioma": "glioma"}
WORDINGS = ("What type of tumour is seen?", "How is it classified?", "What does the image show?")
CONFIDENT = PairOptions(min_confidence=0.75, min_chosen_score=1.0, margin=0.5)
OTHERS = {
    "Which side is it on?": ("left", "right"),
    "Which plane is shown?": ("axial", "coronal", "sagittal"),
    "What contrast was used?": ("gadolinium", "iodine"),
    "Is there oedema?": ("yes", "no"),
    "How was this taken?": ("MRI", "CT"),
    "Are there metastases?": ("yes", "no"),
}
Known = tuple[list[JudgedAnswers], dict[str, str], list[tuple[float, ...]]]


def mixed_up(*, images: int, wrong: float, seed: int) -> Known:
    """Answers about tumours and other things, by an expert that takes gliomas for meningiomas; the right ones; true scores."""
    draw = random.Random(seed)
    judged, truth, scores = list[JudgedAnswers](), dict[str, str](), list[tuple[float, ...]]()
    for number in range(images):
        tumour = draw.choice(TUMOURS)
        believed = MIXED.get(tumour, tumour)
        facts = {question: (said := draw.choice(rest), said, rest) for question, rest in OTHERS.items()}
        facts |= dict.fromkeys(WORDINGS, (tumour, believed, TUMOURS))
        right, seen = ("yes" if name == "glioma" else "no" for name in (tumour, believed))
        facts["Is it a glioma?"] = (right, seen, ("yes", "no"))
        for question, (right, seen, rest) in facts.items():
            given = tuple(draw.choice((right, *rest)) for _ in range(8))
            called = {text: (text == seen) != (draw.random() < wrong) for text in rest}
            answers = answers_of(question, given, image=f"{seed}-{number}.png")
            judged.append((answers, judgment_on(answers, [float(called[text]) for text in given])))
            truth[answers.id] = right
            scores.append(tuple(float(text == right) for text in given))
    return judged, truth, scores


def audited(known: Known, *, options: PairOptions = CONFIDENT) -> ExpertAudit:
    judged, _, scores = known
    rows = [(answers, judgment, right) for (answers, judgment), right in zip(judged, scores, strict=True)]
    return audit_of(rows, options=options, expert="e")


def test_an_audit_names_the_classes_that_an_expert_mixes_up_and_nothing_else() -> None:
    for seed in range(5):
        found = audited(mixed_up(images=60, wrong=0.05, seed=seed))
        assert {topic.word for topic in found.topics} == {"glioma", "meningioma"}
        assert found.elsewhere is not None
        assert found.elsewhere.low < 0.05 < found.elsewhere.high
        assert found.wrong is not None
        assert all(topic.wrong.low > found.wrong.value for topic in found.topics)
        assert "errs more about “" in found.sentences[-1]
        options = with_errors(CONFIDENT, found)
        assert options.expert_error == error_of(found.wrong) > 0.15
        for misses, false_alarms in options.expert_errors_about.values():
            assert misses > 0.7
            assert false_alarms > 0.2


@pytest.mark.parametrize("by_image", [False, True])
def test_an_expert_that_errs_about_nothing_in_particular_has_no_topic(by_image: bool) -> None:
    """Also not where a word is in nearly all verdicts, or where all verdicts on an image are wrong together."""
    named = 0
    for seed in range(200):
        draw = random.Random(seed)
        verdicts = []
        for image in range(60):
            misread = draw.random() < 0.15
            about = frozenset(draw.sample(WORDS, 3))
            for _ in range(6):
                wrong = misread if by_image else draw.random() < 0.15
                usual = {word for word, share in (("image", 0.97), ("seen", 0.9), ("is", 0.5)) if draw.random() < share}
                words = about | usual | {draw.choice(WORDS)}
                verdicts.append(KnownVerdict(words, True, not wrong, "", f"{image}.png"))
        named += bool(find_error_topics(verdicts).topics)
    assert named <= 6


def test_a_word_in_all_verdicts_is_no_topic() -> None:
    verdicts = [KnownVerdict(frozenset({"lesion"}), True, False, "", f"{number}.png") for number in range(100)]
    assert find_error_topics(verdicts) == ({}, verdicts)


WORDS = [f"word{number}" for number in range(25)]


def test_a_word_in_few_images_is_no_topic_and_every_verdict_is_kept_once() -> None:
    plain = [KnownVerdict(frozenset({"side"}), True, True, "", f"{number}.png") for number in range(200)]
    for images, topics in ((MIN_IMAGES - 1, []), (MIN_IMAGES + 5, ["cyst"])):
        wrong = [KnownVerdict(frozenset({"cyst", "side"}), True, False, "", f"x{number}.png") for number in range(images)]
        found = find_error_topics([*plain, *wrong])
        assert list(found.topics) == topics
        assert Counter([*found.others, *(row for rows in found.topics.values() for row in rows)]) == Counter([*plain, *wrong])


def test_no_verdicts_have_no_topics() -> None:
    assert find_error_topics([]) == ({}, [])


def test_a_topic_is_named_by_question_or_answer_in_any_spelling_and_goes_before_the_opening() -> None:
    about = {"glioma": (0.6, 0.4), "tumors": (0.3, 0.2)}
    options = PairOptions(
        min_confidence=0.75, expert_error=0.1, expert_errors={"what is seen?": 0.05}, expert_errors_about=about
    )
    told = partial(errors_about, options=options)
    assert told("What is seen?", "a cyst") == (0.05, 0.05)
    assert told("Where is it?", "left") == (0.1, 0.1)
    assert told("Is this a Tumour?", "no") == (0.3, 0.2)
    assert told("What is seen?", "Gliomas.") == (0.6, 0.4)
    assert told("Is this tumour a glioma?", "yes") == (0.6, 0.4)
    turned = options.model_copy(update={"expert_errors_about": dict(reversed(about.items()))})
    assert errors_about("What kind of tumour?", "glioma", turned) == (0.3, 0.2)


@pytest.mark.parametrize("text", ["transverse process", "Tumours", "the ten metastases", "X-ray", "ultrasonography"])
def test_a_word_that_an_audit_finds_is_the_same_word_where_it_is_reckoned_with(text: str) -> None:
    found = words_named(text)
    assert found
    for word in found:
        assert words_named(word) == {word}


def test_yes_no_and_how_a_question_begins_name_nothing() -> None:
    assert words_of("Is there a glioma?", "yes") == {"glioma"}
    assert words_of("What is the finding?", "no") == {"finding"}
    assert words_of("What?", "Glioma") == {"what", "glioma"}


def test_an_answer_names_in_an_audit_what_it_names_where_it_is_reckoned_with() -> None:
    """ "Yes, it is a glioma" says yes, and is pooled with every other yes."""
    rows = []
    for number in range(60):
        answers = answers_of("Can it do harm?", ("Yes, it is a glioma.", "No, it is a cyst."), image=f"{number}.png")
        rows.append((answers, judgment_on(answers, [0.0, 1.0]), (1.0, 0.0)))
        other = answers_of("On which side?", ("left", "right"), image=f"{number}.png")
        rows.append((other, judgment_on(other, [1.0, 0.0]), (1.0, 0.0)))
    found = audit_of(rows, options=CONFIDENT, expert="e")
    assert {topic.word for topic in found.topics} == {"harm"}
    options = with_errors(CONFIDENT, found)
    assert errors_about("can it do harm?", "yes", options) > (0.9, 0.9)


def test_rates_that_a_user_gives_go_before_those_of_an_audit_in_any_spelling() -> None:
    found = audited(mixed_up(images=60, wrong=0.05, seed=0))
    given = CONFIDENT.model_copy(update={"expert_errors_about": {"Gliomas": (0.2, 0.1)}})
    options = with_errors(given, found)
    assert errors_about("What is seen?", "glioma", options) == (0.2, 0.1)
    assert errors_about("What is seen?", "meningioma", options) > (0.5, 0.2)


def wrong_among_chosen(known: Known, *, options: PairOptions) -> Counter[bool]:
    judged, truth, _ = known
    paraphrases = paraphrases_among(judged, options=options)
    counts = Counter[bool]()
    for answers, judgment in judged:
        reckoned = reckon(answers, judgment, options=options, paraphrases=paraphrases)
        for text, score, sure in zip(answers.final_answers, reckoned.judgment.scores or (), reckoned.sure, strict=True):
            if sure and score >= options.min_chosen_score:
                counts[text == truth[answers.id]] += 1
                break
    return counts


@pytest.mark.parametrize("pooled", [True, False])
def test_what_an_expert_mixes_up_is_hardly_chosen_and_the_rest_as_before(pooled: bool) -> None:
    options = CONFIDENT.model_copy(update={"pool_paraphrases": pooled})
    found = audited(mixed_up(images=60, wrong=0.05, seed=0), options=options)
    new = mixed_up(images=200, wrong=0.05, seed=1)
    reckoned = with_errors(options, found)
    alike = reckoned.model_copy(update={"expert_errors_about": {}, "expert_error": 0.12})
    without, counts = wrong_among_chosen(new, options=alike), wrong_among_chosen(new, options=reckoned)
    assert without[False] > 0.2 * without.total()
    assert counts[False] < 0.05 * counts.total()
    assert counts[True] > 0.95 * without[True]


def test_an_expert_that_is_wrong_more_often_than_right_is_not_turned_round() -> None:
    """Its no may speak for an answer, but what it called wrong in every wording is not chosen."""
    options = CONFIDENT.model_copy(update={"expert_error": 0.1, "expert_errors_about": {"glioma": (0.9, 0.5)}})
    rows: list[JudgedAnswers] = []
    for number in range(40):
        for question in WORDINGS:
            text = ("glioma", "cyst")[number % 2]
            answers = answers_of(question, (text,) * 7 + ("oedema",), image=f"{number}.png")
            rows.append((answers, judgment_on(answers, [float(text == "cyst")] * 7 + [0.0])))
    paraphrases = paraphrases_among(rows, options=options)
    assert paraphrases.reliability
    made: list[ReckonedJudgment] = [reckon(*row, options=options, paraphrases=paraphrases) for row in rows]
    assert made[0].judgment is rows[0][1]
    assert not made[0].is_overruled
    assert not any(made[0].judgment.scores or ())
    assert made[-1].sure[0]


def test_a_verdict_that_calls_right_what_it_mostly_calls_so_wrongly_speaks_against_the_answer() -> None:
    options = CONFIDENT.model_copy(update={"expert_error": 0.1, "expert_errors_about": {"glioma": (0.85, 0.4)}})
    answers = answers_of("What is it?", ("glioma",) * 7 + ("cyst",))
    called_right = judgment_on(answers, [1.0] * 7 + [0.0])
    assert posterior([7 / 9, 1 / 9], [0.15 / 0.4, 0.1 / 0.9])[0] < 0.75
    assert not any(reckon(answers, called_right, options=options).sure)
    plain = options.model_copy(update={"expert_errors_about": {}})
    assert reckon(answers, called_right, options=plain).sure[0]


def test_a_correction_that_names_what_an_expert_is_mostly_wrong_about_is_not_learned() -> None:
    options = CONFIDENT.model_copy(update={"expert_error": 0.1, "expert_errors_about": {"glioma": (0.7, 0.4)}})
    answers = answers_of("What is it?", ("cyst",) * 8)
    for correction, learned in (("a glioma", None), ("a meningioma", "a meningioma")):
        judgment = judgment_on(answers, [0.0] * 8).model_copy(update={"correction": correction})
        assert reckon(answers, judgment, options=options).judgment.correction == learned
        assert reckon(answers, judgment, options=PairOptions()).judgment is judgment


def test_a_run_is_told_of_what_an_expert_is_mostly_wrong_about() -> None:
    found = audited(mixed_up(images=60, wrong=0.05, seed=2), options=PairOptions())
    (warning,) = audit_warnings(found, options=CONFIDENT, smooth_labels=False)
    assert "glioma" in warning
    assert "say nothing or the contrary" in warning
    assert not audit_warnings(found, options=PairOptions(), smooth_labels=False)


def test_topics_need_a_confidence_and_a_word() -> None:
    about = {"?!": (0.3, 0.2)}
    with pytest.raises(ValidationError, match="min_confidence above 0, which alone takes expert_error"):
        PairOptions(expert_errors_about=about)
    with pytest.raises(StllavaError, match=r"'\?!', which is no word that counts"):
        refuse_unknown_errors(PairOptions(min_confidence=0.75, expert_error=0.1, expert_errors_about=about))
