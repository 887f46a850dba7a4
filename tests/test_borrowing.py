"""Questions are lent between images that are alike, over the whole set, and reach images that hardly ask them."""

from pathlib import Path

import numpy as np
from PIL import Image

from stllava.data.borrowing import AskedAbout, bare, labelled_donors, lend, looks_of
from stllava.data.conversations import conversation
from stllava.data.overlap import fingerprints_of
from stllava.records import Message, Role

CYST, WHERE, NORMAL = "What size is the cyst?", "where is the cyst?", "is it normal?"
IMAGES = [
    AskedAbout("ct with a small cyst", (CYST,)),
    AskedAbout("ct with a large cyst", ("what size  is the CYST?", WHERE)),
    AskedAbout("normal mr", (NORMAL,)),
    AskedAbout("ct with a cyst", ()),
]


def test_without_borrowing_every_image_keeps_its_own_questions() -> None:
    assert list(lend(IMAGES, max_borrowed=0)) == [list(image.questions) for image in IMAGES]
    assert list(lend([], max_borrowed=3)) == []
    assert list(lend([AskedAbout("", ())], max_borrowed=3)) == [[]]


def test_questions_are_borrowed_first_from_images_described_alike() -> None:
    lent = list(lend(IMAGES, max_borrowed=1))
    assert lent[0] == [CYST, WHERE]
    assert lent[1] == [*IMAGES[1].questions, NORMAL]
    assert lent[2][0] == NORMAL
    assert lent[2][1] in (CYST, WHERE)
    assert lent[3] in ([CYST], [WHERE])
    for texts in lend(IMAGES, max_borrowed=9):
        assert sorted(map(bare, texts)) == sorted(map(bare, (CYST, WHERE, NORMAL)))


def test_images_that_look_alike_lend_to_each_other_where_descriptions_say_nothing() -> None:
    noise = np.random.default_rng(0)
    looks = [int.from_bytes(noise.bytes(128)) for _ in range(2)]
    images = [
        AskedAbout("", ("is it one?",), looks[0]),
        AskedAbout("", ("is it two?",), looks[1]),
        AskedAbout("", (), looks[1] ^ 0b1011),
    ]
    assert list(lend(images, max_borrowed=1))[2] == ["is it two?"]


def test_of_equally_alike_questions_the_rarest_reach_as_many_images_as_the_common_ones() -> None:
    common = [AskedAbout("a chest", ("is it a chest?",)) for _ in range(30)]
    rare = [AskedAbout("a chest", (f"is there sign {number}?",)) for number in range(6)]
    bare_images = [AskedAbout("a chest", ()) for _ in range(60)]
    lent = list(lend([*common, *rare, *bare_images], max_borrowed=2))
    counts = {text: sum(text in texts for texts in lent) for texts in lent for text in texts}
    assert len(counts) == 7
    assert min(counts.values()) >= 25


def said(role: Role, text: str) -> Message:
    """A turn."""
    return Message(role=role, content=text)


def test_questions_of_labelled_images_are_lent_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    described = (said("user", "Describe it."), said("assistant", "a smear"))
    few = (said("user", "Few or many cells?"), said("assistant", "few"))
    where = (said("user", "Where is the cell?"), said("assistant", "left"))
    talks = [conversation(("a.png",), turns) for turns in ((*described, *few), where)]
    (donor,) = labelled_donors(talks, tmp_path)
    assert (donor.description, donor.questions) == ("a smear", ("Few or many cells?", "Where is the cell?"))
    assert donor.look == looks_of(tmp_path, ["a.png"])[0]
    images = [AskedAbout("a chest", ("is it a chest?",)), AskedAbout("a smear", ())]
    lent = list(lend(images, max_borrowed=2, donors=[donor]))
    assert lent[1] == ["Few or many cells?", "Where is the cell?"]


def test_the_look_of_an_image_on_disk_is_its_hash(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("L", (40, 40)).save(tmp_path / "plain.png")
    look, plain = looks_of(tmp_path, ["a.png", "plain.png"])
    known = fingerprints_of(tmp_path, ["a.png", "plain.png"])
    # What a data set knows is what would be read, and need not be read.
    assert looks_of(tmp_path / "elsewhere", ["a.png", "plain.png"], known) == [look, plain]
    assert look is not None
    assert plain is None
    assert looks_of(tmp_path, ["gone.png"]) == [None]


def test_labelled_images_that_cannot_be_read_lend_their_questions_and_deep_ones_have_a_look(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "page.png").write_text("<html>")
    talks = [
        conversation((name,), (said("user", "Where is it?"), said("assistant", "left"))) for name in ("cut.png", "page.png")
    ]
    assert [donor.look for donor in labelled_donors(talks, tmp_path)] == [None, None]
    look, deep = looks_of(tmp_path, ["a.png", "deep.png"])
    assert look is not None
    assert look == deep
