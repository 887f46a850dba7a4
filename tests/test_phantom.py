"""Phantoms: what is drawn is what is true, and what is asked is understood and answered."""

import re
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from stllava.data.phantom.answer_parser import FIELDS, HEARD, SLOTS, meanings, understand
from stllava.data.phantom.draw import PLACES, Truth, draw, make_truth
from stllava.data.phantom.language import answer, ask, caption, conversations, samples
from stllava.data.phantom.questions import TEMPLATES, Query, normal, plural, word
from stllava.data.phantom.truth import COMBINATIONS, COUNTED, DARK, FINDINGS, LEVELS, SIDES, SIZES, Finding, Modality, Region
from stllava.data.prepare import prepare
from stllava.data.sources import PhantomData
from stllava.records import Conversation, Image, Sample
from stllava.store import read_jsonl

SOME = PhantomData(labelled=6, unlabelled=5, validation=4, test=3, size=64)
ASKED = {name: template for name, template in TEMPLATES.items() if template.wordings}
KINDS = [(region, modality, finding) for region, modality in COMBINATIONS for finding in FINDINGS[region]]
truths = st.builds(
    make_truth, st.integers(0, 3), st.integers(0, 10_000), st.sampled_from(["labelled", "unlabelled", "validation", "test"])
)


def without(truth: Truth) -> Truth:
    """The same image with nothing abnormal in it."""
    return truth.model_copy(update={"finding": "none", "side": None, "level": None, "size": None, "count": 0})


def variants(region: Region, modality: Modality, finding: Finding) -> list[Truth]:
    """Every side, level, size and count that this finding may have."""
    levels = ("lower",) if finding == "effusion" else LEVELS
    made = []
    for number, (side, level, size, count) in enumerate(product(SIDES, levels, SIZES, (1, 2, 3))):
        if count == 1 or (finding in COUNTED and size == "small"):
            where = {"side": side, "level": level, "size": size, "count": count}
            about = {"id": f"{number}", "path": f"{number}.png", "region": region, "modality": modality, "finding": finding}
            made.append(Truth.model_validate(about | where))
    return made


def change(truth: Truth, *, at: int = 128) -> npt.NDArray[np.float64]:
    """By how much the finding changes each pixel, in grey values, after scaling the image to `at` pixels."""
    pair = [Pillow.fromarray(draw(each, seed=1)).resize((at, at), Pillow.Resampling.BOX) for each in (truth, without(truth))]
    changed: npt.NDArray[np.float64] = np.asarray(pair[0], float) - np.asarray(pair[1], float)
    return changed


@settings(max_examples=25)
@given(truth=truths)
def test_the_same_truth_is_always_drawn_the_same_way(truth: Truth) -> None:
    pixels = draw(truth, seed=3)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (128, 128)
    assert np.array_equal(pixels, draw(truth, seed=3))
    assert not np.array_equal(pixels, draw(truth, seed=4))


def test_a_truth_does_not_depend_on_how_many_are_made() -> None:
    assert [make_truth(5, index, "test") for index in range(80)][71] == make_truth(5, 71, "test")
    assert make_truth(5, 3, "test") != make_truth(6, 3, "test")


def test_every_combination_and_finding_is_met_and_a_fifth_is_normal() -> None:
    made = [make_truth(0, index, "labelled") for index in range(100)]
    assert {(truth.region, truth.modality) for truth in made} == set(COMBINATIONS)
    assert {(truth.region, truth.modality, truth.finding) for truth in made if truth.finding != "none"} == set(KINDS)
    assert sum(truth.finding == "none" for truth in made) == 20


@pytest.mark.parametrize(("region", "modality", "finding"), KINDS, ids=[" ".join(kind) for kind in KINDS])
def test_a_finding_is_drawn_on_its_side_at_its_level_and_seen_at_64_pixels(
    region: Region, modality: Modality, finding: Finding
) -> None:
    _, middle, step = PLACES[region, modality]
    rows, columns = (np.mgrid[0:64, 0:64] + 0.5) / 32 - 1
    for truth in variants(region, modality, finding):
        changed = change(truth, at=64)
        strong = np.abs(changed) > 20
        assert strong.sum() >= 22 * truth.count
        assert (changed[strong].mean() < 0) == (finding in DARK)
        weight = np.abs(changed) * strong
        across, down = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        assert ("left" if across > 0 else "right") == truth.side
        assert (weight * ((columns > 0) == (truth.side == "right"))).sum() < 0.15 * weight.sum()
        assert LEVELS[int(np.clip(np.floor((down - middle) / step + 0.5), -1, 1)) + 1] == truth.level


@pytest.mark.parametrize(("region", "modality", "finding"), KINDS, ids=[" ".join(kind) for kind in KINDS])
def test_a_large_finding_covers_more_than_a_small_one(region: Region, modality: Modality, finding: Finding) -> None:
    single = [truth for truth in variants(region, modality, finding) if truth.count == 1]
    area = {size: np.mean([(np.abs(change(t)) > 20).sum() for t in single if t.size == size]) for size in SIZES}
    assert area["large"] > 1.4 * area["small"]


def test_the_data_set_is_whole_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(SOME, seed=7, to=tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert all(
        (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
        for path in files
        if path.name != "manifest.json"
    )
    pictures = [path for path in files if path.suffix == ".png"]
    assert Counter(path.parts[1] for path in pictures) == {"labelled": 6, "unlabelled": 5, "validation": 4, "test": 3}
    assert len({(tmp_path / "one" / path).read_bytes() for path in pictures}) == len(pictures)
    home = tmp_path / "one"
    talks, images = read_jsonl(home / "conversations.jsonl", Conversation), read_jsonl(home / "images.jsonl", Image)
    assert Counter(path for talk in talks for path in talk.images) == {f"labelled/{index:05}.png": 18 for index in range(6)}
    assert [image.path for image in images] == [truth.path for truth in read_jsonl(home / "truths.jsonl", Truth)]
    tests = read_jsonl(home / "phantom.jsonl", Sample)
    assert len(tests) == 3 * 7
    named = {path for talk in talks for path in talk.images} | {image.path for image in images}
    named |= {sample.image for sample in [*tests, *read_jsonl(home / "validation.jsonl", Sample)]}
    assert {f"images/{path}" for path in named} == {path.as_posix() for path in pictures}


def test_every_wording_of_every_template_is_understood_with_every_word_in_its_slots() -> None:
    assert len(ASKED) == 19
    assert set(HEARD) == set(TEMPLATES)
    for name, template in ASKED.items():
        slots = re.findall(r"\{(\w+)\}", template.wordings[0])
        for words in product(*(SLOTS[slot].values() for slot in slots)):
            query = Query(name, **{FIELDS.get(slot, slot): value for slot, value in zip(slots, words, strict=True)})
            for wording in template.wordings:
                question = word(query, wording)
                assert meanings(question) == {query}, question
                assert understand(f"  {question.upper().replace(' ', '  ').rstrip('?')} !") == query


@settings(max_examples=150)
@given(truth=truths, number=st.integers(0, 1000))
def test_every_question_asked_is_understood_and_answered_by_the_truth(truth: Truth, number: int) -> None:
    turns = [(sample.question, sample.targets[0]) for sample in samples(truth, seed=number, split="test")]
    assert len(turns) == 7
    for talk in conversations(truth, seed=number):
        texts = [message.content for message in talk.messages]
        turns += list(zip(texts[::2], texts[1::2], strict=True))[1 if len(texts) > 2 else 0 :]
    for question, right in turns:
        query = understand(question)
        assert query is not None, question
        assert answer(query, truth)[0] == right, question
        assert question.endswith("?")
        assert question == question.lower()
        assert right == normal(right)


@settings(max_examples=40)
@given(truth=truths)
def test_a_question_about_what_is_not_there_is_answered_so(truth: Truth) -> None:
    for name, template in TEMPLATES.items():
        if template.presupposes:
            absent = next(finding for findings in FINDINGS.values() for finding in findings if finding != truth.finding)
            assert answer(Query(name, finding=absent), truth) == (f"there is no {absent}",)
            if truth.finding == "none":
                assert answer(Query(name, finding="abnormality"), truth) == ("no abnormality",)


def test_closed_questions_are_answered_yes_about_as_often_as_no() -> None:
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: Counter[str] = Counter()
    for index in range(700):
        for sample in samples(make_truth(2, index, "test"), seed=2, split="test"):
            query = understand(sample.question)
            assert query is not None
            kinds[sample.kind] += 1
            if sample.kind == "closed":
                tallies[query.template][sample.targets[0]] += 1
    assert set(tallies) == {name for name, template in ASKED.items() if template.closed}
    assert all(0.38 < tally["yes"] / tally.total() < 0.62 for tally in tallies.values()), tallies
    everything = sum(tallies.values(), Counter[str]())
    assert 0.47 < everything["yes"] / everything.total() < 0.53
    assert 0.5 < kinds["open"] / kinds.total() < 0.6


@settings(max_examples=25)
@given(truth=truths)
def test_conversations_begin_with_the_caption_and_ask_nothing_twice(truth: Truth) -> None:
    talks = conversations(truth, seed=1)
    discussions = [talk for talk in talks if len(talk.messages) > 2]
    single = [talk for talk in talks if len(talk.messages) == 2]
    for discussed in discussions:
        assert discussed.messages[1].content == caption(truth)
        asked = [message.content for message in discussed.messages if message.role == "user"]
        assert len(asked) == len(set(asked)) == 3
    assert len({talk.messages[0].content for talk in single}) == len(single) == 12
    assert 1 < len(discussions) <= 6
    assert len({talk.id for talk in talks}) == len(talks)


def test_captions_read_like_a_report() -> None:
    truth = variants("chest", "ct", "nodule")[0]
    put = {"side": "right", "level": "upper", "size": "small"}
    assert caption(truth.model_copy(update=put | {"count": 1})) == "chest ct with a small nodule in the right upper lung."
    assert caption(truth.model_copy(update=put | {"count": 2})) == "chest ct with two small nodules in the right upper lung."
    assert caption(without(truth)) == "normal chest ct."


MEANT = [
    (Query("side", "mass"), "which side is the mass? what side is the mass on? on what side is the mass located?"),
    (Query("side", "mass"), "is the mass on the left or right side? which side is mass? which side are the masses on?"),
    (Query("level", "cyst"), "what level is the cyst? which level is the cyst located? what level is the cyst at?"),
    (Query("level", "cyst"), "how high is the cyst located? what is the level of the cyst?"),
    (Query("where", "mass"), "where is the mass located? where are the masses? where can the mass be seen?"),
    (Query("where", "abnormality"), "where is the lesion? what is the location of the finding?"),
    (Query("size", "cyst"), "how big is the cyst? what is the size of the cyst? is the cyst small or large?"),
    (Query("is size", "mass", size="large"), "is it a large mass? does the mass look large? are the masses big?"),
    (Query("what"), "what is the finding? what is abnormal? which abnormality is seen? what is abnormal in this image?"),
    (Query("report"), "what is the full finding? what is the finding and where is it? how would you describe the finding?"),
    (Query("presence", "mass"), "are there any masses? is there an masses? can a mass be seen? is a mass visible?"),
    (Query("presence", "tumor"), "is there a tumour? do you see any tumors? does this scan show the tumor?"),
    (Query("presence", "nodule", size="small"), "is there a small nodule? are there any small nodules?"),
    (Query("presence", "cyst", count="one"), "is there one cyst? is there only one cyst? is there a single cyst?"),
    (Query("presence", "cyst", size="small", count="two"), "are there two small cysts?"),
    (
        Query("place", "mass", side="left"),
        "is there a mass on the left side? is a mass seen on the left? is there a left mass?",
    ),
    (Query("place", "mass", side="left", region="chest"), "is there a mass in the left lung? do the left lung show a mass?"),
    (Query("place", "abnormality", side="left", region="chest"), "is anything abnormal on the left side of the chest?"),
    (Query("place", "cyst", "left", "upper", region="abdomen"), "is a cyst present in the upper left abdomen?"),
    (Query("is side", "mass", side="left"), "is the mass located on the left? are the masses on the left side?"),
    (Query("is level", "mass", level="upper"), "is the mass at the upper level? is the mass located in the upper third?"),
    (
        Query("is place", "mass", side="left", region="chest"),
        "is the mass in the left lung? is the mass found in the left lung?",
    ),
    (Query("what at", side="left", region="chest"), "what is seen in the left lung? what abnormality is in the left lung?"),
    (Query("is what", "mass"), "is the abnormality a mass? is the finding mass?"),
    (Query("count", "nodule"), "how many nodules? how many nodule is there? what is the number of nodules in the image?"),
    (Query("several", "cyst"), "are there multiple cysts? are there more than one cysts?"),
    (Query("tone", "edema"), "is the edema darker or brighter than its surroundings? is the edema bright or dark?"),
    (Query("is tone", "edema", tone="darker"), "does the edema look darker? is the edema darker than its surroundings?"),
    (Query("normal"), "is this a normal image? is the scan normal? is this normal? does the image look normal?"),
    (Query("normal", region="chest"), "is the chest normal? are the lungs normal?"),
    (Query("any"), "is the image abnormal? are there abnormalities? is there any finding? is there a lesion?"),
    (Query("is region", region="chest"), "is this a chest image? is this the chest? does the image show the chest?"),
    (Query("is modality", modality="mr"), "is this an MRI? is it an mr scan? was this image taken with mr?"),
    (Query("is modality", modality="ct", region="head"), "is this a head ct? is this a ct of the head?"),
    (Query("modality"), "which modality is this? what type of image is this? how was this image taken?"),
    (Query("region"), "which region is imaged? what part of the body is this? which body part is shown?"),
    (Query("system"), "what organ system is this? which body system is seen?"),
    (Query("describe"), "please describe the image? what does the scan show? summarize this image?"),
]
MEANINGLESS = """
is the? what level is the how large? how many multiple nodules what is the cyst? what is the cyst? is the mass?
does everything look darker than its surroundings? is the mass normal? where is the? where is the left? is it?
is there a left? which is the mass? is the mass the edema? is there a nodule or a mass? how many are there? how large?
what size? is there? is there a? what is this? what is shown? is this left? is there no mass? is the small nodule?
which lung is the nodule in? how old is the patient? which side is the left? are there how many nodules? is this a mass?
is the mass on the left on the right? is there a small large mass? is there a mass in the left right lung? why?
where where is the mass? does the image show? where is the dog? is there a nodule in the?
is there a nodule in the dog? is there a ct? does the mass large? is the mass small large? is the mass on the lung side?
"""


def _questions(text: str) -> list[str]:
    return [f"{question.strip()}?" for question in text.split("?") if question.strip()]


def test_a_question_in_other_words_has_one_meaning() -> None:
    told = [(question, query) for query, text in MEANT for question in _questions(text)]
    assert len(told) >= 90
    assert {query.template for _, query in told} == set(TEMPLATES)
    for question, query in told:
        assert meanings(question) == {query}, question
        assert understand(question) == query


@pytest.mark.parametrize("question", ["", "?", *_questions(MEANINGLESS)])
def test_what_is_none_of_our_questions_is_not_understood(question: str) -> None:
    assert meanings(question) == set()
    assert understand(question) is None


@settings(max_examples=300)
@given(words=st.lists(st.sampled_from(sorted({word for _, text in MEANT for word in normal(text).split()})), max_size=9))
def test_no_text_has_two_meanings(words: list[str]) -> None:
    assert len(meanings(" ".join(words))) < 2


def test_a_place_in_another_organ_cannot_be_decided_and_holds_nothing() -> None:
    truth = variants("chest", "ct", "nodule")[0]
    brain = {"side": "left", "level": "upper", "region": "head"}
    assert answer(Query("what at", **brain), truth) == ()
    assert answer(Query("normal", **brain), truth) == ()
    assert answer(Query("place", finding="nodule", **brain), truth) == ("no",)


def test_a_question_of_every_template_can_be_asked_about_any_image() -> None:
    for index in range(25):
        truth = make_truth(1, index, "labelled")
        assert all(answer(ask(name, truth, np.random.default_rng(index)), truth) for name in ASKED)
    assert plural("mass") == "masses"
