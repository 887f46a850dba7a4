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

from stllava.config import PhantomData
from stllava.data.phantom import PLACES, draw, generate, make_truth
from stllava.data.phantom_language import answer, ask, caption, conversations, samples, understand
from stllava.data.phantom_questions import FIELDS, SLOTS, TEMPLATES, Query, normal, plural, word
from stllava.data.phantom_truth import (
    COMBINATIONS,
    COUNTED,
    DARK,
    FINDINGS,
    LEVELS,
    ORGANS,
    SIDES,
    SIZES,
    Finding,
    Modality,
    Region,
    Truth,
    random,
)
from stllava.records import Conversation, Image, Sample
from stllava.store import read_jsonl

SOME = PhantomData(labelled=6, unlabelled=5, validation=4, test=3, size=64)
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


@settings(max_examples=25, deadline=None)
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
    made = [make_truth(0, index, "labelled") for index in range(105)]
    assert {(truth.region, truth.modality) for truth in made} == set(COMBINATIONS)
    assert {(truth.region, truth.modality, truth.finding) for truth in made if truth.finding != "none"} == set(KINDS)
    assert sum(truth.finding == "none" for truth in made) == 21


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
        assert (weight * ((columns > 0.1) == (truth.side == "right"))).sum() < 0.15 * weight.sum()
        assert LEVELS[int(np.clip(np.floor((down - middle) / step + 0.5), -1, 1)) + 1] == truth.level


@pytest.mark.parametrize(("region", "modality", "finding"), KINDS, ids=[" ".join(kind) for kind in KINDS])
def test_a_large_finding_covers_more_than_a_small_one(region: Region, modality: Modality, finding: Finding) -> None:
    single = [truth for truth in variants(region, modality, finding) if truth.count == 1]
    area = {size: np.mean([(np.abs(change(t)) > 20).sum() for t in single if t.size == size]) for size in SIZES}
    assert area["large"] > 1.4 * area["small"]


def test_the_data_set_is_whole_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate(SOME, seed=7, to=tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)
    pictures = [path for path in files if path.suffix == ".png"]
    assert Counter(path.parts[1] for path in pictures) == {"labelled": 6, "unlabelled": 5, "validation": 4, "test": 3}
    assert len({(tmp_path / "one" / path).read_bytes() for path in pictures}) == len(pictures)
    home = tmp_path / "one"
    talks, images = read_jsonl(home / "conversations.jsonl", Conversation), read_jsonl(home / "images.jsonl", Image)
    assert len(talks) == 6 * 8
    assert [image.path for image in images] == [truth.path for truth in read_jsonl(home / "truths.jsonl", Truth)]
    tests = read_jsonl(home / "phantom.jsonl", Sample)
    assert len(tests) == 3 * 7
    named = {path for talk in talks for path in talk.images} | {image.path for image in images}
    named |= {sample.image for sample in [*tests, *read_jsonl(home / "validation.jsonl", Sample)]}
    assert {f"images/{path}" for path in named} == {path.as_posix() for path in pictures}


def test_every_wording_of_every_template_is_understood_with_every_word_in_its_slots() -> None:
    for name, template in TEMPLATES.items():
        slots = re.findall(r"\{(\w+)\}", template.wordings[0])
        for words in product(*(SLOTS[slot].values() for slot in slots)):
            query = Query(name, **{FIELDS.get(slot, slot): value for slot, value in zip(slots, words, strict=True)})
            for wording in template.wordings:
                question = word(query, wording)
                assert understand(question) == query, question
                assert understand(f"  {question.upper().replace(' ', '  ').rstrip('?')} !") == query


@settings(max_examples=150, deadline=None)
@given(truth=truths, number=st.integers(0, 1000))
def test_every_question_asked_is_understood_and_answered_by_the_truth(truth: Truth, number: int) -> None:
    turns = [(sample.question, sample.targets[0]) for sample in samples(truth, seed=number, split="test")]
    for talk in conversations(truth, seed=number):
        texts = [message.content for message in talk.messages]
        turns += list(zip(texts[::2], texts[1::2], strict=True))[1 if len(texts) > 2 else 0 :]
    assert len(turns) == 7 + 5 + 7
    for question, right in turns:
        query = understand(question)
        assert query is not None, question
        assert answer(query, truth)[0] == right, question
        assert question.endswith("?")
        assert question == question.lower()
        assert right == normal(right)


@settings(max_examples=40, deadline=None)
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
    assert set(tallies) == {name for name, template in TEMPLATES.items() if template.closed}
    assert all(0.38 < tally["yes"] / tally.total() < 0.62 for tally in tallies.values()), tallies
    everything = sum(tallies.values(), Counter[str]())
    assert 0.47 < everything["yes"] / everything.total() < 0.53
    assert 0.5 < kinds["open"] / kinds.total() < 0.6


@settings(max_examples=25, deadline=None)
@given(truth=truths)
def test_a_conversation_begins_with_the_caption_and_asks_nothing_twice(truth: Truth) -> None:
    discussed, *single = conversations(truth, seed=1)
    assert discussed.messages[1].content == caption(truth)
    asked = [message.content for message in discussed.messages if message.role == "user"]
    assert len(asked) == len(set(asked)) == 6
    assert len({talk.messages[0].content for talk in single}) == len(single) == 7
    assert all(len(talk.messages) == 2 for talk in single)
    assert len({talk.id for talk in (discussed, *single)}) == 8


def test_captions_read_like_a_report() -> None:
    truth = variants("chest", "ct", "nodule")[0]
    put = {"side": "right", "level": "upper", "size": "small"}
    assert caption(truth.model_copy(update=put | {"count": 1})) == "chest ct with a small nodule in the right upper lung."
    assert caption(truth.model_copy(update=put | {"count": 2})) == "chest ct with two small nodules in the right upper lung."
    assert caption(without(truth)) == "normal chest ct."


@pytest.mark.parametrize("question", ["", "?", "why?", "Describe the image.", "where is the dog?", "is there a nodule in the?"])
def test_what_is_none_of_our_questions_is_not_understood(question: str) -> None:
    assert understand(question) is None


def test_a_place_in_another_organ_cannot_be_decided_and_holds_nothing() -> None:
    truth = variants("chest", "ct", "nodule")[0]
    brain = {"side": "left", "level": "upper", "region": "head"}
    assert answer(Query("what at", **brain), truth) == ()
    assert answer(Query("place", finding="nodule", **brain), truth) == ("no",)
    assert ORGANS["head"] == "brain"


def test_a_question_of_every_template_can_be_asked_about_any_image() -> None:
    for index in range(35):
        truth = make_truth(1, index, "labelled")
        assert all(answer(ask(name, truth, random("any", index)), truth) for name in TEMPLATES)
    assert plural("mass") == "masses"
