"""Damaged and hostile files of every kind through one import: none stops it, each is named, time and memory are bounded.

STLLAVA_MUTANTS=500 takes so many files and prints what became of them; STLLAVA_MUTANTS_SECONDS=120 instead of 10 is for a
machine so busy that sound files would run out of time.
"""

import gzip
import hashlib
import io
import json
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nibabel = pytest.importorskip("nibabel")
for library in ("pydicom", "tifffile"):
    pytest.importorskip(library)

import pydicom  # noqa: E402
import tifffile  # noqa: E402

from helpers.planted import Names, noise, write_slide  # noqa: E402
from stllava.config import IntakeOptions  # noqa: E402
from stllava.data.image_set import LeftOut, read_imported  # noqa: E402
from stllava.intake.convert import Toolbox, default_toolbox  # noqa: E402
from stllava.intake.deidentify.pseudonyms import hidden_id  # noqa: E402
from stllava.intake.readers.frame import Frame  # noqa: E402
from stllava.intake.run import import_images  # noqa: E402
from stllava.store import read_jsonl  # noqa: E402

COUNT = int(os.environ.get("STLLAVA_MUTANTS", "120"))
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
MEBIBYTE = 1 << 20
BUSY = "STLLAVA_MUTANTS_SECONDS" in os.environ
SECONDS, MEMORY = float(os.environ.get("STLLAVA_MUTANTS_SECONDS", "10")), 2.0
DICOMS = (
    "CT_small ExplVR_BigEnd MR_small_implicit MR_small_bigendian MR_small_RLE MR_small_jpeg_ls_lossless MR_small_jp2klossless"
    " image_dfl JPEG2000 SC_rgb_jpeg_gdcm SC_rgb_rle_32bit_2frame 693_J2KI nested_priv_SQ UN_sequence"
)
_WORDS = """
    bad-geometry blank broken-link burned-in-text damaged duplicate empty linked-twice missing near-constant no-level no-picture
    no-time-point no-tissue not-a-file not-an-image not-dicom tiny too-large too-much-memory too-slow truncated unreadable
    unsupported
"""
CAUSES = frozenset(_WORDS.split())
"""Every word that may be said of a file here; `crashed` is none of them."""


# --- good files, and what is done to them ----------------------------------------------------------------------------


def good(folder: Path) -> dict[str, bytes]:
    """One whole file of each kind by the ending of its name."""
    files = {f"{name}.dcm": (SHIPPED / f"{name}.dcm").read_bytes() for name in DICOMS.split()}
    volume = nibabel.Nifti1Image(noise(1, 40, 36, 5), np.diag([1, 1, 3, 1]))
    files["1.nii"] = volume.to_bytes()
    files["1.nii.gz"] = gzip.compress(volume.to_bytes(), mtime=0)
    files["2.nii"] = nibabel.Nifti2Image(noise(2, 40, 36, 5).astype(np.float32), np.eye(4)).to_bytes()
    kinds: dict[str, dict[str, object]] = {
        "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
        "jpeg.tif": {"format": "TIFF", "compression": "jpeg"},
        "8.png": {"format": "PNG", "dpi": (72, 72)},
        "baseline.jpg": {"format": "JPEG", "comment": b"comment"},
        "progressive.jpg": {"format": "JPEG", "progressive": True},
        "a.gif": {"format": "GIF"},
        "a.webp": {"format": "WEBP", "xmp": b"<x/>"},
        "a.bmp": {"format": "BMP"},
    }
    for number, (name, options) in enumerate(kinds.items()):
        buffer = io.BytesIO()
        Image.fromarray(noise(number, 40, 48, 3)).save(buffer, **options)  # type: ignore[arg-type]
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise(9, 40, 48, high=65536)).save(buffer, "PNG")
    files["16.png"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(noise(10, 40, 48)).quantize(16).save(buffer, "PNG")
    files["palette.png"] = buffer.getvalue()
    tifffile.imwrite(
        folder / "16.tif", noise(11, 3, 40, 48, high=65536), compression="zlib", bigtiff=True, photometric="minisblack"
    )
    files["16.tif"] = (folder / "16.tif").read_bytes()
    write_slide(folder / "a.svs", Names(), 12)
    files["a.svs"] = (folder / "a.svs").read_bytes()
    for path in folder.iterdir():
        path.unlink()
    return files


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _cut_late(data: bytes, rng: random.Random) -> bytes:
    return data[: len(data) - rng.randrange(1, max(2, len(data) // 50))]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    """Some bits turned over, half of them in the header."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 20)):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 600)
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _measured_wrong(data: bytes, rng: random.Random) -> bytes:
    """A few numbers of the header, lengths as a rule, as large or small as their bytes allow, or 2^31."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        number = rng.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        size = 4 if number > 0xFFFF else rng.choice((2, 4))
        at = rng.randrange(0, min(len(changed), 900)) & ~1
        changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(changed)


def _spliced(data: bytes, rng: random.Random) -> bytes:
    """A piece taken out, doubled, blanked or put elsewhere."""
    begin = rng.randrange(len(data))
    piece = data[begin : begin + rng.randrange(1, 400)]
    rest, at = data[:begin] + data[begin + len(piece) :], rng.randrange(len(data))
    return rng.choice(
        (
            rest,
            data[:begin] + piece + data[begin:],
            data[:begin] + bytes(len(piece)) + data[begin + len(piece) :],
            rest[:at] + piece + rest[at:],
        )
    )


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_cut, _cut_late, _flipped, _measured_wrong, _spliced)


# --- bombs and traps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trap:
    """A file made to do harm, and what may be said of it."""

    name: str
    data: bytes
    causes: str
    slow: bool = False
    """Whether it may take its ten seconds."""


def zeros(mebibytes: int) -> bytes:
    """A raw deflate stream of so many mebibytes of zeros, a thousandth of that long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (packer.compress(bytes(MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)) * mebibytes + b"\3\0"


def zlib_zeros(mebibytes: int) -> bytes:
    """The same as a zlib stream with its true checksum."""
    size = mebibytes * MEBIBYTE
    return b"\x78\xda" + zeros(mebibytes) + struct.pack(">I", size % 65521 << 16 | 1)


def gzip_zeros(before: bytes, mebibytes: int) -> bytes:
    """A gzip file of some bytes and zeros behind them; its checksum is never reached, or else wrong."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\3" + _stored(before) + zeros(mebibytes) + bytes(8)


def _stored(data: bytes) -> bytes:
    return b"\0" + struct.pack("<HH", len(data), 0xFFFF ^ len(data)) + data


def png_of(width: int, height: int, packed: bytes, *, depth: int = 8, colour: int = 0, more: bytes = b"") -> bytes:
    """A PNG that announces this and holds that."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def tiff_of(tags: dict[int, tuple[int, int, int]], *, pages: int = 1, circle: bool = False, rest: bytes = b"") -> bytes:
    """A TIFF whose pages have these tags (type, count, value); the last page leads nowhere, or to the first."""
    size = 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    table = b"".join(
        struct.pack("<H", len(tags)) + entries + struct.pack("<I", 8 + size * at if at < pages else 8 * circle)
        for at in range(1, pages + 1)
    )
    return b"II*\0" + struct.pack("<I", 8) + table + rest


def _tags(width: int, height: int, **more: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    plain = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height % (1 << 32)}
    return {tag: (4, 1, value) for tag, value in plain.items()} | {int(tag[1:]): entry for tag, entry in more.items()}


def traps(files: dict[str, bytes]) -> Iterator[Trap]:
    """Announced sizes, packed zeros, circles and crowds."""
    most, noisy = 0x7FFFFFFF, zlib.compress(b"\0" + bytes(40))
    yield Trap("announced.png", png_of(most, most, noisy), "too-large")
    yield Trap("long.png", png_of(1, most, noisy), "too-large")
    yield Trap("deep.png", png_of(most, 40, noisy, depth=16), "too-large")
    yield Trap("more.png", png_of(40, 40, zlib_zeros(300)), "blank unreadable")
    yield Trap("text.png", png_of(40, 40, noisy, more=_chunk(b"zTXt", b"a\0\0" + zlib_zeros(300))), "unreadable")
    yield Trap("words.png", png_of(40, 40, noisy, more=_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib_zeros(300))), "unreadable")
    yield Trap("profile.png", png_of(40, 40, noisy, more=_chunk(b"iCCP", b"a\0\0" + zlib_zeros(300))), "unreadable truncated")
    yield Trap("chunk.png", files["8.png"][:33] + b"\x80\0\0\0tEXt" + files["8.png"][33:], "unreadable truncated")
    yield Trap(
        "frames.png", png_of(40, 40, noisy, more=_chunk(b"acTL", struct.pack(">II", most, 0))), "blank truncated unreadable"
    )
    jpeg = files["baseline.jpg"]
    at = jpeg.index(b"\xff\xc0") + 5
    yield Trap("announced.jpg", jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], "too-large")
    yield Trap("announced.gif", files["a.gif"][:6] + b"\xff\xff\xff\xff" + files["a.gif"][10:], "too-large")
    yield Trap("announced.bmp", files["a.bmp"][:18] + struct.pack("<ii", most, -most) + files["a.bmp"][26:], "too-large")
    yield Trap("announced.tif", tiff_of(_tags(most, most)), "too-large truncated unreadable unsupported")
    yield Trap("bytes.tif", tiff_of(_tags(40, 40, _279=(4, 1, most)), rest=bytes(1600)), "blank")
    yield Trap("count.tif", tiff_of(_tags(40, 40, _65000=(12, most, 8))), "blank near-constant truncated unreadable")
    yield Trap("strips.tif", tiff_of(_tags(40, 40, _273=(4, most, 8), _279=(4, most, 8))), "truncated unreadable")
    yield Trap("circle.tif", tiff_of(_tags(40, 40), pages=3, circle=True, rest=bytes(1600)), "near-constant duplicate")
    yield Trap("crowd.tif", tiff_of(_tags(40, 40), pages=12_000, rest=bytes(1600)), "too-large")
    tile = {"_322": (4, 1, 1 << 20), "_323": (4, 1, 1 << 20), "_324": (4, 1, 8), "_325": (4, 1, 100)}
    yield Trap("tile.tif", tiff_of(_tags(1 << 20, 1 << 20, **tile)), "too-large")
    frame = b"!\xf9\4\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    yield Trap("crowd.gif", files["a.gif"][:-1] + frame * 20_000 + b";", "")
    head = bytearray(files["1.nii"][:352])
    struct.pack_into("<8h", head, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    yield Trap("announced.nii", bytes(head), "too-large")
    yield Trap("announced.nii.gz", gzip_zeros(bytes(head), 40), "too-large")
    struct.pack_into("<8h", head, 40, 3, 64, 64, 2, 1, 1, 1, 1)
    yield Trap("endless.nii.gz", gzip_zeros(bytes(head), 1024), "blank")
    struct.pack_into("<f", head, 108, 1e9)
    yield Trap("far.nii.gz", gzip_zeros(bytes(head), 1024), "unreadable")
    second = bytearray(files["2.nii"])
    struct.pack_into("<8q", second, 16, 3, most, most, most, 1, 1, 1, 1)
    yield Trap("announced-2.nii", bytes(second), "too-large unreadable")
    yield from _dicom_traps(files)
    yield Trap("zeros.gz", gzip_zeros(b"", 1024), "not-an-image")
    yield Trap("zeros.z", zlib_zeros(64), "not-an-image")
    yield Trap("script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run", "not-an-image")
    yield Trap("wide.svg", b"<svg width='2147483647'/>", "not-an-image")
    struct.pack_into("<8h", head, 40, 3, 1000, 1000, 1000, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    yield Trap("gigabyte.nii.gz", gzip_zeros(bytes(head), 1024), "blank too-much-memory too-slow", slow=True)
    yield Trap(
        "black.png", png_of(8000, 7999, zlib_zeros(490), depth=16, colour=6), "blank too-much-memory too-slow", slow=True
    )


def _dicom_traps(files: dict[str, bytes]) -> Iterator[Trap]:
    plain, packed = files["CT_small.dcm"], files["image_dfl.dcm"]
    rows, columns = b"\x28\0\x10\0US\2\0", b"\x28\0\x11\0US\2\0"
    huge = plain
    for tag in (rows, columns):
        at = huge.index(tag) + len(tag)
        huge = huge[:at] + b"\xff\xff" + huge[at + 2 :]
    yield Trap("announced.dcm", huge, "too-large")
    at = plain.index(rows)
    crowd = plain[:at] + b"\x28\0\x08\0IS\x0a\x002147483647"[:18] + plain[at:]
    yield Trap("crowd.dcm", crowd, "truncated unsupported duplicate")
    end = 144 + int.from_bytes(packed[140:144], "little")
    yield Trap("zeros.dcm", packed[:end] + zeros(700), "too-large too-slow")
    at = plain.index(b"\xe0\x7f\x10\0OW")
    yield Trap("length.dcm", plain[: at + 8] + struct.pack("<I", 0x80000000) + plain[at + 12 :], "truncated damaged duplicate")
    deep = b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 4000
    at = plain.index(b"\xe0\x7f\x10\0OW")
    yield Trap("nested.dcm", plain[:at] + deep, "damaged no-picture truncated")
    stream = files["JPEG2000.dcm"]
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    yield Trap("stream.dcm", stream[:at] + b"\x7f\xff\xff\xff" * 2 + stream[at + 8 :], "damaged")
    long = b"\x10\0\x10\x40UT\0\0" + struct.pack("<I", 0x7FFFFFFE) + b"name"
    at = plain.index(b"\x28\0\x02\0")
    yield Trap("text.dcm", plain[:at] + long, "damaged no-picture truncated")


# --- one import of all -----------------------------------------------------------------------------------------------


def write(folder: Path, count: int) -> dict[Path, Trap | None]:
    """So many files, each with what is known of it: traps, then mutants of the good files in turn."""
    files = good(folder)
    made: dict[Path, Trap | None] = {}
    for trap in traps(files):
        if count >= 500 or not trap.slow:
            made[folder / trap.name] = trap
            (folder / trap.name).write_bytes(trap.data)
    assert len(made) < count
    kinds = list(files.items())
    for index in range(count - len(made)):
        name, data = kinds[index % len(kinds)]
        mutation = MUTATIONS[(index + index // len(kinds)) % len(MUTATIONS)]
        # Names are traps too: their newlines, quotes and escapes must not matter.
        mark = ("", "\n", "\x1b[2J", "'\"", "%s{0}", " \\")[index % 6]
        path = folder / f"{index:03d}{mark}{mutation.__name__} {name}"
        path.write_bytes(mutation(data, random.Random(index)))
        made[path] = None
    return made


def write_oddities(folder: Path) -> dict[Path, str]:
    """What a tree may hold beside files that can be read, with the cause that each must have."""
    deep = folder
    for _ in range(200):
        deep /= "deep"
    deep.mkdir(parents=True)
    named = {
        "empty.png": "empty",
        "pipe": "not-a-file",
        "socket": "not-a-file",
        "self": "broken-link",
        "nowhere\n": "broken-link",
        "up": "linked-twice",
        "a/b/back": "linked-twice",
        "b": "linked-twice",
        "zip.zip": "not-an-image",
    }
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe")
    here = Path.cwd()
    # The name of a socket may be a hundred letters long at most.
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
    finally:
        os.chdir(here)
    for name, target in (("self", "self"), ("nowhere\n", "gone"), ("up", "."), ("a/b/back", ".."), ("b", "a/b")):
        (folder / name).symlink_to(target)
    (folder / "zip.zip").write_bytes(b"PK\3\4" + zeros(50))
    (folder / ("n" * 251 + ".bin")).write_bytes(b"no picture")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe\n.bin")).write_bytes(b"none either")
    return {folder / name: cause for name, cause in named.items()}


def timed(options: IntakeOptions, *, log: Path) -> Toolbox:
    """The real readers, each of which notes the seconds of work that a file took."""
    toolbox = default_toolbox(options)

    def read(reader: Callable[[Path], Iterable[Frame]], path: Path) -> Iterator[Frame]:
        spent, frames = 0.0, iter(reader(path))
        try:
            while True:
                begun = time.process_time()
                try:
                    frame = next(frames)
                except StopIteration:
                    return
                finally:
                    spent += time.process_time() - begun
                yield frame
        finally:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps([round(spent, 3), path.name]) + "\n")

    return replace(toolbox, readers={kind: partial(read, reader) for kind, reader in toolbox.readers.items()})


@contextmanager
def watched() -> Iterator[list[int]]:
    """A list of one number that becomes the largest peak memory of all processes below this one, in bytes."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], *(_peak(process) for process in _below(os.getpid())), 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _below(process: int) -> set[int]:
    """Ids of all processes that this one started, and those started."""
    above: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name, in brackets, may hold anything.
                above[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: set[int] = {process}
    while more := {one for one, parent in above.items() if parent in found} - found:
        found |= more
    return found - {process}


def _peak(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by /proc")
def test_damaged_and_hostile_files_are_named_and_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "in" / "mutants").mkdir(parents=True)
    made = write(tmp_path / "in" / "mutants", COUNT)
    odd = write_oddities(tmp_path / "in")
    options = IntakeOptions(
        look_for_text="rules", workers=2, seconds=SECONDS, memory=MEMORY, smallest=8, contrast=0, near_duplicates="ignore"
    )
    salt = tmp_path / "keys" / "salt"
    begun = time.monotonic()
    with watched() as peak:
        manifest = import_images(
            options,
            source=tmp_path / "in",
            to=tmp_path / "data",
            salt=salt,
            existing="resume",
            make=partial(timed, log=tmp_path / "seconds.jsonl"),
        )
    took = time.monotonic() - begun
    (files,) = salt.parent.glob("*.files.jsonl")
    numbers = {Path(path): number for number, path, *_ in map(json.loads, files.read_text().splitlines())}
    rows, left = read_imported(tmp_path / "data"), read_jsonl(tmp_path / "data" / "left_out.jsonl", LeftOut)
    causes: dict[int, list[str]] = {}
    for one in left:
        causes.setdefault(one.number, []).append(one.cause)
    details = "".join(path.read_text() for path in salt.parent.glob("*.details.jsonl"))

    slow = [path.name for path, number in numbers.items() if "too-slow" in causes.get(number, [])]
    spent = sorted(json.loads(line) for line in (tmp_path / "seconds.jsonl").read_text().splitlines())[::-1]
    print(  # noqa: T201 - the figures for the docs
        f"{len(numbers)} files, {len(rows)} pictures, left out: {dict(sorted(manifest.dropped.items()))}; {took:.0f} s in all; "
        f"too slow: {slow}; slowest of the others: {spent[:5]}; largest process: {peak[0] / MEBIBYTE:.0f} MiB"
    )

    # Every file is there, and is written or named with a cause that is known.
    assert set(made) | set(odd) <= set(numbers)
    assert {one.cause for one in left} <= CAUSES, details
    written = _numbers_written(tmp_path / "data", salt, numbers)
    assert [path for path, number in numbers.items() if number not in causes and number not in written] == []
    assert {path.name: causes[numbers[path]] for path in odd} == {path.name: [cause] for path, cause in odd.items()}
    for path, trap in made.items():
        if trap is not None:
            told = causes.get(numbers[path], [])
            late = {"too-slow"} if BUSY else set()
            assert set(told) <= set(trap.causes.split()) | late, (trap.name, told)
            assert told or numbers[path] in written, trap.name

    # What is counted adds up, and what is written can be opened.
    assert manifest.counts_in == len(numbers)
    assert manifest.counts_out == len(rows) == len(list((tmp_path / "data" / "images").rglob("*.png")))
    assert manifest.dropped == dict(Counter(one.cause for one in left))
    for row in rows:
        with Image.open(tmp_path / "data" / row.path) as image:
            image.load()
            assert image.size == (row.width, row.height)
    assert len(written & {numbers[path] for path, trap in made.items() if trap is None}) > COUNT / 10

    assert BUSY or took < 60 + 2 * COUNT + (SECONDS + 5) * len(slow)
    assert spent[0][0] < SECONDS + 1
    # The readers themselves take some 300 MiB before the first file.
    assert 0 < peak[0] < (MEMORY + 0.5) * 1024 * MEBIBYTE


def _numbers_written(data: Path, salt: Path, numbers: dict[Path, int]) -> set[int]:
    """The files of which there is a picture."""
    sources, secret = {row.source for row in read_imported(data)}, salt.read_bytes()
    return {
        number
        for path, number in numbers.items()
        if path.is_file() and hidden_id(secret, "source", hashlib.sha256(path.read_bytes()).hexdigest()) in sources
    }
