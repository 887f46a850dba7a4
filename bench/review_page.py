"""How quickly the review page shows the next task, and how much memory it takes, in Chromium.

    python bench/review_page.py [--tasks 10000] [--side 1024] [--votes 200]

Draws a round of so many judged questions about as many images (copies of 32 different ones, under names of their own),
serves it, and lets Chromium vote on the first of them by keys, with half a second to look at each. Prints how long the next
task and its image took from the key to the frame after they are drawn (median, 95th percentile, longest), what of that was
waiting for the server's answer, and the memory of the server and of the page at the start, after a tenth of the votes (by
when all that is kept has filled up) and at the end. Needs Playwright and a Chromium.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil  # type: ignore[import-untyped]  # comes with accelerate
from PIL import Image
from playwright.sync_api import sync_playwright

from stllava.config import AnswerOptions, JudgeOptions
from stllava.records import Answers, Judgment, Sampling, content_id
from stllava.store import Stage

DIFFERENT = 32
PRESS = """(key) => new Promise((done) => {
  const began = performance.now();
  const wanted = key === "Enter" ? ["data-image"] : ["data-state"];
  const observer = new MutationObserver(() => {
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
  });
  observer.observe(document.body, { attributes: true, attributeFilter: wanted });
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
})"""
WAITED = """() => {
  const next = performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/next"));
  const waited = next.map((one) => one.responseEnd - one.startTime);
  performance.clearResourceTimings();
  return waited;
}"""
HOW = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)


def build(folder: Path, *, tasks: int, side: int) -> None:
    """A judged round about images of that many pixels a side."""
    draw = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(parents=True)
    for number in range(DIFFERENT):
        smooth = draw.normal(128, 40, (side // 4, side // 4)).clip(0, 255).astype(np.uint8)
        Image.fromarray(smooth).resize((side, side), Image.Resampling.BICUBIC).save(images / f"{number:05}.png")
    for number in range(DIFFERENT, tasks):
        (images / f"{number:05}.png").hardlink_to(images / f"{number % DIFFERENT:05}.png")
    given, judged = [], []
    for number in range(tasks):
        image, texts = f"{number:05}.png", (f"a nodule of {number} mm", "nothing")
        key = content_id("answers", image)
        given.append(
            Answers(
                id=key,
                question_id=content_id(image),
                images=(image,),
                question=f"What is seen at place {number}?",
                completions=texts,
                policy="p",
                sampling=HOW,
            )
        )
        judged.append(
            Judgment(
                id=content_id("judgment", key),
                answers_id=key,
                scores=(1.0, 0.0),
                cause=None,
                reason="So it is.",
                expert="e",
                prompt_hash="h",
            )
        )
    stage = Stage("answer", folder / "answer", AnswerOptions(), inputs={}, existing="resume")
    stage.write_records("answers", given)
    stage.finish(counts_in=tasks, counts_out=tasks)
    stage = Stage("judge", folder / "judge", JudgeOptions(), inputs={}, existing="resume")
    stage.write_records("judgments", judged)
    stage.finish(counts_in=tasks, counts_out=tasks)


def memory_of(process: int) -> float:
    """Resident memory of a process, in MiB."""
    line = next(row for row in Path(f"/proc/{process}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def memory_of_pages() -> float:
    """Resident memory of the Chromium processes that draw pages, in MiB."""
    pages = [one for one in psutil.Process().children(recursive=True) if "--type=renderer" in one.cmdline()]
    return float(sum(one.memory_info().rss for one in pages) / 2**20)


def main() -> None:
    """Build, serve, vote and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, tasks=options.tasks, side=options.side)
        words = ["review", name, "--reader", "anna", "--root", f"{name}/images", "--port", "0", "--tasks", str(options.tasks)]
        began = time.monotonic()
        with subprocess.Popen([sys.executable, "-m", "stllava", *words], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = "http://" + next(line for line in server.stdout if "http://" in line).partition("http://")[2].strip()
            started = time.monotonic() - began
            try:
                with sync_playwright() as driver:
                    browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
                    page = browser.new_page(viewport={"width": 1280, "height": 800})
                    page.goto(address)
                    page.locator("#picture[data-scale]").wait_for()
                    voted, moved, waited = [], [], []
                    memory = [(memory_of(server.pid), memory_of_pages())]
                    for number in range(options.votes):
                        page.wait_for_timeout(500)
                        voted.append(page.evaluate(PRESS, "1"))
                        moved.append(page.evaluate(PRESS, "Enter"))
                        waited += page.evaluate(WAITED)
                        if number in (options.votes // 10, options.votes - 1):
                            memory.append((memory_of(server.pid), memory_of_pages()))
                    browser.close()
            finally:
                server.kill()
    rows = {
        "next task and image on screen": moved,
        "of that, until the server had answered": waited,
        "vote on disk and verdict on screen": voted,
    }
    print(f"{options.tasks} tasks of {options.side} × {options.side} pixels; ready after {started:.1f} s\n")
    print("| | median, ms | 95 %, ms | longest, ms |\n|---|---|---|---|")
    for label, values in rows.items():
        print(f"| {label} | {median(values):.0f} | {np.quantile(values, 0.95):.0f} | {max(values):.0f} |")
    print("\n| memory, MiB | server | page |\n|---|---|---|")
    labels = ("at the start", "after a tenth of the votes", "at the end")
    for label, (server_memory, heap) in zip(labels, memory, strict=True):
        print(f"| {label} | {server_memory:.0f} | {heap:.0f} |")


if __name__ == "__main__":
    main()
