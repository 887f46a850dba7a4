"""How near importing comes to the bare decoder, whether its memory is flat, and whether a killed import ends the same.

    python bench/intake.py --kind jpeg2000 --images 20000 --sides decoder quickest --resume
    python bench/intake.py --kind plain --images 2000

Generated slices of 512 pixels, as DICOM files with some fifty attributes (plain: uncompressed; jpeg2000: lossless, as archives
hold them) or as pictures (png, jpeg; imported as CT, so that no side looks for text). The sides take turns on the same
files, each with as many processes as there are cores: the bare decoder (pydicom's or Pillow's, to an array and no
further), for JPEG 2000 also with the quickest plug-in, which the import takes and pydicom by itself does not, a plain
script (decode, stretch to 8 bits, save with Pillow: no identity hidden, nothing checked), and the whole import: hashing,
decoding, quality, likeness, hiding, encoding, lists, card. Memory is that of a side's processes together,
looked at ten times a second. With --resume an import is killed (SIGKILL) half way and given again, and its output compared
with that of the one that was not. Writes bench/results/intake-KIND-cpu.json.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import JsonValue

from shared.measure import as_json, cores, report_side, run_side, spread, write_result
from stllava.config import IntakeOptions
from stllava.intake.convert import Toolbox, default_toolbox
from stllava.intake.readers.dicom.pixels import QUICKEST
from stllava.intake.readers.frame import Facts, Frame
from stllava.intake.readers.photograph import read_photograph
from stllava.intake.run import import_images

SIDE = 512
CHUNK = 64
KINDS = ("plain", "jpeg2000", "png", "jpeg")
SIDES = ("decoder", "quickest", "script", "import")


def draw(number: int, kind: str, folder: Path) -> None:
    """One file: waves under noise, 12 bits deep as DICOM."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    waves = sum(np.sin(x * random.uniform(2, 30) + y * random.uniform(2, 30)) for _ in range(6))
    path = folder / f"{number // 1000:03d}" / f"{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("png", "jpeg"):
        grey = np.clip(128 + 20 * waves + random.normal(0, 4, x.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(path, kind.upper())
    else:
        save_dicom(path, np.clip(1024 + 200 * waves + random.normal(0, 15, x.shape), 0, 4095).astype(np.uint16), kind, number)


def save_dicom(path: Path, values: NDArray[np.uint16], kind: str, number: int) -> None:
    """A CT slice with what a scanner writes, one of forty of its series."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

    series = number // 40
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"1.2.826.0.1.{series}.{number}"
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.826.0.2.{series // 2}", f"1.2.826.0.3.{series}"
    data.PatientID, data.PatientName, data.PatientBirthDate = f"P{series // 4}", f"NAME^NUMBER{series // 4}", "19500101"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200229"
    data.Modality, data.ImageType, data.BodyPartExamined = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "CHEST"
    data.Manufacturer, data.InstitutionName, data.StationName = "A maker of scanners", "A hospital", "CT01"
    data.ReferringPhysicianName, data.OperatorsName, data.StudyDescription = "DOE^JANE", "ROE^RICHARD", "CT thorax"
    data.SeriesDescription, data.ProtocolName, data.KVP, data.SliceThickness = "Thorax 1.0", "5.1 Thorax", 120, 1
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, number % 40], [1, 0, 0, 0, 1, 0]
    data.InstanceNumber, data.PixelSpacing = number % 40 + 1, [0.7, 0.7]
    block = data.private_block(0x0029, "A MAKER OF SCANNERS", create=True)
    for place in range(12):
        block.add_new(place, "LO", f"a private value, number {place}")
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.RescaleIntercept, data.RescaleSlope, data.WindowCenter, data.WindowWidth = -1024, 1, 40, 400
    data.PixelData = values.tobytes()
    data["PixelData"].VR = "OW"
    if kind == "jpeg2000":
        data.compress(JPEG2000Lossless, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)


def decoded(path: Path, kind: str, plugin: str = "") -> NDArray[np.generic]:
    """What the bare decoder makes of a file, by pydicom's own choice of a plug-in or the one named."""
    if kind in ("png", "jpeg"):
        with Image.open(path) as image:
            return np.asarray(image)
    from pydicom.pixels.utils import pixel_array

    return np.asarray(pixel_array(path, decoding_plugin=plugin))


def decode(path: Path, kind: str, plugin: str) -> int:
    """The sides `decoder` and `quickest`."""
    return len(decoded(path, kind, plugin))


def convert(path: Path, kind: str, to: Path) -> int:
    """The side `script`: what a user would write in ten lines."""
    values = decoded(path, kind).astype(np.float32)
    values -= values.min()
    grey = (values * (255 / max(float(values.max()), 1.0))).astype(np.uint8)
    Image.fromarray(grey).save(to / f"{path.name}.png", compress_level=1)
    return len(grey)


def read(path: Path) -> Iterator[Frame]:
    """The package's own reader of pictures, saying that it is a slice without text."""
    for frame in read_photograph(path):
        yield Frame(frame.pixels, Facts(modality="CT"), frame.identity, burned="no")


def toolbox(options: IntakeOptions) -> Toolbox:
    """The package's own toolbox with that reader."""
    own = default_toolbox(options)
    return Toolbox(own.recognise, {**own.readers, "photograph": read}, own.masker)


class Memory(threading.Thread):
    """The most that this process and its descendants hold together, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = 0.0, threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, sum(held(process) for process in descendants(os.getpid())))

    def end(self) -> float:
        """Stop looking; the peak."""
        self._ended.set()
        self.join()
        return self.peak


def descendants(process: int) -> list[int]:
    """A process and all that it has started."""
    children = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children += [int(word) for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # The thread has ended.
    return [process, *(one for child in children for one in descendants(child))]


def held(process: int) -> float:
    """Its share of main memory in MiB: pages that several hold count in parts."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # It has ended.
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def side(name: str, kind: str, work: Path, workers: int) -> None:
    """Run one side and report its seconds and peak memory in MiB."""
    source, to = work / "files", work / "data"
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    if name == "import":
        options = IntakeOptions(workers=workers, chunk=CHUNK)
        manifest = import_images(options, source=source, to=to, salt=work / "keys" / "salt", existing="resume", make=toolbox)
        if manifest.counts_out != manifest.counts_in:
            raise SystemExit(f"the import lost pictures: {manifest.dropped}")
    else:
        shutil.rmtree(work / "script", ignore_errors=True)
        (work / "script").mkdir()
        files = sorted(path for path in source.rglob("*") if path.is_file())
        decoders = {"decoder": partial(decode, kind=kind, plugin=""), "quickest": partial(decode, kind=kind, plugin=QUICKEST)}
        task = decoders.get(name) or partial(convert, kind=kind, to=work / "script")
        began = time.perf_counter()
        with multiprocessing.get_context("forkserver").Pool(workers) as pool:
            rows = sum(pool.imap_unordered(task, files, chunksize=CHUNK))
        if rows != SIDE * len(files):
            raise SystemExit(f"the {name} lost pictures")
    report_side({"seconds": time.perf_counter() - began, "peak": memory.end()})


def contents(data: Path) -> str:
    """One hash of a set's lists and pictures."""
    hashed = hashlib.sha256()
    for path in sorted(path for path in data.rglob("*") if path.suffix in (".jsonl", ".png", ".html", ".md")):
        hashed.update(f"{path.relative_to(data)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def killed_and_resumed(words: list[str], data: Path, seconds: float) -> dict[str, JsonValue]:
    """Kill an import after half its time, go on, and compare with what the last whole one wrote."""
    whole = contents(data)
    shutil.rmtree(data)
    call, quiet = [sys.executable, __file__, *words], subprocess.DEVNULL
    running = subprocess.Popen(call, start_new_session=True, stdout=quiet, stderr=quiet)
    time.sleep(seconds / 2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = sum(1 for _ in (data / "parts").glob("*.jsonl")) * CHUNK
    rest = run_side(__file__, *words)["seconds"]
    return {"kept_files": kept, "seconds_of_the_rest": rest, "same_output": contents(data) == whole}


def main() -> None:
    """Draw the files, run all sides in turn, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="jpeg2000")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--sides", nargs="+", choices=SIDES[:-1], default=SIDES[:-1], help="what the import is raced with")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--side", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        side(asked.side[0], asked.kind, Path(asked.side[1]), asked.workers)
        return
    names = [name for name in SIDES[:-1] if name in asked.sides and (asked.kind == "jpeg2000" or name != "quickest")]
    with tempfile.TemporaryDirectory(prefix="stllava-bench-") as folder:
        work = Path(folder)
        with multiprocessing.get_context("forkserver").Pool(asked.workers) as pool:
            pool.map(partial(draw, kind=asked.kind, folder=work / "files"), range(asked.images), chunksize=16)

        def words(name: str) -> list[str]:
            return ["--kind", asked.kind, "--side", name, folder, "--workers", str(asked.workers)]

        hidden = work / "more"
        (work / "files").rename(hidden)
        (work / "files").mkdir()
        for number in range(max(1, asked.images // 10)):
            shutil.copy(hidden / f"{number // 1000:03d}" / f"{number}", work / "files")
        few = run_side(__file__, *words("import"))["peak"]
        shutil.rmtree(work / "files")
        hidden.rename(work / "files")
        runs = []
        for _ in range(asked.repeats):
            shutil.rmtree(work / "data")
            runs.append({name: run_side(__file__, *words(name)) for name in (*names, "import")})
        took = runs[-1]["import"]["seconds"]
        resumed = killed_and_resumed(words("import"), work / "data", took) if asked.resume else None
    rates = {name: spread([asked.images / run[name]["seconds"] for run in runs]) for name in (*names, "import")}
    shares = {name: spread([run[name]["seconds"] / run["import"]["seconds"] for run in runs]) for name in names}
    peak = max(run["import"]["peak"] for run in runs)
    print(f"{asked.images} files of the kind {asked.kind}, {SIDE} pixels, {asked.workers} workers")
    for name, rate in rates.items():
        print(f"  {name:<8} {rate} a second")
    for name, share in shares.items():
        print(f"  the import has {share} of the rate of the {name}")
    print(f"  memory of its processes: {few:.0f} MiB at a tenth of the files, {peak:.0f} MiB at all")
    if resumed is not None:
        print(f"  killed and resumed: {json.dumps(resumed)}")
    figures: dict[str, JsonValue] = {
        "bench": "intake",
        "kind": asked.kind,
        "images": asked.images,
        "side": SIDE,
        "workers": asked.workers,
        "images_per_second": {name: as_json(rate) for name, rate in rates.items()},
        "share_of": {name: as_json(share) for name, share in shares.items()},
        "peak_mib_at_a_tenth": few,
        "peak_mib": peak,
        "resumed": resumed,
    }
    print(write_result(f"intake-{asked.kind}-cpu", figures))


if __name__ == "__main__":
    main()
