"""The disk: whole files, resume, locks."""

import ast
import errno
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers.plain_work import PlainWork
from stllava import store
from stllava.config import PairOptions
from stllava.dropped import Dropped
from stllava.errors import ConflictError, StllavaError
from stllava.progress import Progress
from stllava.records import Image
from stllava.store import (
    LOCK,
    MANIFEST,
    PARTS,
    PLAN,
    Existing,
    Stage,
    locked,
    output_hash,
    read_jsonl,
    read_manifest,
    read_records,
    write_whole,
)

IMAGES = [Image(id=f"i{number}", path=f"{number}.png") for number in range(10)]


def begin(to: Path, *, margin: float = 0.5, existing: Existing = "resume") -> Stage:
    return Stage("copy", to, PairOptions(margin=margin), inputs={}, existing=existing)


def copy(stage: Stage, *, stop_after: int | None = None) -> list[int]:
    """Copy the images in chunks of three; returns the sizes of the chunks that were worked on."""
    worked: list[int] = []

    def work(chunk: Sequence[Image]) -> tuple[list[Image], Dropped]:
        if stop_after is not None and len(worked) == stop_after:
            raise KeyboardInterrupt
        worked.append(len(chunk))
        kept = [Image(id=f"{image.id}-copy", path=image.path) for image in chunk if image.id != "i4"]
        return kept, Dropped({"unlucky": len(chunk) - len(kept)})

    made = stage.map_chunks(IMAGES, PlainWork(work), record_type=Image, size=3, unit="images", max_bad=0.05)
    stage.write_records("images", made.records)
    stage.finish(counts_in=len(IMAGES), counts_out=made.count, dropped=made.dropped)
    return worked


def test_a_stopped_stage_goes_on_and_gives_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    copy(begin(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        copy(begin(tmp_path / "stopped"), stop_after=2)
    assert not (tmp_path / "stopped" / MANIFEST).exists()
    assert copy(begin(tmp_path / "stopped")) == [3, 1]
    one, other = (tmp_path / name for name in ("whole", "stopped"))
    assert (one / "images.jsonl").read_bytes() == (other / "images.jsonl").read_bytes()
    assert read_manifest(one).dropped == read_manifest(other).dropped == {"unlucky": 1}


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    copy(begin(tmp_path))
    assert begin(tmp_path).manifest is not None


def test_output_of_other_options_is_refused_by_the_name_of_the_option(tmp_path: Path) -> None:
    copy(begin(tmp_path))
    with pytest.raises(StllavaError, match=r"config\.margin was 0\.5, now 0\.7"):
        begin(tmp_path, margin=0.7)
    assert len(read_records(tmp_path, "images", Image)) == 9


def test_output_is_replaced_or_refused_as_asked(tmp_path: Path) -> None:
    copy(begin(tmp_path))
    with pytest.raises(StllavaError, match="has output already"):
        begin(tmp_path, existing="error")
    assert begin(tmp_path, margin=0.7, existing="replace").manifest is None
    assert not (tmp_path / "images.jsonl").exists()


def test_a_stage_that_was_killed_as_it_wrote_its_plan_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".plan.json.123.draft").write_text('{"stage": "as', encoding="utf-8")
    begin(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_folder_of_other_files_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(StllavaError, match="not of stllava"):
        begin(tmp_path, existing="replace")
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_a_stage_without_a_manifest_is_not_read(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(StllavaError, match=r"no manifest\.json"):
        read_records(tmp_path, "images", Image)


def test_a_file_changed_after_its_manifest_is_not_read(tmp_path: Path) -> None:
    copy(begin(tmp_path))
    with (tmp_path / "images.jsonl").open("a") as file:
        file.write('{"id": "x", "path": "x.png"}\n')
    with pytest.raises(StllavaError, match="not the file that its manifest names"):
        read_records(tmp_path, "images", Image)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"id": "b", "path": ', "line 2: Invalid JSON"),
        ('{"id": "b"}', "line 2: Field required at 'path'"),
        ('{"id": "b", "path": "b", "pth": 1}', "line 2: Extra inputs are not permitted at 'pth'"),
        ('{"id": "a", "path": "b"}', "line 2: id 'a' stands in line 1 already"),
    ],
    ids=["broken JSON", "missing key", "unknown key", "duplicate id"],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "images.jsonl"
    path.write_text('{"id": "a", "path": "a"}\n' + line + "\n")
    with pytest.raises(StllavaError) as caught:
        read_jsonl(path, Image)
    assert fault in str(caught.value)


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(StllavaError, match="in use by another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "file", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StllavaError, match=r"no space left.*finished work is kept"):
        write_whole(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_what_is_finished_can_be_read_back_from_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path):
        copy(begin(tmp_path))
    whole = Path.open

    def refuse(self: Path, mode: str = "r", *words: object, **named: object) -> object:
        if mode not in ("r", "rb"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return whole(self, mode, *words, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with locked(tmp_path):
        assert begin(tmp_path).manifest is not None
    with pytest.raises(StllavaError, match="mounted read-only"), locked(tmp_path):
        write_whole(tmp_path / "more", "data")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "no space left while writing .*Make room"),
        (errno.EDQUOT, "no space left while writing .*Make room"),
        (errno.EFBIG, "grows larger than the system allows.*ulimit -f"),
        (errno.EROFS, "lies on a disk that is mounted read-only"),
        (errno.EACCES, "no permission for .*Change its owner or mode"),
        (errno.EPERM, "no permission for "),
        (errno.EIO, "the disk failed at "),
        (errno.EMFILE, "too many files are open .*ulimit -n"),
    ],
    ids=errno.errorcode.get,
)
@pytest.mark.parametrize("where", ["mkdir", "replace", "open"])
def test_what_the_disk_refuses_is_said_in_words_and_the_rest_of_a_folder_is_kept(
    number: int, told: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(begin(tmp_path / "to"))

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    def write() -> None:
        with locked(tmp_path / "to"):
            write_whole(tmp_path / "to" / "more", "data")

    with monkeypatch.context() as patched:
        patched.setattr(Path, where, refuse)
        with pytest.raises(StllavaError, match=told) as caught:
            write()
    assert str(tmp_path / "to") in str(caught.value)
    assert len(read_records(tmp_path / "to", "images", Image)) == 9


def test_a_path_of_another_kind_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for read, path, told in (
        (read_manifest, tmp_path / "file", "file is a file; expected the folder of a finished stage"),
        (read_manifest, Path("gone"), f"gone has no manifest.json.*no such folder in {tmp_path}"),
        (store.file_hash, tmp_path, "is a folder; expected an existing file"),
        (store.file_hash, Path("gone"), re.escape(f"no file gone (looked for in {tmp_path})")),
        (lambda path: read_jsonl(path, Image), tmp_path, "is a folder; expected a JSONL file of Image records"),
    ):
        with pytest.raises(StllavaError, match=told):
            read(path)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for to in (tmp_path / "file", tmp_path / "file" / "to"):
        with pytest.raises(StllavaError, match="a file is in the way of the folder"), locked(to):
            pass


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from stllava import store
from stllava.errors import ConflictError, StllavaError
from stllava.records import Image
from stllava.store import Log, locked, write_whole

weights = {"w": torch.zeros(1 << 18)}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
to = Path(sys.argv[1])
log = Log(to / "log.jsonl")
for name, write in {
    "safetensors": lambda: save_file(weights, to / "w.safetensors"),
    "torch": lambda: torch.save(weights, to / "w.pt"),
    "whole": lambda: write_whole(to / "w.bin", bytes(1 << 20)),
    "log": lambda: [log.append(Image(id=str(n), path="x" * 1000)) for n in range(100)],
}.items():
    try:
        with locked(to):
            write()
    except StllavaError as error:
        print(name, error)
"""


def test_a_limit_of_the_files_size_is_named_whoever_writes(tmp_path: Path) -> None:
    # safetensors and torch hide the system's error in their own (huggingface/safetensors and pytorch report both kinds).
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told.keys() == {"safetensors", "torch", "whole", "log"}, done.stderr
    for name in ("safetensors", "whole", "log"):
        assert "grows larger than the system allows" in told[name]
    assert "the disk failed at" in told["torch"]
    assert not list(tmp_path.glob(".*.draft"))


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), locked(tmp_path):
        raise RuntimeError("a bug")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "emptied": lambda path: path.write_bytes(b""),
    "changed": lambda path: path.write_bytes(path.read_bytes().replace(b"png", b"gif", 1)),
    "other bytes": lambda path: path.write_bytes(b"\xff\x00" * 9),
    "deleted": Path.unlink,
}
DAMAGED = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@DAMAGED
def test_a_damaged_chunk_is_made_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    copy(begin(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        copy(begin(tmp_path / "stopped"), stop_after=2)
    damage(sorted((tmp_path / "stopped" / PARTS).glob("*.jsonl"))[0])
    assert len(copy(begin(tmp_path / "stopped"))) == 3
    one, other = (tmp_path / name for name in ("whole", "stopped"))
    assert (one / "images.jsonl").read_bytes() == (other / "images.jsonl").read_bytes()
    assert read_manifest(one).dropped == read_manifest(other).dropped


@DAMAGED
def test_a_finished_stage_whose_output_is_gone_or_changed_is_done_again(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy(begin(tmp_path))
    before = (tmp_path / "images.jsonl").read_bytes()
    damage(tmp_path / "images.jsonl")
    stage = begin(tmp_path)
    assert stage.manifest is None
    assert "images.jsonl" in caplog.text
    assert "which is therefore done again" in caplog.text
    assert copy(stage) == [3, 3, 3, 1]
    assert (tmp_path / "images.jsonl").read_bytes() == before
    assert begin(tmp_path).manifest is not None


def test_a_large_output_is_read_again_only_where_it_was_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stllava.store.manifests.SMALL_BYTES", 10)
    copy(begin(tmp_path))
    read: list[Path] = []
    whole = store.file_hash

    def noted(path: Path) -> str:
        read.append(path)
        return whole(path)

    monkeypatch.setattr("stllava.store.manifests.file_hash", noted)
    assert begin(tmp_path).manifest is not None
    assert read == []
    later = time.time() + 9
    os.utime(tmp_path / "images.jsonl", (later, later))
    assert begin(tmp_path).manifest is not None
    assert read == [tmp_path / "images.jsonl"]


@pytest.mark.parametrize("name", ["cut", "emptied", "other bytes"])
def test_a_damaged_manifest_is_refused_by_name_and_the_stage_done_again_without_it(name: str, tmp_path: Path) -> None:
    copy(begin(tmp_path))
    DAMAGES[name](tmp_path / MANIFEST)
    for read in (begin, read_manifest, output_hash, lambda to: read_records(to, "images", Image)):
        with pytest.raises(StllavaError, match=r"manifest\.json is damaged: .*delete it and give the command that made it"):
            read(tmp_path)
    (tmp_path / MANIFEST).unlink()
    copy(begin(tmp_path))
    assert len(read_records(tmp_path, "images", Image)) == 9


def test_a_figure_that_changed_in_a_manifest_is_found(tmp_path: Path) -> None:
    copy(begin(tmp_path))
    written = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(written.replace('"counts_out": 9', '"counts_out": 8'))
    with pytest.raises(StllavaError, match="does not hold what its digest is of"):
        begin(tmp_path)
    (tmp_path / MANIFEST).write_text(written.replace(" ", ""))
    assert begin(tmp_path).manifest is not None, "only what it says counts"


@pytest.mark.parametrize("name", ["cut", "emptied", "other bytes", "deleted", "another margin"])
def test_the_manifest_stands_in_for_a_damaged_plan(name: str, tmp_path: Path) -> None:
    copy(begin(tmp_path))
    plan = (tmp_path / PLAN).read_bytes()
    damages = DAMAGES | {"another margin": lambda path: path.write_bytes(plan.replace(b"0.5", b"0.7"))}
    damages[name](tmp_path / PLAN)
    with pytest.raises(StllavaError, match=r"config\.margin was 0\.5, now 0\.7"):
        begin(tmp_path, margin=0.7)
    assert begin(tmp_path).manifest is not None
    assert (tmp_path / PLAN).read_bytes() == plan


@pytest.mark.parametrize("name", ["cut", "emptied", "other bytes"])
def test_a_damaged_plan_without_a_manifest_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        copy(begin(tmp_path), stop_after=1)
    DAMAGES[name](tmp_path / PLAN)
    with pytest.raises(StllavaError, match=r"plan\.json is damaged.*begin again"):
        begin(tmp_path)
    assert copy(begin(tmp_path, existing="replace")) == [3, 3, 3, 1]


def test_drafts_of_killed_writes_are_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        copy(begin(tmp_path), stop_after=1)
    for draft in (tmp_path / ".images.jsonl.123.draft", tmp_path / PARTS / ".a.jsonl.9.draft"):
        draft.write_bytes(b"half")
    begin(tmp_path)
    assert not list(tmp_path.rglob(".*.draft"))


def test_options_and_inputs_may_change_until_a_chunk_is_finished(tmp_path: Path) -> None:
    # A plan written before the input was read must not lock the folder: the mistake is put right and the command given again.
    def start(**inputs: str) -> Stage:
        return Stage("copy", tmp_path, PairOptions(margin=0.5), inputs=inputs, existing="resume", items="images")

    start(images="0" * 16, policy="a" * 16)
    begin(tmp_path, margin=0.7)
    with pytest.raises(KeyboardInterrupt):
        copy(start(images="1" * 16, policy="b" * 16), stop_after=1)
    with pytest.raises(ConflictError, match=r"its input policy has changed"):
        start(images="1" * 16, policy="c" * 16)
    assert copy(start(images="2" * 16, policy="b" * 16)) == [3, 3, 1]
    with pytest.raises(ConflictError, match=r"its input images has changed"):
        start(images="3" * 16, policy="b" * 16)


def test_a_chunk_is_known_by_all_that_its_items_say(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        copy(begin(tmp_path), stop_after=3)
    changed = [image.model_copy(update={"path": "other.png"}) if image.id == "i4" else image for image in IMAGES]
    worked: list[str] = []

    def work(chunk: Sequence[Image]) -> tuple[list[Image], Dropped]:
        worked.extend(image.id for image in chunk)
        return list(chunk), Dropped()

    begin(tmp_path).map_chunks(changed, PlainWork(work), record_type=Image, size=3, unit="images", max_bad=0.05)
    assert worked == ["i3", "i4", "i5", "i9"]


def test_a_folder_of_stages_is_never_cleared_for_another_stage(tmp_path: Path) -> None:
    def run(*, margin: float = 0.2, alike: float = 1.0) -> Stage:
        options = PairOptions(margin=margin, max_similarity=alike)
        return Stage("run", tmp_path, options, inputs={}, existing="resume", may_change={"max_similarity"})

    run()
    copy(begin(tmp_path / "sft"))
    with pytest.raises(ConflictError, match="it is of the stage run, not of copy"):
        begin(tmp_path)
    run(margin=0.9).finish(counts_in=1, counts_out=1, files=[])
    with pytest.raises(ConflictError, match=r"config\.margin was 0\.9, now 0\.2"):
        run()
    assert run(margin=0.9).manifest is not None
    assert run(margin=0.9, alike=0.5).manifest is None
    assert run(margin=0.9).manifest is not None
    assert len(read_records(tmp_path / "sft", "images", Image)) == 9


def test_progress_in_a_log_is_plain_lines_with_rate_and_time_left() -> None:
    log = io.StringIO()
    with Progress("ask", 4, unit="images", stream=log) as progress:
        progress.advance(1)
        line = progress.line()
        progress.advance(3)
    assert "1/4 images" in line
    assert "/s" in line
    assert "left" in line
    assert "\r" not in log.getvalue()
    assert log.getvalue().count("\n") == 1


def test_a_plan_says_what_is_being_made(tmp_path: Path) -> None:
    begin(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["stage"] == "copy"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"], ids=ascii)
def test_a_text_with_a_line_separator_in_it_is_resumed_whole(tmp_path: Path, mark: str) -> None:
    # Models and PDF extracts give U+2028 (python/cpython#91519 is one of many reports); JSON leaves it as it is.
    odd = [Image(id=f"i{number}", path=f"a{mark}b{number}.png") for number in range(4)]

    def made(to: Path, *, stop_after: int) -> list[Image]:
        worked = 0

        def work(chunk: Sequence[Image]) -> tuple[list[Image], Dropped]:
            nonlocal worked
            if worked == stop_after:
                raise KeyboardInterrupt
            worked += 1
            return list(chunk), Dropped({mark: 1})

        return list(begin(to).map_chunks(odd, PlainWork(work), record_type=Image, size=2, unit="images", max_bad=0.05).records)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, stop_after=1)
    assert made(tmp_path, stop_after=1) == odd


def text_reads_without_encoding(path: Path) -> list[int]:
    """Lines of a module that open a text file in whatever encoding the locale has."""
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
        modes = [value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        binary = any("b" in mode for mode in modes) or owner in ("os", "Image", "gzip")
        whole = isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text")
        if whole or (name in ("open", "fdopen") and not binary):
            found.append(node.lineno)
    return found


def test_no_file_is_read_or_written_in_the_locales_encoding() -> None:
    modules = (Path(__file__).parent.parent / "src" / "stllava").rglob("*.py")
    found = {path.name: lines for path in modules if (lines := text_reads_without_encoding(path))}
    assert found == {}


def test_records_behind_a_byte_order_mark_are_read_and_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "x", "path": "a.png"}\n')
    assert [one.path for one in read_jsonl(tmp_path / "a.jsonl", Image)] == ["a.png"]
    with pytest.raises(StllavaError, match="is a folder; expected a JSONL file of Image records"):
        read_jsonl(tmp_path, Image)


def test_a_stage_hashes_its_inputs_once_it_holds_the_folder_and_reads_nothing_that_lies_in_it(tmp_path: Path) -> None:
    given, to = tmp_path / "given.txt", tmp_path / "to"
    given.write_text("words")
    held: list[bool] = []

    def hash_held(path: Path) -> str:
        held.append((to / LOCK).is_file())
        return store.file_hash(path)

    inputs: store.Inputs = {"given": store.Input(given, hash_held), "seed": "0"}
    with store.open_stage("copy", to, PairOptions(), inputs=inputs, existing="resume") as made:
        assert made.manifest is None
        assert made.inputs == {"given": store.file_hash(given), "seed": "0"}
        made.finish(counts_in=1, counts_out=1)
    assert held == [True]
    with store.open_stage("copy", to, PairOptions(), inputs=inputs, existing="resume") as again:
        assert again.manifest == made.manifest
    inside: tuple[store.Inputs, store.Inputs] = ({"given": store.Input(to / MANIFEST, store.file_hash)}, {})
    for inner in inside:
        with (
            pytest.raises(StllavaError, match="is to be read and lies in"),
            store.open_stage("copy", to, PairOptions(), inputs=inner, reads=[to / MANIFEST], existing="resume"),
        ):
            pass
