"""What training has seen of a benchmark: like pictures, shared images, questions asked before."""

import io
import os
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageEnhance

from stllava.data.benchmarks import read_vqa_rad
from stllava.data.images import open_image
from stllava.data.likeness import NEAR, near, picture_hash
from stllava.data.overlap import (
    LISTED,
    ImageFingerprint,
    TrainingItem,
    describe,
    find_overlap,
    fingerprint,
    fingerprints_of,
    read_training_items,
    training_items,
)
from stllava.data.phantom.draw import draw, make_truth
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Image, Lineage, Message, Overlap, Preference, Question, Role, Sample, Sampling

Picture = Pillow.Image


def again(image: Picture, **options: object) -> Picture:
    """The image after a file has held it."""
    file = io.BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]
    return Pillow.open(file).convert("RGB")


def scaled(image: Picture, factor: float) -> Picture:
    """The image at another size."""
    return image.resize((round(image.width * factor), round(image.height * factor)))


ALTERED: dict[str, Callable[[Picture], Picture]] = {
    "JPEG of quality 50": lambda image: again(image, format="JPEG", quality=50),
    "PNG": lambda image: again(image, format="PNG"),
    "GIF": lambda image: again(image, format="GIF"),
    "half as large": lambda image: scaled(image, 0.5),
    "twice as large": lambda image: scaled(image, 2),
    "a square": lambda image: image.resize((224, 224)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "stronger": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "weaker": lambda image: ImageEnhance.Contrast(image).enhance(0.9),
}


def phantom(index: int) -> Picture:
    """A phantom of 128 pixels."""
    return Pillow.fromarray(draw(make_truth(0, index, "test"), seed=0))


def hashed(image: Picture) -> int:
    """The hash of an image that is not plain."""
    value = picture_hash(image)
    assert value is not None
    return value


@pytest.fixture(scope="module")
def published() -> Path:
    """The published VQA-RAD."""
    folder = os.environ.get("STLLAVA_VQA_RAD")
    if not folder:
        pytest.skip("STLLAVA_VQA_RAD is not set: overlap is NOT tested on the published VQA-RAD; set it to its folder")
    return Path(folder)


@pytest.fixture(scope="module")
def published_fingerprints(published: Path) -> dict[str, ImageFingerprint]:
    """What its 315 images look like."""
    return fingerprints_of(published, [path.relative_to(published).as_posix() for path in (published / "images").iterdir()])


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_an_altered_phantom_is_known_again(alter: Callable[[Picture], Picture]) -> None:
    for index in range(8):
        image = phantom(index).convert("RGB")
        assert (hashed(alter(image)) ^ hashed(image)).bit_count() <= NEAR


def test_neighbouring_phantoms_are_told_apart() -> None:
    hashes = [hashed(phantom(index)) for index in range(60)]
    assert min((one ^ other).bit_count() for one, other in combinations(hashes, 2)) > NEAR


@pytest.mark.parametrize("how", ["JPEG of quality 50", "half as large", "a square", "brighter", "stronger"])
def test_an_altered_radiograph_is_known_again(
    how: str, published: Path, published_fingerprints: dict[str, ImageFingerprint]
) -> None:
    for path, fingerprints in list(published_fingerprints.items())[::40]:
        assert fingerprints.picture is not None
        assert (hashed(ALTERED[how](open_image(published, path))) ^ fingerprints.picture).bit_count() <= NEAR


def test_all_published_radiographs_are_told_apart_with_room_to_spare(
    published_fingerprints: dict[str, ImageFingerprint],
) -> None:
    pictures = [fingerprints.picture for fingerprints in published_fingerprints.values() if fingerprints.picture is not None]
    assert len(pictures) == 315
    assert min((one ^ other).bit_count() for one, other in combinations(pictures, 2)) > 5 * NEAR


def _plain() -> dict[str, Picture]:
    x = np.linspace(0, 255, 90)
    noise = np.random.default_rng(0).normal(120, 0.4, (80, 90))
    return {
        "black": Pillow.new("RGB", (90, 80)),
        "grey with a little noise": Pillow.fromarray(noise.astype(np.uint8)),
        "a gradient": Pillow.fromarray(np.tile(x, (80, 1)).astype(np.uint8)),
        "bars": Pillow.fromarray(np.tile((x // 40 % 2) * 200, (80, 1)).astype(np.uint8)),
    }


@pytest.mark.parametrize("image", _plain().values(), ids=_plain())
def test_a_plain_picture_has_no_hash(image: Picture) -> None:
    assert picture_hash(image) is None


hashes = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 2**1024 - 1), max_size=6)


@given(hashes, hashes, st.integers(0, 1024), st.integers(0, 400))
def test_near_finds_the_pairs_that_bit_counts_find(
    ours: dict[str, int], theirs: dict[str, int], distance: int, flips: int
) -> None:
    theirs |= {f"{name} altered": value ^ ((1 << flips) - 1) for name, value in ours.items()}
    pairs = ((one, other, (ours[one] ^ theirs[other]).bit_count()) for one in ours for other in theirs)
    assert sorted(near(ours, theirs, distance=distance)) == sorted(pair for pair in pairs if pair[2] <= distance)


def test_near_finds_pairs_across_blocks() -> None:
    rng = np.random.default_rng(0)
    ours = {str(number): int.from_bytes(rng.bytes(128)) for number in range(4500)}
    theirs = {name: value ^ (int(name) % 3) for name, value in ours.items()}
    assert sorted(near(ours, theirs)) == sorted((name, name, (int(name) % 3).bit_count()) for name in ours)


def turns(*texts: tuple[Role, str]) -> tuple[Message, ...]:
    """Messages of roles and texts."""
    return tuple(Message(role=role, content=text) for role, text in texts)


SAMPLING = Sampling(temperature=1, top_k=0, top_p=1, max_new_tokens=8, seed=0)
TALK = turns(("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("virtual_user", "Q2"), ("assistant", "A2"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Image(id="i", path="a"), [TrainingItem("a")]),
        (
            Conversation(id="c", images=("a", "b"), messages=TALK),
            [TrainingItem(image, f"Q{number}", f"A{number}") for image in "ab" for number in (1, 2)],
        ),
        (Conversation(id="c", images=("a",), messages=turns(("system", "S"))), [TrainingItem("a")]),
        (Question(id="q", images=("a",), text="Q", description="D", policy="p", sampling=SAMPLING), [TrainingItem("a", "Q")]),
        (
            Preference(
                id="p",
                images=("a",),
                prompt=(*TALK, *turns(("user", "Q3"))),
                chosen="good",
                rejected="bad",
                margin=1,
                lineage=Lineage(question_id="q", answers_id="a", judgment_id="j"),
            ),
            [TrainingItem("a", "Q1", "A1"), TrainingItem("a", "Q2", "A2"), TrainingItem("a", "Q3", "good")],
        ),
        (
            Sample(id="s", image="a", question="Q", targets=("x", "y"), kind="open", split="train"),
            [TrainingItem("a", "Q", "x"), TrainingItem("a", "Q", "y")],
        ),
    ],
    ids=["image", "conversation", "no question", "question", "preference", "reference"],
)
def test_what_is_learned_from_a_record(
    record: Image | Conversation | Question | Preference | Sample, expected: list[TrainingItem]
) -> None:
    assert training_items(record) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image;Question;Answer\na.png;What?;yes\n"),
        ("a.jsonl", '{"image": "a.png", "question": "What?", "targets": ["yes"]}\n'),
        (
            "a.json",
            '[{"image": "a.png", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "yes"}]}]',
        ),
        (
            "a.jsonl",
            '{"images": ["a.png"], "messages": [{"role": "user", "content": "<image>What?"}, '
            '{"role": "assistant", "content": "yes"}]}',
        ),
    ],
    ids=["table", "bare rows", "LLaVA", "ms-swift"],
)
def test_what_was_learned_elsewhere_is_read_as_it_was_learned(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_training_items(tmp_path / name) == [TrainingItem("a.png", "What?", "yes")]


def test_a_file_of_other_columns_holds_nothing_that_is_learned(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,diagnosis\na.png,none\n")
    with pytest.raises(StllavaError, match="holds nothing that training learns from"):
        read_training_items(tmp_path / "a.csv")


SHARED, COPY, OTHER, PLAIN = (
    ImageFingerprint("1", 2**900),
    ImageFingerprint("2", 2**900 + 7),
    ImageFingerprint("3", 2**1024 - 1),
    ImageFingerprint("4", None),
)
TRAINED = {
    "shared": SHARED,
    "original": ImageFingerprint("5", 2**900),
    "far": ImageFingerprint("6", (2**512 - 1) << 9),
    "plain": ImageFingerprint("7", None),
}
QUESTION = "Is there a mass in the left lung?"


def overlap(image: ImageFingerprint, *items: TrainingItem, question: str = QUESTION, target: str = "Yes") -> Overlap:
    """The overlap of a benchmark of one sample with what one source holds."""
    sample = Sample(id="s", image="test", question=question, targets=(target,), kind="closed", split="test")
    return find_overlap("b", [sample], fingerprints={"test": image}, learned={"talks": items}, learned_fingerprints=TRAINED)


@pytest.mark.parametrize(
    ("image", "item", "counts"),
    [
        (SHARED, TrainingItem("shared"), (1, 0, 0, 0, 0, 0)),
        (COPY, TrainingItem("shared"), (0, 1, 0, 0, 0, 0)),
        (OTHER, TrainingItem("shared"), (0, 0, 0, 0, 0, 0)),
        (PLAIN, TrainingItem("plain"), (0, 0, 0, 0, 0, 0)),
        (TRAINED["plain"], TrainingItem("plain"), (1, 0, 0, 0, 0, 0)),
        (SHARED, TrainingItem("shared", "is there a mass in left lung"), (1, 0, 1, 0, 0, 1)),
        (SHARED, TrainingItem("shared", QUESTION, "no"), (1, 0, 1, 0, 0, 1)),
        (SHARED, TrainingItem("shared", QUESTION, "yes."), (1, 0, 1, 0, 1, 1)),
        (COPY, TrainingItem("shared", QUESTION, "yes."), (0, 1, 1, 0, 1, 1)),
        (SHARED, TrainingItem("shared", "Is there a mass in the lung?", "yes"), (1, 0, 0, 1, 0, 0)),
        (SHARED, TrainingItem("shared", "What organ is this?", "yes"), (1, 0, 0, 0, 0, 0)),
        (OTHER, TrainingItem("shared", QUESTION, "yes"), (0, 0, 0, 0, 0, 1)),
    ],
    ids=[
        "same bytes",
        "altered copy",
        "other image",
        "two plain images",
        "one plain image",
        "question without answer",
        "question with another answer",
        "triplet",
        "triplet about a copy",
        "near question",
        "other question",
        "question about another image",
    ],
)
def test_what_is_counted_as_shared(image: ImageFingerprint, item: TrainingItem, counts: tuple[int, ...]) -> None:
    found = overlap(image, item)
    exact, close, same, nearly, triplets, known = counts
    assert (found.exact_images, found.near_images) == (exact, close)
    assert (found.same_questions, found.near_questions, found.triplets, found.known_texts) == (same, nearly, triplets, known)
    assert found.serious == (exact + close > 0)
    assert found.by_source == {"talks": exact + close}


def test_a_near_image_and_a_question_about_it_are_listed_with_their_source() -> None:
    found = overlap(
        COPY, TrainingItem("shared", QUESTION, "yes"), TrainingItem("original", "Is a mass in the left lung there?")
    )
    listed = [(match.kind, match.sample_id, match.other_image, match.source, match.distance) for match in found.matches]
    assert listed == [
        ("triplet", "s", "shared", "talks", 3),
        ("near question", "s", "original", "talks", 3),
        ("near image", None, "shared", "talks", 3),
        ("near image", None, "original", "talks", 3),
    ]
    assert (found.same_questions, found.near_questions) == (1, 0)


def test_matches_beyond_the_list_are_counted() -> None:
    found = overlap(SHARED, *(TrainingItem("shared", QUESTION, str(number)) for number in range(LISTED + 3)), target="202")
    assert (len(found.matches), found.left_out, found.matches[0].kind) == (LISTED, 3, "triplet")
    assert (found.same_questions, found.triplets) == (1, 1)


def test_images_of_two_roots_may_have_one_name() -> None:
    sample = Sample(id="s", image="1.png", question="Q?", targets=("yes",), kind="closed", split="test")
    learned = {"talks": [TrainingItem("1.png", "Q?", "yes")]}
    found = find_overlap("b", [sample], fingerprints={"1.png": OTHER}, learned=learned, learned_fingerprints={"1.png": SHARED})
    assert not found.serious


def test_overlap_is_told_in_sentences() -> None:
    known = "of 1 test questions of b stand in training in the same words, about whatever image."
    assert describe(overlap(OTHER, TrainingItem("shared"))) == [
        "None of 1 test images of b is among the training images, by its bytes or nearly.",
        f"0 {known}",
    ]
    assert describe(overlap(COPY, TrainingItem("shared", QUESTION, "yes"))) == [
        "Of 1 test images of b, 0 are byte for byte among the training images and 1 more nearly so (talks 1).",
        "Of 1 test questions of b, 1 are also asked in training about such an image, 1 of them with the same answer, and "
        "0 more are nearly asked.",
        f"1 {known}",
    ]


def test_files_are_told_apart_by_bytes_and_by_looks(tmp_path: Path) -> None:
    phantom(0).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    phantom(0).save(tmp_path / "c.bmp")
    fingerprints = fingerprints_of(tmp_path, ["a.png", "b.png", "c.bmp", "a.png"])
    assert fingerprints["a.png"] == fingerprints["b.png"]
    assert (fingerprints["c.bmp"].picture, fingerprints["c.bmp"].content) != (
        fingerprints["a.png"].picture,
        fingerprints["a.png"].content,
    )
    assert fingerprints["c.bmp"].picture == fingerprints["a.png"].picture


def test_an_unusable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ItemError, match=r"bad\.png is not an image"):
        fingerprint(tmp_path, "bad.png")


def test_the_standard_split_of_vqa_rad_shares_all_images_but_one(
    published: Path, published_fingerprints: dict[str, ImageFingerprint]
) -> None:
    both = read_vqa_rad(published)
    learned = {"train": [item for row in both.train for item in training_items(row)]}
    found = find_overlap(
        "vqa-rad", both.test, fingerprints=published_fingerprints, learned=learned, learned_fingerprints=published_fingerprints
    )
    assert (found.images, found.exact_images, found.near_images) == (203, 202, 0)
    assert (found.same_questions, found.near_questions, found.triplets, found.known_texts) == (1, 3, 1, 85)
    first, *others = found.matches
    assert (first.kind, first.sample_id) == ("triplet", "vqa-rad-722")
    assert {match.sample_id for match in others} == {"vqa-rad-160", "vqa-rad-2043", "vqa-rad-2611"}


def test_the_image_disjoint_split_of_vqa_rad_shares_none(
    published: Path, published_fingerprints: dict[str, ImageFingerprint]
) -> None:
    both = read_vqa_rad(published, split="image-disjoint")
    items = [item for row in both.train for item in training_items(row)]
    found = find_overlap(
        "vqa-rad",
        both.test,
        fingerprints=published_fingerprints,
        learned={"train": items},
        learned_fingerprints=published_fingerprints,
    )
    assert (found.exact_images, found.near_images, found.matches) == (0, 0, ())
    assert found.known_texts > 0
    assert not found.serious
