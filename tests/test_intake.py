"""The importer: any tree in, a de-identified set out, whatever hangs, crashes or is killed on the way."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from helpers.intake_parts import FAST, import_folder, toolbox
from stllava.cli import main
from stllava.config import IntakeOptions
from stllava.config.intake import SplitShares
from stllava.data.folder import images_in
from stllava.data.image_set import Imported, LeftOut, is_imported, read_imported, training
from stllava.data.likeness import NEAR
from stllava.errors import StllavaError
from stllava.intake.encode import png
from stllava.intake.quality import CopyIndex, fault, pixel_digest
from stllava.intake.run import import_images
from stllava.intake.splits import UnionFind, split_of
from stllava.intake.walk import walk
from stllava.store import read_jsonl

SIDE = 48


def noise(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def left_out(folder: Path) -> list[LeftOut]:
    return read_jsonl(folder / "data" / "left_out.jsonl", LeftOut)


def private_name(folder: Path, number: int) -> str:
    (files,) = (folder / "keys").glob("*.files.jsonl")
    return Path(json.loads(files.read_text().splitlines()[number])[1]).name


def test_the_written_pixels_are_those_that_were_read_and_the_line_tells_of_them(tmp_path: Path) -> None:
    pixels = noise(1)
    save(tmp_path / "in" / "Doe_study_20200101_a.png", pixels)
    manifest = import_folder(tmp_path)
    (row,) = read_imported(tmp_path / "data")
    assert (np.asarray(Image.open(tmp_path / "data" / row.path)) == pixels).all()
    assert (row.width, row.height, row.modality, row.body_part, row.interval) == (SIDE, SIDE, "CR", "chest", 0)
    assert (manifest.counts_in, manifest.counts_out, manifest.dropped) == (1, 1, {})
    assert is_imported(tmp_path / "data")


def test_no_byte_of_the_output_holds_a_name_a_path_or_a_day(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "in" / "Zaphodson family" / f"Zaphodson_st{number}_2019030{number + 1}_x.png", noise(number))
    (tmp_path / "in" / "Zaphodson letter.txt").write_text("of Zaphodson")
    save(tmp_path / "in" / "breaks.Zaphodson.png", noise(9))
    import_folder(tmp_path)
    written = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(written) > 6
    for path in written:
        data = path.read_bytes() + str(path.relative_to(tmp_path)).encode()
        assert not [word for word in (b"aphodson", b"2019030", b"20190301", str(tmp_path).encode()) if word in data], path


def test_days_become_intervals_from_the_patients_first_study(tmp_path: Path) -> None:
    for patient, study, day in (("a", "1", "20200228"), ("a", "2", "20200301"), ("b", "3", "20210101"), ("b", "4", "bad")):
        save(tmp_path / "in" / f"{patient}_{study}_{day}_.png", noise(int(study)))
    import_folder(tmp_path)
    found = sorted((row.patient, row.interval or 0, row.interval is None) for row in read_imported(tmp_path / "data"))
    first, other = sorted({patient for patient, *_ in found})
    assert {tuple(at[1:] for at in found if at[0] == one) for one in (first, other)} == {
        ((0, False), (2, False)),
        ((0, False), (0, True)),
    }


def test_every_file_that_is_no_use_is_named_with_its_cause_and_the_rest_comes_in(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("hangs", "crashes", "eats", "breaks"):
        save(source / f"{name}.png", noise(hash(name) % 7))
    (source / "empty.png").touch()
    (source / "cut.png").write_bytes(save(tmp_path / "whole.png", noise(8)).read_bytes()[:300])
    (source / "notes\nof a day.txt").write_text("no picture")
    save(source / "blank.png", np.full((SIDE, SIDE), 7, np.uint8))
    save(source / "dull.png", np.where(noise(2) > 128, 100, 102).astype(np.uint8))
    save(source / "small.png", noise(3, side=8))
    save(source / "p_1__twoframes.png", noise(4))
    os.mkfifo(source / "pipe")
    (source / "loop").symlink_to(source)
    (source / "self").symlink_to(source / "self")
    good = save(source / "good_1_.png", noise(5))
    (source / "copy_2_.png").write_bytes(good.read_bytes())
    manifest = import_folder(tmp_path)
    causes = {private_name(tmp_path, row.number): row.cause for row in left_out(tmp_path)}
    kept = causes.pop("copy_2_.png", None) or causes.pop("good_1_.png")
    assert kept == "duplicate"
    assert causes == {
        "hangs.png": "too-slow",
        "crashes.png": "crashed",
        "eats.png": "too-much-memory",
        "breaks.png": "unreadable",
        "empty.png": "empty",
        "cut.png": "truncated",
        "notes\nof a day.txt": "not-an-image",
        "blank.png": "blank",
        "dull.png": "near-constant",
        "small.png": "tiny",
        "p_1__twoframes.png": "truncated",
        "pipe": "not-a-file",
        "loop": "linked-twice",
        "self": "broken-link",
    }
    assert len(read_imported(tmp_path / "data")) == 3
    assert manifest.dropped["duplicate"] == 1
    assert sum(manifest.dropped.values()) == 15


def test_a_file_is_left_out_for_the_time_it_runs_and_not_for_the_time_it_waits_for_a_core(tmp_path: Path) -> None:
    for number, name in enumerate(("spins", "crowded")):
        save(tmp_path / "in" / f"{name}.png", noise(number))
    import_folder(tmp_path)
    assert {private_name(tmp_path, row.number): row.cause for row in left_out(tmp_path)} == {"spins.png": "too-slow"}


def test_a_missing_reader_stops_the_import_with_its_remedy(tmp_path: Path) -> None:
    save(tmp_path / "in" / "lacks.png", noise(1))
    with pytest.raises(StllavaError, match="Install it"):
        import_folder(tmp_path)


def test_a_killed_import_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in range(60):
        save(tmp_path / "in" / f"p{number % 9}_s{number % 20}_2020010{number % 9 + 1}_{number}.png", noise(number % 50, 256))
    import_folder(tmp_path, to="whole")
    call = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from helpers.intake_parts import import_folder\nif __name__ == '__main__': import_folder(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", call, str(tmp_path), *sys.path]
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            at = tmp_path / "data" / "parts"
            before = len(list(at.glob("*.jsonl")))
            for _ in range(2000):
                if len(list(at.glob("*.jsonl"))) > before or process.poll() is not None:
                    break
                time.sleep(0.005)
            process.kill()
    assert not (tmp_path / "data" / "manifest.json").exists()
    (tmp_path / "data" / "images" / "00").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "images" / "00" / ".torn.png.1.draft").touch()
    manifest = import_folder(tmp_path)
    one, other = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "data")
    )
    assert one.keys() == other.keys()
    assert [name for name in one if name != "manifest.json" and one[name] != other[name]] == []
    assert manifest.counts_out == 50
    assert manifest.dropped == {"duplicate": 10}


def test_one_worker_and_three_give_the_same_lists(tmp_path: Path) -> None:
    for number in range(9):
        save(tmp_path / "in" / f"p{number}__.png", noise(number))
    import_folder(tmp_path, FAST.model_copy(update={"workers": 1}), to="one")
    import_folder(tmp_path, FAST.model_copy(update={"workers": 3}), to="three")
    assert (tmp_path / "one" / "images.jsonl").read_bytes() == (tmp_path / "three" / "images.jsonl").read_bytes()


def test_other_options_than_the_unfinished_ones_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(1))
    import_folder(tmp_path)
    with pytest.raises(StllavaError, match="smallest was 32, now 16"):
        import_folder(tmp_path, FAST.model_copy(update={"smallest": 16}))


@pytest.mark.parametrize(
    ("to", "salt"), [("in/data", "keys/salt"), ("data", "data/salt"), ("data", "in/salt"), (".", "keys/salt")]
)
def test_source_output_and_salt_lie_apart(to: str, salt: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(StllavaError, match="lies inside"):
        import_images(FAST, source=tmp_path / "in", to=tmp_path / to, salt=tmp_path / salt, existing="resume", make=toolbox)


def test_no_patient_is_in_two_splits_and_the_shares_are_roughly_kept(tmp_path: Path) -> None:
    for number in range(90):
        save(tmp_path / "in" / f"p{number % 30}_s{number}_.png", noise(number, 33))
    manifest = import_folder(tmp_path, FAST.model_copy(update={"chunk": 30, "splits": SplitShares(train=0.5, test=0.5)}))
    rows = read_imported(tmp_path / "data")
    assert len({(row.patient, row.split) for row in rows}) == 30
    assert {row.split for row in rows} == {"train", "test"}
    assert manifest.measures["patients"] == 30
    assert training(tmp_path / "data") == [row for row in rows if row.split == "train"]


@pytest.mark.parametrize(("choice", "kept"), [("mark", 2), ("drop", 1), ("ignore", 2)])
def test_a_near_copy_is_named_or_left_out_and_stays_with_its_like(choice: str, kept: int, tmp_path: Path) -> None:
    pixels = np.asarray(Image.fromarray(noise(1, 48)).resize((96, 96), Image.Resampling.BICUBIC))
    save(tmp_path / "in" / "p1_.png", pixels)
    save(tmp_path / "in" / "p2_.png", (pixels * 0.97).astype(np.uint8))
    import_folder(tmp_path, FAST.model_copy(update={"near_duplicates": choice}))
    rows = read_imported(tmp_path / "data")
    assert len(rows) == kept == len(list((tmp_path / "data" / "images").rglob("*.png")))
    assert [row.near for row in rows[1:]] == ([rows[0].id] if choice == "mark" else [None])[: kept - 1]
    assert [row.of for row in left_out(tmp_path)] == ([rows[0].id] if choice == "drop" else [])
    if choice == "mark":
        assert len({row.split for row in rows}) == 1


def test_the_card_counts_what_there_is_and_adds_no_picture_file(tmp_path: Path) -> None:
    for number in range(7):
        save(tmp_path / "in" / f"p{number}_.png", noise(number))
    (tmp_path / "in" / "x.txt").write_text("x")
    import_folder(tmp_path)
    text, page = ((tmp_path / "data" / name).read_text() for name in ("README.md", "card.html"))
    assert "| CR | 7 |" in text
    assert "| not-an-image | 1 |" in text
    assert "| up to 64 pixels | 7 |" in text
    assert "data:image/jpeg;base64," in page
    assert len(list((tmp_path / "data").rglob("*.png"))) == 7
    assert not list((tmp_path / "data").rglob("*.jp*g"))


@pytest.mark.parametrize("level", [0, 1, 6])
@pytest.mark.parametrize("shape", [(33, 57), (40, 35, 3)])
def test_every_level_of_png_gives_the_pixels_back(level: int, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(png(pixels, level))) as image:
        assert image.mode == ("L" if len(shape) == 2 else "RGB")
        assert (np.asarray(image) == pixels).all()


def test_jpeg_is_written_when_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "in" / "p_.png", noise(1))
    import_folder(tmp_path, FAST.model_copy(update={"format": "jpeg"}))
    (row,) = read_imported(tmp_path / "data")
    with Image.open(tmp_path / "data" / row.path) as image:
        assert image.format == "JPEG"


def test_a_walk_lists_each_file_once_in_the_order_of_bytes_and_never_ends_up_in_a_circle(tmp_path: Path) -> None:
    for name in ("b/z", "b/a\nb", "a", "é", "c"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far").write_bytes(b"x")
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "tree" / "up").symlink_to("..")
    inside = [("a", None), ("c", None), ("é", None), ("b/a\nb", None), ("b/z", None)]
    out = [("link", "link-out-of-folder"), ("up", "link-out-of-folder")]
    followed = [("link/far", None), ("up/tree", "linked-twice"), ("up/outside", "linked-twice"), ("link/back", "linked-twice")]
    for outside, wanted in ((False, out), (True, followed)):
        found = list(walk(tmp_path / "tree", outside=outside))
        names = [(at.path.relative_to(tmp_path / "tree").as_posix(), at.cause) for at in found]
        assert names[:5] == inside
        assert sorted(names[5:]) == sorted(wanted)


def test_links_out_of_the_folder_are_left_out_and_said_or_followed_when_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "in" / "p1_.png", noise(1))
    save(tmp_path / "elsewhere" / "p2_.png", noise(2))
    save(tmp_path / "elsewhere" / "deep" / "p3_.png", noise(3))
    (tmp_path / "in" / "file.png").symlink_to(tmp_path / "elsewhere" / "p2_.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "sibling").symlink_to("p1_.png")
    (tmp_path / "in" / "gone").symlink_to("nowhere")
    kept = import_folder(tmp_path)
    assert kept.counts_out == 1
    assert kept.dropped == {"link-out-of-folder": 2, "broken-link": 1, "duplicate": 1}
    assert any("Links out of the folder that were not followed: 2;" in note for note in kept.notes)
    followed = import_folder(tmp_path, FAST.model_copy(update={"links": "anywhere"}), to="all")
    assert followed.counts_out == 3
    assert not any("Links out" in note for note in followed.notes)


def test_names_that_are_not_utf8_come_in(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = save(tmp_path / "x.png", noise(1)).read_bytes()
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff\xfe.png")).write_bytes(data)
    assert import_folder(tmp_path).counts_out == 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1023), st.integers(0, 80)), max_size=12), st.integers(0, 99))
def test_the_index_finds_exactly_the_near_pairs_that_comparing_all_finds(copies: list[tuple[int, int, int]], seed: int) -> None:
    import tempfile

    random = np.random.default_rng(seed)
    bases = [int.from_bytes(random.bytes(128)) for _ in range(4)]
    pictures: list[int | None] = [None, *bases]
    for base, start, flips in copies:
        mask = sum(1 << (start + 7 * step) % 1024 for step in range(flips))
        pictures.append(bases[base] ^ mask)
    pictures.append(None)
    with tempfile.TemporaryDirectory() as folder:
        with CopyIndex(Path(folder)) as index:
            for number, picture in enumerate(pictures):
                index.add(number.to_bytes(16), picture)
        found = index.near_copies().tolist()
    wanted = []
    for at, one in enumerate(pictures):
        near = (
            other
            for other in range(at)
            if one is not None and (two := pictures[other]) is not None and (one ^ two).bit_count() <= NEAR
        )
        wanted.append(next(near, -1))
    assert found == wanted


def test_the_index_tells_the_first_of_equal_pictures(tmp_path: Path) -> None:
    digests = [pixel_digest(noise(seed)) for seed in (1, 2, 1, 3, 2, 1)]
    with CopyIndex(tmp_path) as index:
        for digest in digests:
            index.add(digest, None)
    assert index.copies().tolist() == [0, 1, 0, 3, 1, 0]
    assert pixel_digest(np.zeros((2, 3), np.uint8)) != pixel_digest(np.zeros((3, 2), np.uint8))


def test_a_colour_picture_with_one_lively_channel_is_no_fault_and_a_few_specks_are_one() -> None:
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    colour[..., 2] = noise(1)
    assert fault(colour, IntakeOptions()) is None
    specks = np.full((200, 200), 50, np.uint8)
    specks[0, :40] = 255
    assert fault(specks, IntakeOptions()) == "near-constant"
    assert fault(np.zeros((40, 40), np.uint8), IntakeOptions(largest=1000)) == "huge"


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), max_size=10), st.randoms())
def test_groups_do_not_depend_on_the_order_in_which_ties_are_met(ties: list[list[str]], random: object) -> None:
    one, other = UnionFind(), UnionFind()
    for tie in ties:
        one.union_all(tie)
    for tie in reversed(ties):
        other.union_all(tie[::-1])
    assert [one.find(member) for member in "abcdefgh"] == [other.find(member) for member in "abcdefgh"]
    for tie in ties:
        assert len({one.find(member) for member in tie}) == 1


def test_splits_take_their_shares_of_many_groups_and_an_empty_share_nothing() -> None:
    drawn = [split_of(f"{number:016x}", {"train": 0.7, "none": 0.0, "test": 0.3}) for number in range(4000)]
    # Three standard deviations of 4,000 draws at 0.3 are 0.022.
    assert abs(drawn.count("test") / 4000 - 0.3) < 0.022
    assert drawn.count("none") == 0


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        IntakeOptions.model_validate({"splits": {"train": 0.5}})


def test_a_row_of_the_set_survives_its_file(tmp_path: Path) -> None:
    save(tmp_path / "in" / "p_s_20200101_.png", noise(1))
    import_folder(tmp_path)
    line = (tmp_path / "data" / "images.jsonl").read_text()
    assert Imported.model_validate_json(line).model_dump_json() + "\n" == line


def test_of_an_imported_set_the_pictures_to_learn_from_are_listed(tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / "in" / f"patient{number}_.png", noise(number))
    import_folder(tmp_path, FAST.model_copy(update={"splits": SplitShares(train=0.5, test=0.5)}))
    rows = {row.path: row.split for row in read_imported(tmp_path / "data")}
    assert set(rows.values()) == {"train", "test"}
    learned = sorted(f"data/{path}" for path, split in rows.items() if split == "train")
    assert [image.path for image in images_in(tmp_path, Path("data"))] == learned
    import_folder(tmp_path, FAST.model_copy(update={"splits": SplitShares(train=1.0)}), to="whole")
    assert len(images_in(tmp_path, Path("whole"))) == len(images_in(tmp_path / "whole", None)) == 12


def test_the_command_says_so_when_no_picture_came_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    words = ["import", "images", str(tmp_path / "in"), "--to", str(tmp_path / "set"), "--salt", str(tmp_path / "salt")]
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            main([*words, "--look-for-text", "rules"])
        assert left.value.code == 2
        assert "nothing that can be used came of the 1 files" in capsys.readouterr().err
