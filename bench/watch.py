"""What watching a run costs it, and whether what the page says of its stages is what their manifests say.

    python bench/watch.py [--every 4]

Runs the demo, serves the page of `stllava watch` beside it and looks at it every few seconds, as an open browser does. Prints
the processor time of both, how long a look takes, and every stage of which the page named other counts than its manifest does.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx2

from stllava.store import read_manifest

ROW = re.compile(r'<tr data-stage="([^"]+)" data-status="done"><th scope="row">[^<]+</th>\s*<td>([\d,]+)</td><td>([\d,]+)</td>')
AT_WORK = re.compile(r'data-stage="([^"]+)" data-done="(\d+)" data-items="(\d+)"')


def processor_seconds(process: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run, look and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two looks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run, seen, at_work, looks = Path(name) / "run", set[tuple[str, str, str]](), set[str](), list[float]()
        command = [sys.executable, "-m", "stllava"]
        demo = subprocess.Popen([*command, "demo", "--to", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (run / "plan.json").is_file():
            time.sleep(0.2)
        watch = subprocess.Popen([*command, "watch", str(run), "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert watch.stdout is not None
            address = next(line for line in watch.stdout if "http://" in line).split()[-1]
            spent = 0.0
            with httpx2.Client(follow_redirects=True) as client:
                client.get(address)
                started = processor_seconds(watch.pid)
                while demo.poll() is None:
                    began = time.monotonic()
                    page = client.get(address.partition("/open/")[0] + "/").text
                    looks.append(time.monotonic() - began)
                    seen |= {(stage, given, came) for stage, given, came in ROW.findall(page)}
                    at_work |= {stage for stage, _, _ in AT_WORK.findall(page)}
                    spent = processor_seconds(demo.pid)
                    time.sleep(options.every)
                watched = processor_seconds(watch.pid) - started
        finally:
            watch.kill()
            demo.kill()
        wrong = []
        for stage, given, came in sorted(seen):
            manifest = read_manifest(run / stage)
            if (f"{manifest.counts_in:,}", f"{manifest.counts_out:,}") != (given, came):
                wrong.append(f"{stage}: {given}, {came} on the page; {manifest.counts_in}, {manifest.counts_out} here")
        print(f"{len(looks)} looks, {median(looks) * 1000:.0f} ms each (median); {len(at_work)} stages seen at work")
        print(f"demo {spent:.1f} s of processor time, watching it {watched:.1f} s: {watched / spent:.2%}")
        print(
            *(wrong or [f"all counts of {len({stage for stage, _, _ in seen})} stages are those of their manifests"]), sep="\n"
        )


if __name__ == "__main__":
    main()
