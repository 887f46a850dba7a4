"""Pages as people see them: a server of ours in a process of its own, and Debian's Chromium driven by Playwright."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@contextmanager
def serving(words: Sequence[str], *, stop: signal.Signals = signal.SIGINT) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command of ours that serves a page, and the addresses that it shows."""
    command = [sys.executable, "-m", "stllava", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        addresses, lines = [], []
        for line in process.stdout:
            lines.append(line)
            if "http://" in line:
                addresses.append("http://" + line.partition("http://")[2].strip())
            if "Ctrl-C" in line:
                break
        assert addresses, "".join(lines)
        try:
            yield process, addresses
        finally:
            process.send_signal(stop)
            process.wait(timeout=20)


@contextmanager
def browsing() -> Iterator[Any]:
    """Chromium; the test is skipped where it, or Playwright, is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright drives the page: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine, so nobody has looked at the page: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def picture(page: Any, name: str) -> None:
    """A screenshot, where the variable STLLAVA_SCREENSHOTS names a folder for them."""
    folder = os.environ.get("STLLAVA_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
