"""The review page in a real Chromium, driven by keys and mouse alone."""

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.intake_parts import import_folder, masks_white
from helpers.pages import SIZES, browsing, picture, serving
from helpers.reviewing import write_import, write_round, write_series
from stllava.cli import main
from stllava.config import ReviewOptions
from stllava.data.image_set import RefusedPicture, read_imported
from stllava.data.images import open_deep
from stllava.intake.convert import default_toolbox
from stllava.records import ItemsCheck, Preference, ReviewVote, VotesCheck
from stllava.report.page import write_report
from stllava.review.image_store import image_id
from stllava.review.items import draw_items, read_items
from stllava.review.items_check import BURNED
from stllava.review.readings import standing
from stllava.review.reviewed import find_reviewed
from stllava.review.vote_log import read_votes
from stllava.store import read_jsonl, read_record, read_records
from test_report import build
from test_series import make
from test_sixteen_bit import DEEP

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright drives the page: pip install playwright")


def shows(page: Any, state: str, *, but_not: str = "", timeout: float = 10_000) -> None:
    """Wait until a task is on screen in that state, and until it is another one than before."""
    # Not by a script of the test: the page's policy lets none run that is made from text.
    found = page.locator(f'body[data-state="{state}"]:not([data-task="{but_not}"])')
    found.wait_for(state="attached", timeout=timeout)


def press_vote(page: Any, key: str) -> None:
    page.keyboard.press(key)
    shows(page, "voted")


def press_next(page: Any) -> None:
    task = page.locator("body").get_attribute("data-task")
    page.keyboard.press("Enter")
    page.locator(f'body:not([data-task="{task}"])').wait_for(state="attached")


def view_of(page: Any) -> dict[str, float]:
    """How the image is shown."""
    canvas = page.locator("#picture[data-scale]")
    canvas.wait_for()
    return {name: float(canvas.get_attribute(f"data-{name}")) for name in ("scale", "brightness", "contrast")}


def test_thirty_pairs_are_voted_by_keys_and_mouse_and_become_pairs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    build(run, images=50, rounds=1)
    folder = run / "round-1" / "review"
    words = ["review", str(run), "--reader", "anna", "--port", "0", "--repeats", "0"]
    with serving(words) as (_, addresses), browsing() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page, errors = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(addresses[0])
        shows(page, "open")
        look_at_image(page)
        overturned, typed = 0, False
        for number in range(30):
            picture(page, "desktop-light-open") if number == 0 else None
            if number == 3:
                page.locator("#answers .answer span").first.click()
            if not typed and number == 4:
                page.keyboard.press("t")
                page.keyboard.type("a small nodule")
                page.keyboard.press("Escape")
                press_vote(page, "b")
                typed = True
            else:
                press_vote(page, "12"[number % 2])
            if page.locator("#decisions").is_visible() and overturned < 2:
                page.keyboard.press("o")
                page.keyboard.type(f"It lies elsewhere {overturned}.")
                page.locator('[name="significant"][value="true"]').check()
                picture(page, "desktop-light-overturn") if overturned == 0 else None
                page.locator("#overturn button").click()
                page.locator("#decided", has_text="overturned").wait_for()
                overturned += 1
                if overturned == 2:
                    # What is typed after that takes nothing back.
                    page.keyboard.press("t")
                    page.keyboard.type("a cyst")
                    with page.expect_response("**/respond"):
                        page.keyboard.press("Escape")
            elif page.locator("#decisions").is_visible() and number % 3 == 0:
                page.keyboard.press("c")
                page.locator("#decided", has_text="confirmed").wait_for()
            if number == 10:
                page.reload()
                shows(page, "voted")
            if number == 20:
                page.keyboard.press("z")
                shows(page, "open")
                press_vote(page, "0")
            press_next(page)
        assert errors == []
    votes = read_votes(folder)["anna"]
    found = standing(votes)
    assert (len(found), sum(vote.event == "undo" for vote in votes), overturned) == (30, 1, 2)
    answered = [row.response for row in found.values() if row.response is not None and row.response.decision == "overturn"]
    assert [(one.reason, one.significant) for one in answered] == [
        (f"It lies elsewhere {number}.", True) for number in range(2)
    ]
    assert {row.correct_answer for row in found.values()} == {None, "a small nodule", "a cyst"}
    assert sum(bool(row.vote.struck) for row in found.values()) == 1
    main(["judge-check", "--votes", str(run)])
    check = read_record(folder / "check.json", VotesCheck)
    assert (check.read, check.corrected) == (30, 2)
    main(
        [
            "pair",
            *("--answers", str(run / "round-1" / "answer"), "--judgments", str(run / "round-1" / "judge")),
            *("--votes", str(folder), "--to", str(tmp_path / "pairs"), "--no-balance"),
        ]
    )
    pairs = read_records(tmp_path / "pairs", "preferences", Preference)
    assert any(pair.chosen == "a small nodule" and pair.lineage.correction for pair in pairs)
    assert sum(bool(pair.lineage.readers) for pair in pairs) > 10
    assert "anna (30)" in write_report(run).read_text()


def look_at_image(page: Any) -> None:
    """Zoom at the pointer, pan, change brightness and contrast, invert, and fit again, by keys and mouse."""
    before = view_of(page)
    box = page.locator("#picture").bounding_box()
    x, y = box["x"] + box["width"] / 3, box["y"] + box["height"] / 3
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    zoomed = view_of(page)
    assert zoomed["scale"] > 1.5 * before["scale"]
    page.mouse.down()
    page.mouse.move(x + 60, y + 20)
    page.mouse.up()
    page.mouse.down(button="right")
    page.mouse.move(x + 90, y - 40)
    page.mouse.up(button="right")
    bright = view_of(page)
    assert bright["brightness"] > 0
    assert bright["contrast"] > 1
    page.keyboard.press("ArrowDown")
    assert view_of(page)["brightness"] < bright["brightness"]
    light = "document.getElementById('picture').getContext('2d').getImageData(300, 300, 1, 1).data[0]"
    plain = page.evaluate(light)
    page.keyboard.press("v")
    assert page.evaluate(light) == 255 - plain
    page.locator("#picture").dblclick()
    assert view_of(page)["scale"] == before["scale"]


def test_answers_and_questions_are_read_one_by_one_by_keys(tmp_path: Path) -> None:
    run = tmp_path / "run"
    build(run, images=12, rounds=1)
    evaluation = next(path for path in sorted((run / "evaluate" / "sft").iterdir()) if path.is_dir())
    for folder, keys, said in (
        (evaluation, "12r?", {"right": 2, "wrong": 2, "bad reference": 1, "cannot tell": 1}),
        (run / "round-1" / "ask", "12?", {"valid": 2, "not valid": 2, "cannot tell": 2}),
    ):
        is_answer = folder == evaluation
        name, words = "answers" if is_answer else "questions", ["--reader", "anna", "--port", "0", "--repeats", "0"]
        with serving(["review", str(folder), *words]) as (_, addresses), browsing() as browser:
            page, errors = browser.new_context(viewport={"width": 1280, "height": 800}).new_page(), list[str]()
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.on("console", lambda message, errors=errors: errors.append(message.text) if message.type == "error" else None)
            page.goto(addresses[0])
            shows(page, "open")
            view_of(page)
            picture(page, f"{name}-open")
            for number in range(6):
                if number == 1 and is_answer:
                    page.keyboard.press("t")
                    page.keyboard.type("a cyst")
                    page.keyboard.press("Escape")
                page.keyboard.press("c")  # No expert has said anything: nothing is confirmed.
                press_vote(page, keys[number % len(keys)])
                picture(page, f"{name}-voted") if number == 0 else None
                assert page.locator("#rules").is_visible() == is_answer
                assert not page.locator("#decisions").is_visible()
                if number == 3:
                    page.keyboard.press("z")
                    shows(page, "open")
                    page.reload()
                    shows(page, "open")
                    press_vote(page, keys[number % len(keys)])
                press_next(page)
            page.set_viewport_size({"width": 390, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            picture(page, f"{name}-phone")
            page.locator("#help-button").click()
            picture(page, f"{name}-phone-help")
            assert errors == []
        main(["judge-check", "--votes", str(folder)])
        check = read_record(find_reviewed(folder).review / "check.json", ItemsCheck)
        assert (check.read, check.choices, check.corrected) == (6, said, int(is_answer))


def test_pictures_are_read_for_text_and_the_next_import_leaves_out_what_was_refused(tmp_path: Path) -> None:
    rows = {row.id: row for row in write_import(tmp_path, 6)}
    words = ["--reader", "anna", "--port", "0", "--repeats", "0"]
    with serving(["review", str(tmp_path / "set"), *words]) as (_, addresses), browsing() as browser:
        page, errors = browser.new_context(viewport={"width": 1280, "height": 800}).new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(addresses[0])
        for number, task in enumerate(read_items(tmp_path / "set-review")):
            page.locator(f'body[data-task="{task.id}"][data-image="{image_id(task.images[0])}"]').wait_for(state="attached")
            # A black place is outlined in orange: its left edge, in the middle.
            scale, canvas = view_of(page)["scale"], page.locator("#picture").bounding_box()
            x = (canvas["width"] - 48 * scale) / 2 + 6 * scale
            y = (canvas["height"] - 48 * scale) / 2 + 8 * scale
            seen = page.evaluate(
                "([x, y]) => [...document.getElementById('picture').getContext('2d').getImageData(x, y, 1, 1).data]",
                [round(x), round(y)],
            )
            picture(page, "pictures-open") if task.boxes else None
            red, green, blue, _ = seen
            assert (red > green + 40 > blue + 40) == bool(task.boxes)  # All else is grey.
            press_vote(page, "12?"[number % 3])
            press_next(page)
        page.locator('body[data-state="done"]').wait_for(state="attached")
        assert errors == []
    main(["judge-check", "--votes", str(tmp_path / "set")])
    refused = [row.id for row in read_jsonl(tmp_path / "set-review" / BURNED, RefusedPicture)]
    assert len(refused) == 2
    import_folder(tmp_path, to="next", make=masks_white, refused=tmp_path / "set-review" / BURNED)
    assert {row.id for row in read_imported(tmp_path / "next")} == rows.keys() - set(refused)


def test_shift_and_the_wheel_go_through_the_slices_of_a_series(tmp_path: Path) -> None:
    rows = write_series(tmp_path / "set", series=1, slices=5)
    draw_items(ReviewOptions(), kind="pictures", source=tmp_path / "set", to=tmp_path / "set-review")
    slices = [image_id(row.path) for row in rows[:5]]
    with serving(["review", str(tmp_path / "set"), "--reader", "anna", "--port", "0"]) as (_, addresses), browsing() as browser:
        page, errors = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(addresses[0])
        for task in read_items(tmp_path / "set-review"):
            own, bar = image_id(task.images[0]), page.locator("#window-level")
            page.locator(f'body[data-task="{task.id}"][data-image="{own}"]').wait_for(state="attached")
            if own in slices:
                asked = slices.index(own)
                bar.filter(has_text=f"{asked + 1} of 5 ·").wait_for()
                page.locator("#picture").hover()
                page.keyboard.down("Shift")
                for to in (*range(asked + 1, 5), *range(3, -1, -1)):
                    page.mouse.wheel(0, 100 if to > asked and to == page_slice(page) + 1 else -100)
                    page.locator(f'body[data-image="{slices[to]}"]').wait_for(state="attached")
                    told = f"{to + 1} of 5 ·" if to == asked else f"{to + 1} of 5, asked about {asked + 1} ·"
                    bar.filter(has_text=told).wait_for()
                page.keyboard.up("Shift")
                picture(page, "series") if asked == 2 else None
            press_vote(page, "2")
            press_next(page)
        assert errors == []
    assert len(standing(read_votes(tmp_path / "set-review")["anna"])) == 6


def test_window_and_level_show_in_16_bits_what_8_bits_do_not(tmp_path: Path) -> None:
    """A dark square on darker ground that is one grey in 8 bits, in a CT slice and in a radiograph that is inverted."""
    values = np.full((64, 64), 10, dtype=np.int16)
    values[16:48, 16:48] = 13
    values[:, 56:] = np.arange(64)[:, None] * 60
    for number, colour in enumerate(("MONOCHROME2", "MONOCHROME1")):
        stored = values if colour == "MONOCHROME2" else (4000 - values).astype(np.int16)
        window = {"WindowCenter": 2000, "WindowWidth": 4000, "RescaleSlope": 1, "RescaleIntercept": -1024 * (1 - number)}
        window["WindowCenter"] += window["RescaleIntercept"]
        fields = {"Rows": 64, "Columns": 64, "PhotometricInterpretation": colour, "SeriesInstanceUID": f"1.2.{number}"}
        make(tmp_path / "in" / f"{number}.dcm", stored, **window, **fields)
    import_folder(tmp_path, DEEP, to="set", make=default_toolbox)
    rows = {image_id(row.path): row for row in read_imported(tmp_path / "set")}
    assert len(rows) == 2
    look = "([x, y]) => document.getElementById('picture').getContext('2d').getImageData(x, y, 1, 1).data[0]"
    words = ["review", str(tmp_path / "set"), "--reader", "anna", "--port", "0", "--repeats", "0"]
    with serving(words) as (_, addresses), browsing() as browser:
        page, errors = browser.new_context(viewport={"width": 1280, "height": 800}).new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        asked = list[str]()
        page.on("request", lambda request: asked.append(request.url) if "/deep/" in request.url else None)
        page.goto(addresses[0])
        for number, task in enumerate(read_items(tmp_path / "set-review")):
            key = image_id(task.images[0])
            page.locator(f'body[data-task="{task.id}"][data-image="{key}"]').wait_for(state="attached")
            scale, canvas = view_of(page)["scale"], page.locator("#picture").bounding_box()
            left, top = (canvas["width"] - 64 * scale) / 2, (canvas["height"] - 64 * scale) / 2
            inside, ground = ([round(left + at * scale), round(top + 32 * scale)] for at in (32, 6))
            assert page.evaluate(look, inside) == page.evaluate(look, ground)
            deep = rows[key].deep
            assert deep is not None
            level, width = deep.offset + deep.step * (deep.black + deep.white) / 2, abs(deep.step) * (deep.white - deep.black)
            shown = page.locator("#window-level").inner_text()
            assert f"window {round(width)} · level {round(level)}" in shown
            assert len(asked) == number
            # The level goes to where the square is, by steps of a twentieth of the window, which becomes narrower.
            here = deep.offset + deep.step * float(open_deep(tmp_path / "set", deep.path)[32, 32])
            for narrower in (0, 15, 15, 10):
                for _ in range(narrower):
                    page.keyboard.press("ArrowRight")
                for _ in range(60):
                    at, wide = (float(page.locator("#picture").get_attribute(f"data-{name}")) for name in ("level", "width"))
                    if abs(at - here) < 0.05 * wide:
                        break
                    page.keyboard.press("ArrowDown" if (here > at) == (deep.step > 0) else "ArrowUp")
            page.locator('#picture[data-deep="true"]').wait_for()
            assert len(asked) == number + 1
            before = page.evaluate(look, inside), page.evaluate(look, ground)
            assert before[0] > before[1] + 5
            page.keyboard.press("v")
            after = page.evaluate(look, inside), page.evaluate(look, ground)
            assert after[0] < after[1]
            picture(page, "sixteen-bit") if number == 0 else None
            press_vote(page, "2")
            press_next(page)
        assert errors == []


PRESSED = """([key, code, more]) => {
  const event = new KeyboardEvent("keydown", { key, code, bubbles: true, cancelable: true, ...more });
  (document.activeElement || document.body).dispatchEvent(event);
}"""


def test_keyboards_of_other_scripts_vote_and_letters_being_composed_do_not(tmp_path: Path) -> None:
    """Reports on other pages: Cyrillic, Turkish and French keyboards, and Enter that ends a Japanese conversion."""
    write_round(tmp_path, 30)
    words = ["review", str(tmp_path), "--root", str(tmp_path / "images"), "--reader", "anna", "--port", "0", "--repeats", "0"]
    with serving(words) as (_, addresses), browsing() as browser:
        page, errors = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(addresses[0])
        shows(page, "open")
        said: tuple[tuple[str, str, dict[str, bool], str], ...] = (
            ("\u0438", "KeyB", {}, "both wrong"),
            ("\u0131", "KeyI", {}, "bad image"),
            ("\u0661", "Digit1", {}, "left"),
            ("&", "Digit1", {}, "left"),
            ("\u00e0", "Digit0", {}, "equal"),
            ("B", "KeyB", {}, "both wrong"),
        )
        for key, code, more, choice in said:
            page.evaluate(PRESSED, [key, code, more])
            shows(page, "voted")
            assert page.locator("#choices .picked").get_attribute("data-choice") == choice
            press_next(page)
        for key, code, more in (
            ("!", "Digit1", {"shiftKey": True}),  # of an English keyboard, no vote
            ("a", "KeyQ", {}),  # of a French one, no q
            ("y", "KeyZ", {}),  # of a German one, no z
            ("b", "KeyB", {"isComposing": True}),
        ):
            page.evaluate(PRESSED, [key, code, more])
        page.keyboard.press("t")
        page.keyboard.type("a mass")
        for name, value in (("isComposing", True), ("keyCode", 229)):
            page.evaluate(PRESSED, ["Enter", "Enter", {name: value}])
            page.evaluate(PRESSED, ["Escape", "Escape", {name: value}])
            assert page.evaluate("document.activeElement.id") == "typed"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") != "typed"
        assert page.locator("body").get_attribute("data-state") == "open"
        # Enter presses the button that Tab has led to.
        page.locator('[data-choice="right"]').focus()
        page.keyboard.press("Enter")
        shows(page, "voted")
        assert page.locator("#choices .picked").get_attribute("data-choice") == "right"
        assert errors == []
    assert len(standing(read_votes(tmp_path / "review")["anna"])) == 7


def test_a_window_that_was_set_holds_for_the_other_slices_of_the_series_alone(tmp_path: Path) -> None:
    """As in a report on cornerstone, whose window went back where slices differ in their rescaling."""
    draw = np.random.default_rng(0)
    for place in range(3):
        values = draw.integers(0, 2000, (64, 64), dtype=np.int16)
        fields = {"Rows": 64, "Columns": 64, "RescaleSlope": 1 + place / 4, "RescaleIntercept": -100 * place}
        make(
            tmp_path / "in" / f"{place}.dcm", values, ImagePositionPatient=[0, 0, 3 * place], InstanceNumber=place + 1, **fields
        )
    import_folder(tmp_path, DEEP, to="set", make=default_toolbox)
    with serving(["review", str(tmp_path / "set"), "--reader", "anna", "--port", "0"]) as (_, addresses), browsing() as browser:
        page, errors = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(addresses[0])
        page.locator("#picture[data-level]").wait_for()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        page.locator('#picture[data-deep="true"]').wait_for()
        bar = page.locator("#window-level")
        set_to = bar.inner_text().partition("window ")[2]
        page.locator("#picture").hover()
        page.keyboard.down("Shift")
        first = page_slice(page)
        for way in (100, 100, -100, -100, -100):
            before, moved = page_slice(page), max(0, min(2, page_slice(page) + way // 100))
            page.mouse.wheel(0, way)
            bar.filter(has_text=f"{moved + 1} of 3").wait_for()
            if moved != before:
                page.locator('#picture[data-deep="true"]').wait_for()
            assert bar.inner_text().partition("window ")[2] == set_to
        page.keyboard.up("Shift")
        assert first in range(3)
        press_vote(page, "2")
        press_next(page)
        shows(page, "open")
        page.locator("#window-level").filter(has_not_text=set_to).wait_for()
        assert errors == []


def test_a_window_beyond_the_values_does_not_jump_at_the_first_change(tmp_path: Path) -> None:
    """As in a report on Weasis, whose level leapt where a file's window lies beyond its data."""
    values = np.random.default_rng(0).integers(1000, 3000, (64, 64), dtype=np.int16)
    fields = {"Rows": 64, "Columns": 64, "WindowCenter": -500, "WindowWidth": 400_000}
    make(tmp_path / "in" / "a.dcm", values, **fields)
    import_folder(tmp_path, DEEP.model_copy(update={"contrast": 0}), to="set", make=default_toolbox)
    with serving(["review", str(tmp_path / "set"), "--reader", "anna", "--port", "0"]) as (_, addresses), browsing() as browser:
        page = browser.new_page()
        page.goto(addresses[0])
        page.locator("#picture[data-level]").wait_for()
        level, width = (float(page.locator("#picture").get_attribute(f"data-{name}")) for name in ("level", "width"))
        page.keyboard.press("ArrowRight")
        page.locator('#picture[data-deep="true"]').wait_for()
        now = [float(page.locator("#picture").get_attribute(f"data-{name}")) for name in ("level", "width")]
        assert now[0] == pytest.approx(level)
        assert 0.8 * width < now[1] < width


def page_slice(page: Any) -> int:
    """Which slice is on screen, from 0."""
    return int(page.locator("#window-level").inner_text().partition(" of ")[0]) - 1


def test_two_readers_in_one_browser_come_by_a_link_and_do_not_vote_for_each_other(tmp_path: Path) -> None:
    """The address is followed from another site's page, as from web mail; then a second reader opens another tab."""
    write_round(tmp_path, 12)
    words = ["review", str(tmp_path), "--root", str(tmp_path / "images"), "--reader", "anna", "ben", "--port", "0"]
    with serving(words) as (_, addresses), browsing() as browser:
        context, held = browser.new_context(), list[Any]()
        page, other = context.new_page(), context.new_page()
        mail = f'<a href="{addresses[0]}">read</a>'
        page.route("http://mail.example/", lambda route: route.fulfill(body=mail, content_type="text/html"))
        page.route("**/image/*", lambda route: held.append(route))  # Playwright takes no method of a list.
        page.goto("http://mail.example/")
        page.locator("a").click()
        shows(page, "open")
        page.locator("#picture-note", has_text="being loaded").wait_for()
        page.unroute("**/image/*")
        for route in held:
            route.continue_()
        view_of(page)
        assert page.locator("#picture-note").is_hidden()
        other.goto(addresses[1])
        shows(other, "open")
        page.keyboard.press("1")
        page.locator("#trouble", has_text="opened the page for ben since").wait_for()
    assert read_votes(tmp_path / "review") == {"anna": [], "ben": []}


def test_the_page_fits_every_screen(tmp_path: Path) -> None:
    build(tmp_path / "run", images=12, rounds=1)
    readers = [f"{size}-{scheme}" for size in SIZES for scheme in ("light", "dark")]
    with (
        serving(["review", str(tmp_path / "run"), "--reader", *readers, "--port", "0"]) as (_, addresses),
        browsing() as browser,
    ):
        for reader, address in zip(readers, addresses, strict=True):
            size, _, scheme = reader.partition("-")
            width, height = SIZES[size]
            view = {"width": width, "height": height}
            page = browser.new_context(viewport=view, color_scheme=scheme, is_mobile=size == "phone").new_page()
            page.goto(address)
            shows(page, "open")
            view_of(page)
            picture(page, f"{reader}-open")
            page.locator('[data-choice="right"]').click()
            shows(page, "voted")
            if page.locator("#decisions").is_visible():
                page.locator('[data-decision="overturn"]').click()
            picture(page, f"{reader}-voted")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("#verdict-line").is_visible()
            page.locator("#help-button").click()
            picture(page, f"{reader}-help")


def test_a_server_that_is_killed_loses_no_vote_that_the_page_showed(tmp_path: Path) -> None:
    """At random moments in the middle of voting, each time after two votes were shown; STLLAVA_KILLS says how often."""
    write_round(tmp_path, 400)
    kills = int(os.environ.get("STLLAVA_KILLS", "3"))
    words = [
        "review",
        str(tmp_path),
        "--root",
        str(tmp_path / "images"),
        "--reader",
        "anna",
        "--port",
        "0",
        "--tasks",
        "400",
        "--repeats",
        "0",
    ]
    draw, shown = random.Random(0), set[str]()
    path = tmp_path / "review" / "votes" / "anna.jsonl"
    with browsing() as browser:
        page = browser.new_context().new_page()
        for _ in range(kills):
            with serving(words, stop=signal.SIGKILL) as (process, addresses):
                page.goto(addresses[0])
                shows(page, "open")
                for _ in range(2):
                    page.keyboard.press("1")
                    shows(page, "voted")
                    shown.add(page.locator("body").get_attribute("data-task"))
                    page.keyboard.press("Enter")
                    shows(page, "open")
                killer = threading.Timer(draw.uniform(0.05, 0.6), process.kill)
                killer.start()
                while killer.is_alive():
                    page.keyboard.press("1")
                    try:
                        shows(page, "voted", timeout=700)
                        shown.add(page.locator("body").get_attribute("data-task"))
                        page.keyboard.press("Enter")
                        shows(page, "open", timeout=700)
                    except sync_api.TimeoutError:
                        break
                killer.join()
            given = [vote for vote in read_jsonl(path, ReviewVote) if vote.event == "vote"]
            keys = [vote.task_id for vote in given]
            assert len(set(keys)) == len(keys)
            assert shown <= set(keys)
    assert len(shown) >= 2 * kills
