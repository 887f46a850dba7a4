"""Names planted in every place of every kind of file, or burned into pixels, come out of an import nowhere.

STLLAVA_BURNED=100 hides names in so many pictures through the whole importer and prints how many were hidden.
"""

import base64
import hashlib
import html
import io
import json
import logging
import os
import re
import unicodedata
import urllib.parse
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

nibabel = pytest.importorskip("nibabel")
for library in ("pydicom", "tifffile"):
    pytest.importorskip(library)

import tifffile  # noqa: E402

from helpers.planted import NUMBERS, PERSONS, Names, cut, plant  # noqa: E402
from stllava.config import IntakeOptions  # noqa: E402
from stllava.data.image_set import Imported, LeftOut, read_imported  # noqa: E402
from stllava.intake.deidentify.pseudonyms import hidden_id  # noqa: E402
from stllava.intake.run import import_images  # noqa: E402
from stllava.records import Manifest  # noqa: E402
from stllava.store import read_jsonl  # noqa: E402
from test_burned import ground  # noqa: E402
from test_dicom import make  # noqa: E402

SALT = bytes(range(32))
HIDDEN = 0.98
"""Share of a name's ink that must be covered: one letter of the shortest name is more than the rest."""
COUNT = int(os.environ.get("STLLAVA_BURNED", "0"))
SIDE = int(os.environ.get("STLLAVA_BURNED_SIDE", "256"))
_DEPTH = 3


def import_folder(folder: Path, source: Path, options: IntakeOptions) -> Manifest:
    """Import with the real readers and a salt that is the same each time."""
    salt = folder / "keys" / "salt"
    salt.parent.mkdir(exist_ok=True)
    if not salt.exists():
        salt.touch(0o600)
        salt.write_bytes(SALT)
    return import_images(options, source=source, to=folder / "data", salt=salt, existing="resume")


def hidden_source(path: Path) -> str:
    """The id that the set has for a file."""
    return hidden_id(SALT, "source", hashlib.sha256(path.read_bytes()).hexdigest())


# --- what to look for, and where -------------------------------------------------------------------------------------


@cache
def needles() -> dict[bytes, str]:
    """Every way in which a part of a name, or a number, may be written as bytes, with what it is."""
    found: dict[bytes, str] = {number.encode(kind): what for what, number in NUMBERS.items() for kind in ("ascii", "utf-16-le")}
    for text in {part for parts in PERSONS.values() for part in parts}:
        for form in ("NFC", "NFD"):
            normal = unicodedata.normalize(form, text)
            for cased in {normal, normal.upper(), normal.lower(), normal.swapcase()}:
                found.update((way, f"{text} ({form})") for way in _ways(cased))
    return found


def _ways(text: str) -> Iterator[bytes]:
    """A text as bytes of every usual encoding, escape and as base64 at each of its three places."""
    codes = ("utf-8", "latin-1", "cp437", "mac-roman", "utf-16-le", "utf-16-be", "utf-32-le", "shift_jis", "euc_jp")
    plain = [raw for code in codes if (raw := _encoded(text, code))]
    if jis := _encoded(text, "iso2022_jp"):
        # The escapes around it may differ.
        plain.append(re.sub(rb"\x1b[$(][A-Z@]", b"", jis))
    yield from plain
    for escaped in (json.dumps(text)[1:-1], ascii(text)[1:-1], urllib.parse.quote(text), repr(text.encode())[2:-1]):
        yield escaped.encode()
    yield "".join(f"&#{ord(letter)};" if ord(letter) > 127 else letter for letter in html.escape(text)).encode()
    for raw in plain:
        yield raw.hex().encode()
        for before in range(3):
            packed = base64.b64encode(bytes(before) + raw)
            yield packed[-(-8 * before // 6) : 8 * (before + len(raw)) // 6]


def _encoded(text: str, code: str) -> bytes:
    try:
        return text.encode(code)
    except UnicodeEncodeError:
        return b""


def layers(data: bytes, depth: int = _DEPTH) -> Iterator[bytes]:
    """The bytes, what is packed in them by zlib, gzip, base64 or DICOM's deflate, and pixels, each looked into as well."""
    yield data
    if depth == 0:
        return
    inner = [_inflated(data[found.start() :], 47) for found in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data)]
    if data[128:132] == b"DICM":
        inner.append(_inflated(data[144 + int.from_bytes(data[140:144], "little") :], -15))
    for found in re.finditer(rb"[A-Za-z0-9+/]{24,}", data):
        body = found.group()
        # One letter too many cannot be base64's; two or three go without their padding here.
        body = body[: len(body) - (len(body) % 4 == 1)]
        inner.append(base64.b64decode(body + b"=" * (-len(body) % 4)))
    if data.startswith((b"\x89PNG", b"\xff\xd8")):
        with Image.open(io.BytesIO(data)) as image:
            inner.append(image.tobytes())
    for one in inner:
        if len(one) > 4:
            yield from layers(one, depth - 1)


def _inflated(data: bytes, bits: int) -> bytes:
    try:
        return zlib.decompressobj(bits).decompress(data, 1 << 24)
    except zlib.error:
        return b""


def standing(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What of names stands in the bytes or in what they hold, with the bytes behind it, which tell where it was planted."""
    whole = b"\0\xff\0".join(layers(data))
    for needle, what in needles().items():
        at = whole.find(needle)
        while at >= 0:
            end = at + len(needle)
            yield what, whole[end : end + 40]
            at = whole.find(needle, end)


def names_in(data: bytes) -> set[str]:
    """What is found of names, for people to read."""
    return {f"{what} before {behind[:12]!r}" for what, behind in standing(data)}


def letters_in(data: bytes) -> set[str]:
    """The letters of every planted name that is found."""
    found = (behind.replace(b"\0", b"").replace(b"\x1b(B", b"").lstrip(b"\xe4") for _, behind in standing(data))
    return {behind[:3].decode("latin-1").lower() for behind in found}


# --- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", ["png", "jpeg"])
def test_a_name_planted_anywhere_comes_out_nowhere(
    picture: Literal["png", "jpeg"], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    names = Names()
    source = tmp_path / f"of {PERSONS['plain'][0]}"
    paths = plant(source, names)
    # The search must be able to find: every name lies in its file's bytes or path.
    seen = {
        letters
        for path in source.rglob("*")
        for letters in letters_in((path.read_bytes() if path.is_file() else b"") + os.fsencode(path))
    }
    assert {place for letters, place in names.places.items() if letters not in seen} == set()
    cut(paths, source)
    capfd.readouterr()
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    options = IntakeOptions(format=picture, look_for_text="rules", workers=2, seconds=120, near_duplicates="ignore")
    manifest = import_folder(tmp_path, source, options)
    rows = read_imported(tmp_path / "data")
    written = {row.source for row in rows}
    assert [path.name for path in paths if hidden_source(path) not in written] == []
    assert manifest.counts_in == sum(path.is_file() for path in source.rglob("*"))
    assert manifest.dropped["not-an-image"] >= 1
    leaks = {
        (str(path.relative_to(tmp_path)), leak)
        for path in (tmp_path / "data").rglob("*")
        for leak in names_in((path.read_bytes() if path.is_file() else b"") + b"\n" + os.fsencode(path.name))
    }
    assert leaks == set()
    said = capfd.readouterr()
    assert names_in((said.out + said.err + caplog.text).encode(errors="surrogateescape")) == set()
    assert names_in(manifest.model_dump_json().encode()) == set()
    # The guard had something to hold back.
    assert manifest.measures["withheld body_part"] > 0
    # Nobody else may read what lies beside the salt, for the names are in there.
    private = list((tmp_path / "keys").iterdir())
    assert any(names_in(path.read_bytes()) for path in private)
    assert {path.stat().st_mode & 0o077 for path in private} == {0}


def test_what_is_told_of_a_planted_file_is_harmless_and_true(tmp_path: Path) -> None:
    names = Names()
    paths = plant(tmp_path / "in", names)
    import_folder(tmp_path, tmp_path / "in", IntakeOptions(look_for_text="rules", workers=2, seconds=120))
    rows: dict[str, list[Imported]] = {}
    for row in read_imported(tmp_path / "data"):
        rows.setdefault(row.source, []).append(row)
    for path in paths:
        told = rows[hidden_source(path)]
        dicom = path.read_bytes()[128:132] == b"DICM"
        assert {row.modality for row in told} == {"CT" if dicom else "SM" if path.suffix == ".svs" else ""}
        assert {(row.body_part, row.laterality) for row in told} == {("", "")}
        assert all(row.labels == {} for row in told)
        assert {row.interval for row in told} == {0 if dicom else None}


# --- burned in -------------------------------------------------------------------------------------------------------

KINDS = ("dicom", "tiff", "png", "jpeg", "nifti")
LETTERS = (10, 14, 20, 28, 40)
STYLES = ("black on a white box", "white on a black box", "grey on grey")
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle", "top", "bottom", "left margin", "right margin")


def burned(index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], str]:
    """A grey picture with a unique name burned in, where its ink is, and what it is like."""
    size, style, place = LETTERS[index % 5], STYLES[index // 9 % 3], PLACES[index % 9]
    first, second = (chr(65 + index * step % 26) for step in (7, 11))
    name = f"KOV{first}{second}"
    # Large letters leave no room for a given name.
    if size < 28 or SIDE > 300:
        name += (" ILSE", "^TOMAS", ", ADA")[index % 3]
    stamp = _stamp(name, size, upright=place.endswith("margin"), clockwise=index % 2 == 0)
    pixels = ground(index, SIDE).copy()
    height, width = stamp.shape
    left, right, middle, low = 4, SIDE - width - 4, (SIDE - width) // 2, SIDE - height - 4
    centre = (SIDE - height) // 2
    at = {
        "top left": (4, left),
        "top right": (4, right),
        "bottom left": (low, left),
        "bottom right": (low, right),
        "middle": (centre, middle),
        "top": (4, middle),
        "bottom": (low, middle),
        "left margin": (centre, left),
        "right margin": (centre, right),
    }[place]
    ink = np.zeros(pixels.shape, dtype=np.float64)
    here = slice(at[0], at[0] + height), slice(at[1], at[1] + width)
    ink[here] = stamp / 255
    under = float(pixels[here].mean())
    if style != "grey on grey":
        pixels[here] = 245 if style.startswith("black") else 8
    colour = {STYLES[0]: 0.0, STYLES[1]: 255.0, STYLES[2]: under - 90 if under > 110 else under + 90}[style]
    shown = np.clip(pixels * (1 - ink) + colour * ink, 0, 255).astype(np.uint8)
    return shown, ink > 0.25, f"{index}: {KINDS[index // 5 % 5]}, {size} px, {style}, {place}"


def _stamp(name: str, size: int, *, upright: bool, clockwise: bool) -> NDArray[np.uint8]:
    """[H, W] of a name's ink with a rim, lying or turned to either side."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = (int(end) for end in font.getbbox(name))
    stamp = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(stamp).text((4 - left, 4 - top), name, font=font, fill=255)
    turned = np.asarray(stamp)
    return np.rot90(turned, -1 if clockwise else 1) if upright else turned


def keep(pixels: NDArray[np.uint8], folder: Path, index: int) -> Path:
    """The picture as a file of its kind."""
    kind = KINDS[index // 5 % 5]
    path = folder / f"{index:03d}.{kind}"
    if kind == "dicom":
        make(
            path,
            pixels.astype(np.uint16) * 16,
            BitsStored=12,
            HighBit=11,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            WindowCenter=1016,
            WindowWidth=4080,
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
        )
    elif kind == "nifti":
        volume = nibabel.Nifti1Image(np.ascontiguousarray(pixels[::-1, ::-1].T[:, :, None]), np.eye(4))
        path.write_bytes(volume.to_bytes())
    elif kind == "tiff":
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, metadata=None)
    else:
        Image.fromarray(pixels).save(path, kind, **({"quality": 90} if kind == "jpeg" else {}))
    return path


def outcome(data: Path, drawn: list[tuple[Path, NDArray[np.uint8], NDArray[np.bool_], str]]) -> tuple[int, int, list[str]]:
    """How many pictures of an imported set have their names blacked out, how many were kept back, and which show them."""
    rows = {row.source: row for row in read_imported(data)}
    causes = {row.source: row.cause for row in read_jsonl(data / "left_out.jsonl", LeftOut)}
    masked, kept_back, seen = 0, 0, []
    for path, pixels, ink, what in drawn:
        row = rows.get(hidden_source(path))
        if row is None:
            assert causes[hidden_source(path)] == "burned-in-text", what
            kept_back += 1
            continue
        with Image.open(data / row.path) as image:
            shown = np.asarray(image)
        covered = np.zeros(ink.shape, dtype=np.bool_)
        for left, top, right, bottom in row.masked:
            covered[top:bottom, left:right] = True
        assert not shown[covered].any()
        share = (ink & covered).sum() / ink.sum()
        masked += bool(share >= HIDDEN)
        if share < HIDDEN:
            seen.append(f"{what} ({share:.0%} covered)")
        # The rest is as it was drawn, so the ink is where it is believed to be; JPEG loses noise, windows stretch greys.
        rest, was = shown[~covered].astype(np.float64), pixels[~covered].astype(np.float64)
        assert np.corrcoef(rest, was)[0, 1] > 0.9 or abs(rest - was).mean() < 8, what
    return masked, kept_back, seen


def test_names_burned_into_pictures_of_any_kind_are_hidden(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr_onnxruntime")
    (tmp_path / "in").mkdir()
    # Spread over all kinds, sizes and places, however few they are.
    drawn = []
    # Few are spread over all kinds, sizes, places and directions.
    for index in range(COUNT) if COUNT else range(5, 100, 11):
        pixels, ink, what = burned(index)
        drawn.append((keep(pixels, tmp_path / "in", index), pixels, ink, what))
    options = IntakeOptions(look_for_text="all", workers=2, seconds=300, chunk=4, near_duplicates="ignore")
    import_folder(tmp_path, tmp_path / "in", options)
    masked, kept_back, seen = outcome(tmp_path / "data", drawn)
    print(f"{masked} masked, {kept_back} kept back, {len(seen)} seen of {len(drawn)}: {seen}")  # noqa: T201
    assert len(seen) <= 0.02 * len(drawn)
