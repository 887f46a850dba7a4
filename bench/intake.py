"""How near importing comes to the bare decoder: pictures a second, peak memory, and whether it stays flat.

    python bench/intake.py --images 20000 --repeats 3

Generated files, half PNG and half JPEG (grey, speckled phantoms of 512 pixels), are read by the bare decoder (the same reader,
every file decoded, nothing else done, as many processes as the import has) and by the whole import: hashing, decoding,
quality, likeness, encoding and writing as PNG, lists and card. Both sides run in turn on the same files, in processes of their
own. No text is looked for: the readers say that these are CT. Peak memory is of the importing process and of its
largest worker, at a tenth of the files and at all. Writes bench/results/intake-cpu.json.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from measure import as_json, cores, report_side, run_side, spread, write_result
from stllava.config import IntakeOptions
from stllava.data.intake.convert import Parts, made_of
from stllava.data.intake.frame import Facts, Frame
from stllava.data.intake.importing import import_images
from stllava.data.intake.photograph import PhotographOptions, read_photograph

SIDE = 512
DISTINCT = 200
CHUNK = 64


def draw(folder: Path, images: int) -> None:
    """Files that differ in a strip of pixels, so that none is a copy."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    for number in range(images):
        if number % (images // min(images, DISTINCT)) == 0:
            waves = sum(np.sin(x * random.uniform(2, 30) + y * random.uniform(2, 30)) for _ in range(6))
            base = np.clip(128 + 20 * waves + random.normal(0, 4, x.shape), 0, 255).astype(np.uint8)
        base[:8] = random.integers(0, 256, (8, SIDE))
        path = folder / f"{number // 1000:03d}" / f"{number}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(base).save(path)


def read(path: Path) -> Iterator[Frame]:
    """The package's own reader, saying that it is a slice without text."""
    for frame in read_photograph(path, PhotographOptions()):
        yield Frame(frame.pixels, Facts(modality="CT"), frame.identity, burned="no")


def parts(options: IntakeOptions) -> Parts:
    """The package's own parts with that reader."""
    own = made_of(options)
    return Parts(own.recognise, {"photograph": read}, own.treat)


def decode(path: Path) -> int:
    """What the bare decoder does with a file."""
    return sum(frame.pixels.shape[0] for frame in read(path))


def side(name: str, work: Path, workers: int) -> None:
    """Run one side and report its seconds and peak memory in MiB."""
    source = work / "files"
    began = time.perf_counter()
    if name == "decoder":
        files = sorted(path for path in source.rglob("*") if path.is_file())
        began = time.perf_counter()
        with multiprocessing.get_context("forkserver").Pool(workers) as pool:
            rows = sum(pool.imap_unordered(decode, files, chunksize=CHUNK))
        if rows != SIDE * len(files):
            raise SystemExit("the decoder lost pictures")
    else:
        to = work / "data"
        options = IntakeOptions(workers=workers, chunk=CHUNK, near_duplicates="mark")
        began = time.perf_counter()
        manifest = import_images(options, source=source, to=to, salt=work / "keys" / "salt", existing="replace", make=parts)
        if manifest.counts_out != manifest.counts_in:
            raise SystemExit(f"the import lost pictures: {manifest.dropped}")
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
    report_side({"seconds": seconds, "peak": peak})


def main() -> None:
    """Draw the files, run both sides in turn, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--side", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        side(asked.side[0], Path(asked.side[1]), asked.workers)
        return
    call = partial(run_side, __file__, "--workers", str(asked.workers), "--side")
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        draw(work / "files", max(1, asked.images // 10))
        few = call("import", folder)
        shutil.rmtree(work / "files")
        draw(work / "files", asked.images)
        runs = [(call("decoder", folder), call("import", folder)) for _ in range(asked.repeats)]
    rates = {name: spread([asked.images / run[at]["seconds"] for run in runs]) for at, name in enumerate(("decoder", "import"))}
    shares = spread([bare["seconds"] / whole["seconds"] for bare, whole in runs])
    peak = max(whole["peak"] for _, whole in runs)
    print(f"{asked.images} pictures of {SIDE} pixels, {asked.workers} workers")
    for name, rate in rates.items():
        print(f"  {name:<8} {rate} a second")
    print(f"  share of the decoder's rate {shares}; peak memory {few['peak']:.0f} MiB at a tenth, {peak:.0f} MiB at all")
    figures = {
        "bench": "intake",
        "images": asked.images,
        "side": SIDE,
        "workers": asked.workers,
        "images_per_second": {name: as_json(rate) for name, rate in rates.items()},
        "share_of_decoder": as_json(shares),
        "peak_mib_at_a_tenth": few["peak"],
        "peak_mib": peak,
    }
    print(write_result("intake-cpu", figures))


if __name__ == "__main__":
    main()
