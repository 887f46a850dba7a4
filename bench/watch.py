"""How much longer a run takes while its page is open, and whether the page says what the manifests do.

    python bench/watch.py [--repeats 5] [--every 4] [--quick]

Runs the demo (`--quick`: a smaller one on a few images, two repeats) by turns with and without `stllava watch` open on it, the
order turned round at every repeat, so that neither is always the first. The page is asked for as its own script does: again
so many seconds after the last answer, and the images on it where it has changed. Prints the wall time of both, how much longer
the watched runs took, as the mean of the repeats' shares with its 95 % interval (Student's t), the processor time of the
watching, and every stage of which the page named other counts than its manifest does.

Wall time of minutes wanders by more than a page can cost, so the most that it can hold up a run is also read from the kernel:
for how long anything that could run waited for a core (`some` of /proc/pressure/cpu, the whole machine), with and without it.
Whatever the page takes from the run, beside warm caches, the run or the page has waited for. Nothing else may be at work.
"""

import argparse
import itertools
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import mean, median, stdev

import httpx2

import stllava
from stllava.metrics.stats import student
from stllava.store import read_manifest

ROW = re.compile(r'<tr data-stage="([^"]+)" data-status="done"><th scope="row">[^<]+</th>\s*<td>([\d,]+)</td><td>([\d,]+)</td>')
AT_WORK = re.compile(r'data-stage="([^"]+)" data-done="(\d+)" data-items="(\d+)"')
MAIN = re.compile(r"<main.*</main>", re.DOTALL)
IMAGE = re.compile(r'src="(/image/[^"]+)"')
STLLAVA = [sys.executable, "-m", "stllava"]
RECIPE = Path(stllava.__file__).parent / "recipes" / "phantom.yaml"
SMALL = {"data.labelled": 30, "data.unlabelled": 30, "data.validation": 30, "data.test": 40, "sft.epochs": 8, "rounds": 1}
"""What the smaller demo has other than the whole one."""


@dataclass
class Watched:
    """What was seen of a run by an open page."""

    rows: set[tuple[str, str, str]] = field(default_factory=set)
    """Stages that were done, with the counts on the page."""
    at_work: set[str] = field(default_factory=set)
    looks: list[float] = field(default_factory=list)
    """Seconds that each answer took."""
    processor: float = 0.0
    """Seconds of the watching process, its start among them."""


@dataclass
class Ran:
    """What one run took."""

    seconds: float
    """Wall time."""
    crowded: float
    """For how many of them anything on this machine waited for a core."""


def crowded_seconds() -> float:
    """For how long so far anything that could run waited for a core, on the whole machine."""
    return int(Path("/proc/pressure/cpu").read_text().splitlines()[0].rpartition("total=")[2]) / 1e6


def processor_seconds(process: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(words: list[str], **more: object) -> Iterator[subprocess.Popen[str]]:
    """A process, which ends with this."""
    process = subprocess.Popen([*STLLAVA, *words], text=True, stderr=subprocess.DEVNULL, **more)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watch(run: Path, demo: subprocess.Popen[str], *, every: float) -> Watched:
    """Look at a run as an open page does, until it is over."""
    while not (run / "plan.json").is_file() and demo.poll() is None:
        time.sleep(0.05)
    seen, before, ended = Watched(), "", os.pidfd_open(demo.pid)
    with running(["watch", str(run), "--port", "0"], stdout=subprocess.PIPE) as server, httpx2.Client() as client:
        assert server.stdout is not None
        address = next(line for line in server.stdout if "http://" in line).split()[-1]
        host = address.partition("/open/")[0]
        client.get(address, follow_redirects=True)
        while demo.poll() is None:
            began = time.monotonic()
            page = client.get(f"{host}/").text
            shown = "".join(MAIN.findall(page))
            if shown != before:
                for image in dict.fromkeys(IMAGE.findall(shown)):
                    client.get(host + image)
            seen.looks.append(time.monotonic() - began)
            before = shown
            seen.rows |= {(stage, given, came) for stage, given, came in ROW.findall(page)}
            seen.at_work |= {stage for stage, _, _ in AT_WORK.findall(page)}
            # The run's end is noticed at once, so that it is not measured in steps of the looks, and without waking up for it.
            select.select([ended], [], [], every)
        seen.processor = processor_seconds(server.pid)
    os.close(ended)
    return seen


def wrong_counts(run: Path, seen: Watched) -> list[str]:
    """The stages of which the page said other counts than their manifests do."""
    wrong = []
    for stage, given, came in sorted(seen.rows):
        manifest = read_manifest(run / stage)
        if (f"{manifest.counts_in:,}", f"{manifest.counts_out:,}") != (given, came):
            wrong.append(f"{stage}: {given}, {came} on the page; {manifest.counts_in}, {manifest.counts_out} here")
    return wrong


def measured(run: Path, *, watched: bool, quick: bool, every: float) -> tuple[Ran, Watched | None]:
    """What a run took, and what was seen of it."""
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words = ["run", str(RECIPE), *small, "--to", str(run)] if quick else ["demo", "--to", str(run)]
    began, crowded = time.monotonic(), crowded_seconds()
    with running(words, stdout=subprocess.DEVNULL) as demo:
        seen = watch(run, demo, every=every) if watched else None
        if demo.wait():
            sys.exit(f"the run ended with {demo.returncode}: {' '.join(words)}")
        return Ran(time.monotonic() - began, crowded_seconds() - crowded), seen


def shown(shares: list[float]) -> str:
    """Mean of the repeats' shares in percent, with the 95 % interval of Student's t and each of them."""
    reach = student(len(shares) - 1) * stdev(shares) / sqrt(len(shares)) if len(shares) > 1 else float("inf")
    each = ", ".join(f"{share:+.2f}" for share in shares)
    return f"{mean(shares):+.2f} % [{mean(shares) - reach:+.2f}, {mean(shares) + reach:+.2f}] (by repeat: {each})"


def main() -> None:
    """Run by turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="runs of each kind; 5, or 2 with --quick")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between an answer and the next look")
    parser.add_argument("--quick", action="store_true", help="a smaller run")
    options = parser.parse_args()
    repeats = options.repeats or (2 if options.quick else 5)
    plain, watched, seen, wrong = list[Ran](), list[Ran](), list[Watched](), list[str]()
    for repeat in range(repeats):
        for is_watched in (False, True) if repeat % 2 == 0 else (True, False):
            with tempfile.TemporaryDirectory() as name:
                run = Path(name) / "run"
                ran, looked = measured(run, watched=is_watched, quick=options.quick, every=options.every)
                (watched if is_watched else plain).append(ran)
                if looked is not None:
                    seen.append(looked)
                    wrong += wrong_counts(run, looked)
            print(f"repeat {repeat + 1}, {'watched' if is_watched else 'alone'}: {ran.seconds:.1f} s,", end=" ")
            print(f"something waited for a core in {ran.crowded:.1f} s of them", flush=True)
    times = [[ran.seconds for ran in runs] for runs in (plain, watched)]
    more = [100 * (with_page.seconds / without.seconds - 1) for with_page, without in zip(watched, plain, strict=True)]
    waited = [100 * (page.crowded - none.crowded) / none.seconds for page, none in zip(watched, plain, strict=True)]
    looks = list(itertools.chain.from_iterable(one.looks for one in seen))
    stages = {stage for one in seen for stage, _, _ in one.rows}
    print("\nmedians with the least and the most:", end=" ")
    print(
        *(
            f"{kind} {median(t):.1f} s [{min(t):.1f}, {max(t):.1f}]"
            for kind, t in zip(("alone", "watched"), times, strict=True)
        ),
        sep=", ",
    )
    print(f"watched runs took {shown(more)} longer")
    print(f"something waited for a core in {shown(waited)} more of their time: the most that the page can have held them up")
    print(f"{len(looks)} looks, {median(looks) * 1000:.0f} ms each (median, with images); watching took", end=" ")
    print(f"{median(one.processor for one in seen):.2f} s of processor time a run, its start included")
    print(f"{len({stage for one in seen for stage in one.at_work})} stages seen at work")
    print(*(wrong or [f"all counts of {len(stages)} stages are those of their manifests"]), sep="\n")


if __name__ == "__main__":
    main()
