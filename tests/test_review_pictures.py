"""Pictures of an imported set, read for text that was left in them, and what the next import makes of that."""

import json
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from helpers.intake_parts import import_folder, masks_white
from helpers.reviewing import item_vote, write_import, write_series
from stllava.cli import main
from stllava.config import ReviewOptions
from stllava.data.image_set import DeepImage, Imported, LeftOut, RefusedPicture, read_imported
from stllava.data.images import open_deep
from stllava.errors import StllavaError
from stllava.intake.encode import png
from stllava.records import ItemTask
from stllava.review.image_store import ImageStore, image_id
from stllava.review.items import draw_items
from stllava.review.items_check import BURNED, check_items
from stllava.review.reviewed import find_reviewed
from stllava.review.security import Door
from stllava.review.series_slices import deep_images, series_slices, shown_images
from stllava.review.server import review_app
from stllava.review.session import ReviewSession
from stllava.review.tasks import sizes_of
from stllava.review.vote_log import VoteLog
from stllava.store import read_jsonl, read_manifest
from test_review_page import HOST, ORIGIN, Open, of_page, opened
from test_sixteen_bit import DEEP, deep_toolbox, write_white

__all__ = ["opened"]
ALL = ReviewOptions(uncertain_share=1.0, overlap=0.0, repeats=0.0)


def drawn(folder: Path, count: int = 9) -> list[ItemTask]:
    """The pictures of an imported set as they are read."""
    write_import(folder, count)
    return draw_items(ALL, kind="pictures", source=folder / "set", to=find_reviewed(folder / "set").review)


def test_pictures_with_black_places_are_read_first_and_the_rest_is_the_other_stratum(tmp_path: Path) -> None:
    tasks, rows = drawn(tmp_path), {row.id: row for row in read_imported(tmp_path / "set")}
    assert sizes_of(tmp_path / "set-review") == {"uncertain": 3, "random": 6}
    assert {task.source_id for task in tasks} == set(rows)
    for task in tasks:
        assert task.boxes == rows[task.source_id].masked
        assert task.images == (rows[task.source_id].path,)
        assert (task.stratum == "uncertain") == bool(task.boxes)
    found = find_reviewed(tmp_path / "set")
    assert (found.kind, found.image_root(None), found.title) == ("pictures", tmp_path / "set", "set")


def test_the_page_tells_where_text_was_blacked_out(opened: Open) -> None:
    page = opened(kind="pictures")
    client = page.client()
    shown = client.get("/task").json()
    task = page.tasks[0]
    assert isinstance(task, ItemTask)
    assert shown["boxes"] == [list(box) for box in task.boxes]
    assert (shown["answers"], shown["references"]) == ([], [])
    assert client.get(f"/image/{shown['images'][0]}").headers["content-type"] == "image/png"
    assert 'id="typed"' not in client.get("/").text


def test_a_picture_that_a_reader_refused_stays_out_of_the_next_import_with_its_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, folder = drawn(tmp_path), tmp_path / "set-review"
    burned, clean, unsure = tasks[:3]
    with closing(VoteLog(folder, "anna")) as log:
        log.append(item_vote(burned, "not burned", number=1))
        log.append(item_vote(clean, "not burned", number=2))
        log.append(item_vote(unsure, "cannot tell", number=3))
    with closing(VoteLog(folder, "ben")) as log:
        log.append(item_vote(burned, "burned", reader="ben", number=1))
    main(["judge-check", "--votes", str(tmp_path / "set")])
    told = capsys.readouterr().out
    assert "pictures in which no text is left" in told
    assert f"stllava import images --refused`: {folder / BURNED}" in told
    # One reader who sees letters is enough, whatever another one says.
    (row,) = read_jsonl(folder / BURNED, RefusedPicture)
    assert (row.id, row.readers) == (burned.source_id, ("ben",))
    before = {one.id: one for one in read_imported(tmp_path / "set")}
    for path in list((tmp_path / "in").iterdir()):
        (path.parent / f"copy_{path.name}").write_bytes(path.read_bytes() + b"\0")
    manifest = import_folder(tmp_path, to="next", make=masks_white, refused=folder / BURNED)
    after = {one.id for one in read_imported(tmp_path / "next")}
    assert len(after) == len(before) - 1
    assert manifest.dropped["text-found-by-reader"] == 2
    assert "refused" in manifest.inputs
    assert not any("refused are not among" in note for note in manifest.notes)
    gone = [one for one in read_jsonl(tmp_path / "next" / "left_out.jsonl", LeftOut) if one.cause == "text-found-by-reader"]
    assert {one.of for one in gone} == {None}
    content = before[burned.source_id].content
    assert content not in {one.content for one in read_imported(tmp_path / "next")}
    assert not (tmp_path / "next" / before[burned.source_id].path).exists()
    assert "a reader found text in it" in (tmp_path / "next" / "changes-001.html").read_text()


def test_what_was_refused_under_another_salt_is_refused(tmp_path: Path) -> None:
    write_import(tmp_path, 3)
    path = tmp_path / "burned.jsonl"
    row = RefusedPicture(id=read_imported(tmp_path / "set")[0].id, salt="0" * 16, readers=("anna",))
    path.write_text(row.model_dump_json() + "\n")
    with pytest.raises(StllavaError, match="by another salt"):
        import_folder(tmp_path, to="next", make=masks_white, refused=path)
    assert not (tmp_path / "next").exists()
    with pytest.raises(StllavaError, match="judge-check wrote"):
        import_folder(tmp_path, to="next", make=masks_white, refused=tmp_path / "gone.jsonl")


def test_without_refused_pictures_an_import_is_what_it_was(tmp_path: Path) -> None:
    tasks, folder = drawn(tmp_path, 4), tmp_path / "set-review"
    with closing(VoteLog(folder, "anna")) as log:
        log.append(item_vote(tasks[0], "not burned", number=1))
    assert check_items(folder).good is not None
    assert (folder / BURNED).read_text() == ""
    import_folder(tmp_path, to="next", make=masks_white, refused=folder / BURNED)
    first, second = (read_manifest(tmp_path / name) for name in ("set", "next"))
    assert first.outputs == second.outputs
    assert json.dumps(first.dropped) == json.dumps(second.dropped)


def test_a_refused_picture_that_is_not_there_is_told(tmp_path: Path) -> None:
    write_import(tmp_path, 3)
    salt = read_manifest(tmp_path / "set").inputs["salt"]
    path = tmp_path / "burned.jsonl"
    path.write_text(RefusedPicture(id="f" * 16, salt=salt, readers=("anna",)).model_dump_json() + "\n")
    manifest = import_folder(tmp_path, to="next", make=masks_white, refused=path)
    assert any(note.startswith("1 of 1 pictures that readers refused are not among") for note in manifest.notes)


# --- slices of a series ----------------------------------------------------------------------------------------------


def test_a_slice_brings_its_series_in_order_and_other_pictures_none(tmp_path: Path) -> None:
    rows = write_series(tmp_path / "set", series=3, slices=5)
    asked = [rows[2].path, rows[8].path, rows[15].path, "nowhere.png"]
    found = series_slices(tmp_path / "set", asked)
    assert found == {
        rows[2].path: tuple(row.path for row in rows[:5]),
        rows[8].path: tuple(row.path for row in rows[5:10]),
    }
    assert series_slices(tmp_path, asked) == {}
    assert shown_images((rows[2].path,), found) == (found[rows[2].path], 2)
    # A question about several images has its own to go through.
    both = (rows[2].path, rows[8].path)
    assert shown_images(both, found) == (both, None)


def test_the_page_tells_the_slices_and_gives_out_those_of_the_series_alone(tmp_path: Path) -> None:
    rows = write_series(tmp_path / "set", series=3, slices=5)
    options, to = ALL.model_copy(update={"tasks": 1}), tmp_path / "review"
    tasks = draw_items(options, kind="pictures", source=tmp_path / "set", to=to, seed=1)
    paths = list(tasks[0].images)
    place = [row.path for row in rows].index(paths[0])
    assert place < 15
    store = ImageStore(tmp_path / "set", paths, series=series_slices(tmp_path / "set", paths))
    door = Door(frozenset({HOST}), "stllava-8765")
    with closing(ReviewSession(tmp_path / "review", tasks, ["anna"])) as session:
        app = review_app(session, store, door, title="a set")
        with TestClient(app, base_url=ORIGIN, headers=of_page("anna"), follow_redirects=False) as client:
            assert client.get(f"/image/{image_id(rows[0].path)}").status_code == 401
            client.get(door.invite("anna"))
            shown = client.get("/task").json()
            first = place - place % 5
            assert shown["images"] == [image_id(row.path) for row in rows[first : first + 5]]
            assert shown["slice"] == place % 5
            for number, row in enumerate(rows):
                expected = 200 if first <= number < first + 5 else 404
                reply = client.get(f"/image/{image_id(row.path)}")
                assert (reply.status_code, reply.headers["cache-control"]) == (expected, "no-store")


# --- 16-bit pixels ---------------------------------------------------------------------------------------------------


def deep_page(folder: Path) -> tuple[ReviewSession, ImageStore, list[Imported]]:
    """A page over pictures whose 16-bit pixels were kept."""
    write_white(folder)
    import_folder(folder, DEEP, to="set", make=deep_toolbox)
    tasks = draw_items(ALL, kind="pictures", source=folder / "set", to=folder / "review")
    paths = [path for task in tasks for path in task.images]
    images = ImageStore(folder / "set", paths, deep=deep_images(folder / "set", paths))
    return ReviewSession(folder / "review", tasks, ["anna"]), images, read_imported(folder / "set")


def test_16_bit_pixels_are_given_out_by_id_as_bare_numbers_that_no_browser_keeps(tmp_path: Path) -> None:
    session, images, rows = deep_page(tmp_path)
    with closing(session):
        door = Door(frozenset({HOST}), "stllava-8765")
        app = review_app(session, images, door, title="a set")
        with TestClient(app, base_url=ORIGIN, headers=of_page("anna"), follow_redirects=False) as client:
            key = image_id(rows[0].path)
            assert client.get(f"/deep/{key}").status_code == 401
            client.get(door.invite("anna"))
            shown = client.get("/task").json()
            row = next(row for row in rows if image_id(row.path) == shown["images"][0])
            assert row.deep is not None
            assert shown["deep"] == {image_id(row.path): row.deep.model_dump(include={"offset", "step", "black", "white"})}
            reply = client.get(f"/deep/{image_id(row.path)}")
            assert (reply.headers["content-type"], reply.headers["cache-control"]) == ("application/octet-stream", "no-store")
            size = (int(reply.headers["x-height"]), int(reply.headers["x-width"]))
            pixels = np.frombuffer(reply.content, "<u2").reshape(size)
            assert (pixels == open_deep(tmp_path / "set", row.deep.path)).all()
            assert row.deep.path not in client.get("/task").text
            for attack in (row.deep.path, f"..%2f{row.deep.path}", image_id(row.deep.path), "f" * 16, ""):
                assert client.get(f"/deep/{attack}").status_code == 404
            assert client.get(f"/deep/{key}", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
            (tmp_path / "set" / row.deep.path).write_bytes(b"nothing")
            assert client.get(f"/deep/{image_id(row.path)}").status_code == 422


def test_what_was_blacked_out_of_16_bits_alone_is_outlined_and_read_first(tmp_path: Path) -> None:
    session, _, rows = deep_page(tmp_path)
    session.close()
    hidden = {row.id for row in rows if row.deep is not None and row.deep.masked}
    tasks = [task for task in session.tasks if isinstance(task, ItemTask)]
    assert hidden
    for task, row in ((task, next(row for row in rows if row.id == task.source_id)) for task in tasks):
        assert row.deep is not None
        assert task.boxes == (*row.masked, *row.deep.masked)
        assert (task.stratum == "uncertain") == bool(task.boxes)


def test_16_bit_pixels_that_nobody_kept_are_no_image(opened: Open) -> None:
    page = opened(kind="pictures")
    client = page.client()
    shown = client.get("/task").json()
    assert shown["deep"] == {}
    assert client.get(f"/deep/{shown['images'][0]}").status_code == 404
    assert deep_images(page.folder, ["a.png"]) == {}


def test_the_server_keeps_no_16_bit_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((512, 512), dtype=np.uint16)
    (tmp_path / "deep.png").write_bytes(png(pixels, 1))
    deep = DeepImage(path="deep.png", content="", offset=0, step=1, black=0, white=1, masked=())
    images, key = ImageStore(tmp_path, ["a.png"], deep={"a.png": deep}), image_id("a.png")
    images.deep_pixels(key)
    tracemalloc.start()
    try:
        for _ in range(20):
            assert images.deep_pixels(key) == (pixels.tobytes(), 512, 512)
        assert tracemalloc.get_traced_memory()[0] < pixels.nbytes / 4
    finally:
        tracemalloc.stop()
