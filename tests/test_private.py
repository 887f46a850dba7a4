"""Identities stay behind: ids, intervals, the allow-list and the check of what is written."""

import hashlib
import hmac
import io
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stllava.errors import ItemError, StllavaError
from stllava.intake.deidentify.allowlist import allow
from stllava.intake.deidentify.leaks import check_clean, leaks, needles
from stllava.intake.deidentify.pseudonyms import day_number, hidden_id, image_id, open_salt
from stllava.intake.deidentify.spelling import plain_day
from stllava.intake.readers.frame import Facts

SALT, OTHER = bytes(range(32)), bytes(32)
NAME = "QUARTEY^ADAEZE"


def test_a_salt_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "salt"
    salt = open_salt(path, output=tmp_path / "out")
    assert len(salt) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_salt(path, output=tmp_path / "out") == salt
    assert [entry.name for entry in path.parent.iterdir()] == ["salt"]
    assert open_salt(tmp_path / "second", output=tmp_path / "out") != salt


def test_a_salt_inside_the_output_is_refused_also_through_a_link(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    for path in (out / "salt", tmp_path / "link" / "salt", tmp_path / "out" / ".." / "out" / "salt"):
        with pytest.raises(StllavaError, match="inside the output"):
            open_salt(path, output=out)
    assert not any(out.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_salt_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "salt"
    path.write_bytes(SALT)
    path.chmod(mode)
    with pytest.raises(StllavaError, match="chmod 600"):
        open_salt(path, output=tmp_path / "out")


def test_a_file_that_is_no_salt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "salt"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(StllavaError, match="5 bytes"):
        open_salt(path, output=tmp_path / "out")


def test_a_hidden_id_is_the_hmac_of_its_parts() -> None:
    wanted = hmac.new(SALT, b'["patient","doe",3]', hashlib.sha256).hexdigest()[:16]
    assert hidden_id(SALT, "patient", "doe", 3) == wanted
    assert hidden_id(OTHER, "patient", "doe", 3) != wanted
    assert hidden_id(SALT, "a", "bc") != hidden_id(SALT, "ab", "c")


def test_image_ids_differ_by_source_and_frame() -> None:
    found = {image_id(SALT, source, frame=frame) for source in ("a", "b") for frame in (None, 0, 1)}
    assert len(found) == 6


@pytest.mark.parametrize(
    "text",
    ["20200229", "2020.02.29", "2020-02-29", "2020/02/29", " 20200229\0", "20200229120000.000000+0100", "2020-02-29 12:00"],
)
def test_a_day_is_read_as_exports_write_it(text: str) -> None:
    # 2020 was a leap year.
    assert plain_day(text) == "20200229"
    assert day_number(text) == date(2020, 2, 29).toordinal()


@pytest.mark.parametrize(
    "text", ["", "20201341", "20210229", "202002", "202002290", "29.02.2020", "00010101", "19000101", "today"]
)
def test_what_is_no_day_or_stands_for_none_is_passed_over(text: str) -> None:
    assert plain_day(text) == ""
    assert day_number(text) is None


def test_known_facts_pass_in_one_spelling() -> None:
    facts = Facts("ct", "CHEST", "pa", "l", frame=4, done=("rescaled to HU", "window lung (-600, 1500)"))
    allowed = allow(facts, {"slice_thickness": "2.5", "contrast": "yes"}, series="0123456789abcdef")
    assert allowed.facts == Facts("CT", "chest", "PA", "L", "0123456789abcdef", 4, facts.done)
    assert allowed.labels == {"slice_thickness": "2.5", "contrast": "yes"}
    assert not allowed.dropped


def test_a_name_planted_in_any_fact_or_label_does_not_pass() -> None:
    facts = Facts(NAME, NAME, NAME, NAME, NAME, -1, (f"window {NAME} (40, 80)", "window quartey (40, 80)", "inverted"))
    allowed = allow(facts, {"slice_thickness": NAME, "operator": "5", NAME: "1"})
    assert allowed.facts == Facts(done=("inverted",))
    assert allowed.labels == {}
    assert allowed.dropped == {
        "modality": 1, "body_part": 1, "view": 1, "laterality": 1, "series": 1, "frame": 1, "done": 2, "labels": 3,
    }  # fmt: skip
    assert not leaks(repr(allowed).encode(), [NAME])


@pytest.mark.parametrize("step", ["window 19450312", "slice 12345678", "sl\nice", "x" * 200, "file doe.dcm"])
def test_a_step_with_a_long_number_or_a_strange_word_is_left_out(step: str) -> None:
    assert allow(Facts(done=(step,)), {}).facts.done == ()


@pytest.mark.parametrize(
    "step",
    [
        "the file's window LINEAR_EXACT (40, 400)",
        "rescaled by 0.000152593 and -1024",
        "YBR_FULL_422 to RGB",
        "resampled from 197 × 189 to square pixels",
        "window of percentiles 0.5 to 99.5",
        "maximum of 12 frames",
        "from mode I;16B",
        "tile at 512, 1024",
        "burned-in text masked (2)",
        "orientation assumed, the header gives none",
        "turned to canonical axes",
    ],
)
def test_what_the_readers_say_passes(step: str) -> None:
    assert allow(Facts(done=(step,)), {}).facts.done == (step,)


@pytest.mark.parametrize(
    "data",
    [
        b'{"note": "Adaeze"}',
        b"ADAEZE  quartey",
        "x QUARTEY^ADAEZE y".encode("utf-16-le"),
        "?QUARTEY".encode("utf-16-be"),
        b"images/Quartey_1.png",
    ],
)
def test_a_name_is_found_whole_or_in_part_and_in_any_case(data: bytes) -> None:
    assert leaks(data, [NAME]) > 0


@pytest.mark.parametrize("name", ["MÜLLER^ŽOFIE", "山田^太郎殿様方", "𠮷野家殿^x"])
def test_names_beyond_ascii_are_found_also_escaped_in_json(name: str) -> None:
    first = name.split("^")[0] if len(name.split("^")[0]) >= 4 else name.split("^")[1]
    for data in (first.encode(), first.lower().encode(), json.dumps({"a": first}).encode(), json.dumps({"a": name}).encode()):
        assert leaks(data, [name]) > 0, data


def test_harmless_words_and_measures_of_a_source_are_no_leak() -> None:
    data = b'{"body_part": "chest", "series": "0123456789abcdef", "width": 1024, "view": "LATERAL", "step": -1024.5}'
    assert leaks(data, ["CHEST", "Series", "1024", "LATERAL", "-1024.5", "L", "89abcd", NAME]) == 0
    assert leaks(b'{"id": 4711078}', ["4711078"]) == 1


def test_parts_of_names_are_looked_for_and_parts_of_other_texts_are_not() -> None:
    assert needles(["VAN DORP^LEA^MARIE", "low dose protocol"]) == {
        "dorp", "marie", "van dorp^lea^marie", "van dorp lea marie", "low dose protocol",
    }  # fmt: skip


def test_a_leak_is_an_error_that_does_not_repeat_it() -> None:
    with pytest.raises(ItemError) as caught:
        check_clean(b"quartey", [NAME], what="images.jsonl")
    assert caught.value.cause == "identity"
    assert "quartey" not in str(caught.value).lower()
    check_clean(b"nothing", [NAME], what="images.jsonl")


def encoded(form: str, *, planted: str = "") -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))
    buffer = io.BytesIO()
    if form == "PNG":
        info = PngInfo()
        if planted:
            info.add_text("Comment", planted)
        image.save(buffer, form, pnginfo=info)
    elif planted:
        image.save(buffer, form, comment=planted.encode())
    else:
        image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_may_hold_nothing_but_pixels(form: str) -> None:
    check_clean(encoded(form), [NAME], what="a picture")
    for data in (encoded(form, planted="x"), encoded(form) + b"rest", encoded(form) + encoded(form)):
        with pytest.raises(ItemError, match="more than pixels"):
            check_clean(data, [], what="a picture")


def test_a_jpeg_with_exif_is_refused() -> None:
    exif = Image.Exif()
    exif[0x010E] = NAME
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", exif=exif)
    with pytest.raises(ItemError, match="more than pixels"):
        check_clean(buffer.getvalue(), [], what="a picture")
