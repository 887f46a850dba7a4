"""The robust metrics: words are words, and one thing may be written in many ways."""

import unicodedata
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.errors import StllavaError
from stllava.metrics.robust import (
    choice_accuracy,
    closed_accuracy,
    closed_verdict,
    is_yes_no,
    medical,
    medical_exact_match,
    normalise,
    open_exact_match,
    open_recall,
    token_f1,
)
from stllava.metrics.words import composed

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


SAME = [
    ("Left", "left"),
    ("left", "left-sided"),
    ("left", "on the left"),
    ("left", "Left side."),
    ("left", "on the left side"),
    ("left", "left hand side"),
    ("left", "left-hand side"),
    ("left", "lt"),
    ("right", "Right-sided"),
    ("right", "rt."),
    ("bilateral", "both sides"),
    ("bilateral", "both"),
    ("bilateral", "Bilaterally"),
    ("bilateral lungs", "both lungs"),
    ("x-ray", "X ray"),
    ("x-ray", "xray"),
    ("x-ray", "X-rays"),
    ("x-ray", "radiograph"),
    ("x-ray", "plain film"),
    ("x-ray", "roentgenogram"),
    ("chest x-ray", "Chest radiograph"),
    ("CT", "computed tomography"),
    ("CT", "Computerised tomography"),
    ("CT", "CAT scan"),
    ("CT", "ct scan"),
    ("MRI", "MR"),
    ("MRI", "magnetic resonance imaging"),
    ("MRI", "Magnetic Resonance"),
    ("ultrasound", "US"),
    ("ultrasound", "sonography"),
    ("PA", "posteroanterior"),
    ("PA", "posterior-anterior"),
    ("PA", "postero-anterior view"),
    ("AP", "antero-posterior"),
    ("AP", "anterior-posterior"),
    ("axial", "transverse plane"),
    ("axial", "Transverse"),
    ("axial", "axial plane"),
    ("coronal", "the coronal plane"),
    ("T1-weighted", "T1 weighted"),
    ("T1-weighted", "T1w"),
    ("two nodules", "2 nodule"),
    ("3 cm", "3cm"),
    ("3 cm", "30 mm"),
    ("3 cm", "3 centimetres"),
    ("1.5 cm", "15 mm"),
    (".5 cm", "5 mm"),
    ("2 litres", "2,000 ml"),
    ("5 cc", "5 mL"),
    ("haemorrhage", "hemorrhage"),
    ("tumours", "tumor"),
    ("oedema", "edema"),
    ("Oesophagus", "esophagus"),
    ("grey matter", "gray matter"),
    ("metastases", "metastasis"),
    ("masses", "a mass"),
    ("biopsies", "biopsy"),
    ("lungs", "the lung"),
    ("vertebrae", "vertebra"),
]
DIFFERENT = [
    ("left", "right"),
    ("left", "bilateral"),
    ("left lung", "right lung"),
    ("left", "left hand"),
    ("PA", "AP"),
    ("axial", "coronal"),
    ("transverse colon", "axial"),
    ("CT", "MRI"),
    ("T1-weighted", "T2-weighted"),
    ("3 cm", "3 mm"),
    ("0.5 cm", "5 cm"),
    ("3 x 4 cm", "3 x 40 mm"),
    ("hypertension", "hypotension"),
    ("10", "1"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_thing_written_in_many_ways_has_one_medical_form(one: str, other: str) -> None:
    assert medical(one) == medical(other)
    assert medical_exact_match(one, [other]) == 1


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_things_keep_different_medical_forms(one: str, other: str) -> None:
    assert medical(one) != medical(other)


@pytest.mark.parametrize(
    "word",
    ["pelvis", "axis", "pus", "mass", "diagnosis", "lens", "thrombus", "pancreas", "ascites", "diabetes", "gas", "uterus"],
)
def test_a_word_that_only_looks_like_a_plural_stays(word: str) -> None:
    assert medical(word) == word


@given(
    st.lists(
        st.sampled_from(["left", "right", "both", "x-ray", "CT", "sides", "film", "3", "cm", "mm", "and", "plane", "of"]),
        max_size=6,
    )
)
def test_the_medical_form_keeps_every_side_and_adds_none(words: list[str]) -> None:
    said, made = set(words), set(medical(" ".join(words)).split())
    for side, other in (("left", "right"), ("right", "left")):
        assert side not in made - said
        assert not (side in said and other not in said and "both" not in said) or side in made


CLOSED = [
    ("Yes, a nodule.", ["yes"], 1, ""),
    ("nodule", ["no"], None, "neither"),
    ("yes and no", ["no"], None, "both words"),
    ("no", ["yes"], 0, ""),
    ("no", ["yes", "No"], 1, ""),
    ("I am not sure", ["no"], None, "hedged"),
    ("", ["yes"], None, "empty"),
    ("", ["left"], None, "empty"),
    ("yes", [], 0, ""),
    ("There is no fracture.", ["No"], 1, ""),
    ("不是", ["不是"], 1, ""),
    ("没有", ["不是"], 1, ""),
    ("是的", ["没有"], 0, ""),
    ("不确定", ["是"], None, "hedged"),
    ("左肺", ["左肺"], 1, ""),
    ("右肺", ["左肺"], 0, ""),
    ("Left.", ["left"], 1, ""),
    ("on the left", ["left"], 1, ""),
    ("left, not right", ["left"], 1, ""),
    ("left, not right", ["right"], 0, ""),
    ("Not the left but the right", ["right"], 1, ""),
    ("Not the left but the right", ["left"], 0, ""),
    ("left rather than right", ["left"], 1, ""),
    ("It isn't on the left.", ["left"], 0, ""),
    ("left and right", ["left"], 0, ""),
    ("left and right", ["bilateral"], 1, ""),
    ("left or right", ["left"], 0, ""),
    ("It is on the left side of the chest.", ["Left"], 1, ""),
    ("The lesion is on the right.", ["left"], 0, ""),
    ("possibly left", ["left"], None, "hedged"),
    ("It cannot be determined.", ["left"], None, "hedged"),
    ("yes", ["left"], 0, ""),
    ("The image is a CT scan of the chest", ["CT"], 1, ""),
    ("This is a computed tomography scan.", ["CT"], 1, ""),
    ("CT, not MRI", ["CT"], 1, ""),
    ("CT or MRI", ["CT"], 0, ""),
    ("The image could be CT or MRI", ["CT"], None, "hedged"),
    ("MRI", ["CT"], 0, ""),
    ("Modality: CT", ["CT"], 1, ""),
    ("The modality is MRI, T2-weighted.", ["MRI"], 1, ""),
    ("A CT of the chest and abdomen", ["CT"], 1, ""),
    ("The image was acquired in the axial plane.", ["Axial"], 1, ""),
    ("axial and coronal", ["axial"], 0, ""),
    ("PA", ["AP"], 0, ""),
    ("liver, spleen, kidney", ["liver"], 0, ""),
    ("the liver and the spleen", ["liver"], 0, ""),
    ("The liver.", ["liver"], 1, ""),
    ("liverwort", ["liver"], 0, ""),
    ("two", ["2"], 1, ""),
    ("There are 2 nodules.", ["two"], 1, ""),
    ("There are 2 or 3 nodules.", ["2"], 0, ""),
    ("12", ["2"], 0, ""),
    ("There are 3 nodules in 2 lobes.", ["2"], 0, ""),
    ("30 mm", ["3 cm"], 1, ""),
    ("no contrast", ["no contrast"], 1, ""),
    ("no", ["no contrast"], 0, ""),
    ("It is a CT without contrast.", ["without contrast"], 1, ""),
    ("It is a CT without contrast.", ["contrast"], 0, ""),
    ("non-contrast", ["contrast"], 0, ""),
    ("abnormal", ["normal"], 0, ""),
    ("not normal", ["normal"], 0, ""),
    ("CT. It may show a cyst.", ["CT"], 1, ""),
    ("not sure", ["not sure"], 1, ""),
    (
        "The scan, seen from below, shows in its upper third near the hilum of the lung that is on the left a small mass",
        ["left"],
        0,
        "",
    ),
]


@pytest.mark.parametrize(("prediction", "targets", "value", "cause"), CLOSED)
def test_a_closed_answer_is_right_wrong_or_unread(prediction: str, targets: list[str], value: float | None, cause: str) -> None:
    assert closed_verdict(prediction, targets) == (value, cause)
    assert closed_accuracy(prediction, targets) == (value or 0)


ORGANS = ("lung", "liver", "left kidney", "Hepatitis B")
CHOICES = [
    ("B", ["liver"], ORGANS, 1, ""),
    ("b", ["liver"], ORGANS, 1, ""),
    ("B.", ["liver"], ORGANS, 1, ""),
    ("(b)", ["liver"], ORGANS, 1, ""),
    ("**B**", ["liver"], ORGANS, 1, ""),
    ("B) liver", ["liver"], ORGANS, 1, ""),
    ("B: liver", ["liver"], ORGANS, 1, ""),
    ("B - the liver", ["liver"], ORGANS, 1, ""),
    ("Answer: B", ["liver"], ORGANS, 1, ""),
    ("The answer is B) liver", ["liver"], ORGANS, 1, ""),
    ("The answer is B because it is large.", ["liver"], ORGANS, 1, ""),
    ("Option B", ["liver"], ORGANS, 1, ""),
    ("Option B liver", ["liver"], ORGANS, 1, ""),
    ("\\boxed{B}", ["liver"], ORGANS, 1, ""),
    ("A", ["liver"], ORGANS, 0, ""),
    ("A.", ["lung"], ORGANS, 1, ""),
    ("a liver", ["liver"], ORGANS, 1, ""),
    ("A liver", ["liver"], ORGANS, 1, ""),
    ("The Liver.", ["liver"], ORGANS, 1, ""),
    ("It is the liver.", ["liver"], ORGANS, 1, ""),
    ("livers", ["liver"], ORGANS, 1, ""),
    ("lung", ["liver"], ORGANS, 0, ""),
    ("Hepatitis B", ["Hepatitis B"], ORGANS, 1, ""),
    ("It is hepatitis B.", ["Hepatitis B"], ORGANS, 1, ""),
    ("D. Hepatitis B", ["Hepatitis B"], ORGANS, 1, ""),
    ("B, not C", ["liver"], ORGANS, 1, ""),
    ("Not A but B", ["liver"], ORGANS, 1, ""),
    ("the liver, not the lung", ["liver"], ORGANS, 1, ""),
    ("B. The liver lies below the lung.", ["liver"], ORGANS, 1, ""),
    ("the kidney on the right", ["left kidney"], ORGANS, None, "no option"),
    ("spleen", ["liver"], ORGANS, None, "no option"),
    ("A and B", ["liver"], ORGANS, None, "several options"),
    ("B or C", ["liver"], ORGANS, None, "several options"),
    ("A/B", ["liver"], ORGANS, None, "several options"),
    ("liver and lung", ["liver"], ORGANS, None, "several options"),
    ("A) liver", ["liver"], ORGANS, None, "letter and text disagree"),
    ("Maybe B", ["liver"], ORGANS, None, "hedged"),
    ("I cannot tell.", ["liver"], ORGANS, None, "hedged"),
    ("", ["liver"], ORGANS, None, "empty"),
    ("E", ["liver"], ORGANS, None, "no option"),
    ("left lung", ["left lung"], ("lung", "left lung"), 1, ""),
    ("It is the left lung.", ["left lung"], ("lung", "left lung"), 1, ""),
    ("It is a radiograph", ["X-ray"], ("X-ray", "CT"), 1, ""),
    ("There is no fracture.", ["No"], ("Yes", "No"), 1, ""),
    ("A", ["No"], ("Yes", "No"), 0, ""),
    ("Yes or no", ["No"], ("Yes", "No"), None, "several options"),
    ("maybe", ["maybe"], ("yes", "no", "maybe"), 1, ""),
    ("No lesion", ["No lesion"], ("No lesion", "Lesion"), 1, ""),
    ("There is no lesion.", ["No lesion"], ("No lesion", "Lesion"), 1, ""),
    ("None of the above.", ["None of the above"], ("CT", "None of the above"), 1, ""),
]


@pytest.mark.parametrize(("prediction", "targets", "choices", "value", "cause"), CHOICES)
def test_a_choice_is_read_by_letter_or_by_text(
    prediction: str, targets: list[str], choices: tuple[str, ...], value: float | None, cause: str
) -> None:
    assert choice_accuracy(prediction, targets, choices) == (value, cause)


@given(st.lists(st.sampled_from(["liver", "spleen", "lung", "heart", "left kidney"]), min_size=2, unique=True), st.data())
def test_letter_and_text_choose_the_same_option_wherever_it_stands(choices: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(choices) - 1))
    letter, text = "ABCDE"[place], choices[place]
    for said in (letter, f"({letter})", f"{letter}. {text}", f"The answer is {letter}", text, f"It is the {text}."):
        for target in choices:
            assert choice_accuracy(said, [target], choices) == (float(target == text), "")


def test_a_right_answer_that_is_no_option_is_named() -> None:
    with pytest.raises(StllavaError, match="'spleen' is not among the options; expected one of 'lung', 'liver'"):
        choice_accuracy("B", ["spleen"], ["lung", "liver"])


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
def test_a_text_is_composed_as_unicode_says(text: str) -> None:
    assert composed(text) == unicodedata.normalize("NFKC", text)


def test_a_pile_of_combining_marks_takes_no_longer_than_other_text() -> None:
    # Python's own normalisation sorts such a pile by insertion: half a minute for this one.
    began = thread_time()
    assert normalise("fracture" + "\u0301\u0316" * 50_000 + " mass") == "fracturé mass"
    assert thread_time() - began < 1


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
    for metric in (closed_accuracy, open_recall, open_exact_match, medical_exact_match, token_f1):
        assert metric(prediction, [*targets, more]) >= metric(prediction, targets)
