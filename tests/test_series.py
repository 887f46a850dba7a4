"""Slices that come as one file each are chosen by where they lie, across the files of their series."""

import json
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from helpers.intake_parts import SLICES, import_slices
from stllava.config import IntakeOptions
from stllava.data.image_set import Imported, LeftOut, read_imported
from stllava.errors import ItemError
from stllava.intake.readers.dicom.read import DicomOptions
from stllava.intake.readers.dicom.stack import MARKS, MaximumProjection, read_slice
from stllava.intake.series import Slices, Stacks
from stllava.records import Manifest
from stllava.review.series_slices import series_slices
from stllava.store import read_jsonl

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import UID, ExplicitVRLittleEndian  # noqa: E402

SIDE = 40
AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
Values = NDArray[np.int16]
MIDDLE, MIP = (SLICES.model_copy(update={"frames": frames}) for frames in ("middle", "mip"))


def noise(seed: int, frames: int = 0) -> Values:
    shape = (frames, SIDE, SIDE) if frames else (SIDE, SIDE)
    return np.random.default_rng(seed).integers(0, 1000, shape, dtype=np.int16)


def make(path: Path, values: Values, **fields: object) -> Path:
    """A CT slice of one series, with the fields given; None takes one away."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    given: dict[str, object] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "SOPInstanceUID": f"1.2.3.{zlib.crc32(str(path).encode())}",
        "PatientID": "p1",
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Rows": SIDE,
        "Columns": SIDE,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "ImageOrientationPatient": AXIAL,
        "WindowCenter": 500,
        "WindowWidth": 1000,
        "PixelData": values.tobytes(),
    }
    for name, value in {**given, **fields}.items():
        if value is not None:
            setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def stack(folder: Path, count: int, *, seed: int = 0, **fields: object) -> list[Values]:
    """Slices 2.5 mm apart, their names and instance numbers in two other orders; returned by position."""
    names, instances = (np.random.default_rng(seed + turn).permutation(count) for turn in (1, 2))
    values = [noise(seed + place) for place in range(count)]
    for place, one in enumerate(values):
        at = {"ImagePositionPatient": [-100.0, 5.0, 2.5 * place - 300], "InstanceNumber": int(instances[place]) + 1}
        make(folder / f"{seed}-{names[place]:02d}.dcm", one, **{**at, **fields})
    return values


def shown(measured: NDArray[np.float64] | Values, centre: float = 500, width: float = 1000) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2.1, LINEAR."""
    return np.floor(np.clip((measured - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8)


def pictures(folder: Path, to: str = "data") -> list[tuple[Imported, NDArray[np.uint8]]]:
    return [(row, np.asarray(Image.open(folder / to / row.path))) for row in read_imported(folder / to)]


def left_out(folder: Path) -> list[LeftOut]:
    return read_jsonl(folder / "data" / "left_out.jsonl", LeftOut)


def names(folder: Path) -> dict[str, str]:
    """Cause of every file left out, by name."""
    (files,) = (folder / "keys").glob("*.files.jsonl")
    listed = [Path(json.loads(line)[1]).name for line in files.read_text().splitlines()]
    return {listed[row.number]: row.cause for row in left_out(folder)}


def test_the_middle_and_every_nth_are_chosen_by_position_not_by_name_or_number(tmp_path: Path) -> None:
    values = stack(tmp_path / "in" / "a", 7)
    manifest = import_slices(tmp_path, MIDDLE)
    ((row, pixels),) = pictures(tmp_path)
    assert (pixels == shown(values[3])).all()
    assert row.frame == 3
    assert (manifest.counts_in, manifest.counts_out, manifest.measures["files not chosen"]) == (7, 1, 6)
    manifest = import_slices(tmp_path, SLICES.model_copy(update={"frames": "every", "step": 3}), to="every")
    found = {row.frame: pixels for row, pixels in pictures(tmp_path, "every")}
    assert found.keys() == {0, 3, 6}
    assert all((pixels == shown(values[place])).all() for place, pixels in found.items() if place is not None)
    assert manifest.measures["files not chosen"] == 4
    assert "4 files are slices" in " ".join(manifest.notes)
    assert read_imported(tmp_path / "every")[0].series == row.series


def test_all_slices_stay_and_nothing_is_said_of_a_choice_where_none_is_asked_for(tmp_path: Path) -> None:
    stack(tmp_path / "in" / "a", 3)
    manifest = import_slices(tmp_path, SLICES)
    assert manifest.counts_out == 3
    assert not [name for name in manifest.measures if name.startswith("files")]
    (files,) = (tmp_path / "keys").glob("*.files.jsonl")
    assert {len(json.loads(line)) for line in files.read_text().splitlines()} == {5}


def test_a_projection_is_the_greatest_rescaled_value_of_all_files_through_the_window_of_the_middle_one(tmp_path: Path) -> None:
    slopes = {place: 0.5 + place / 4 for place in range(5)}
    values = [noise(place) for place in range(5)]
    for place in range(5):
        make(
            tmp_path / "in" / f"{(place * 3) % 5}",
            values[place],
            ImagePositionPatient=[0, 0, -place],
            InstanceNumber=place + 1,
            RescaleSlope=slopes[place],
            RescaleIntercept=-100,
            Modality="MR",
            WindowCenter=400 if place == 2 else 1,
            WindowWidth=700 if place == 2 else 2,
        )
    manifest = import_slices(tmp_path, MIP)
    ((row, pixels),) = pictures(tmp_path)
    greatest = np.max([values[place] * slopes[place] - 100 for place in range(5)], axis=0)
    assert (pixels == shown(greatest, 400, 700)).all()
    assert row.frame is None
    assert row.done == ("maximum of 5 of 5 slices", "rescaled", "the file's window LINEAR (400, 700)")
    assert (manifest.counts_in, manifest.counts_out, manifest.measures["files projected"]) == (5, 1, 5)


def test_stacks_of_one_series_localizers_views_and_volumes_in_one_file_are_kept_apart(tmp_path: Path) -> None:
    source = tmp_path / "in"
    axial = stack(source / "axial", 5)
    sagittal = stack(source / "sagittal", 3, seed=20, ImageOrientationPatient=SAGITTAL)
    # Positions along z do not order slices that lie side by side: these share one place, and their numbers decide.
    numbers = {path: pydicom.dcmread(path).InstanceNumber for path in sorted((source / "sagittal").iterdir())}
    chosen = sorted(numbers, key=lambda path: numbers[path])[1]
    localizer = make(
        source / "localizer", noise(40), ImagePositionPatient=[0, 0, 0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    other = make(source / "other", noise(41), ImagePositionPatient=[0, 0, 0], PatientID="p2")
    make(source / "several", noise(42, 4), ImagePositionPatient=[0, 0, 0], NumberOfFrames=4)
    views = [
        make(source / f"view{at}", noise(43 + at), Modality="DX", InstanceNumber=at, ImageOrientationPatient=None)
        for at in (1, 2)
    ]
    for view in views:
        assert read_slice(view, coloured=True) is None
    manifest = import_slices(tmp_path, MIDDLE.model_copy(update={"near_duplicates": "ignore"}))
    found = [pixels for _, pixels in pictures(tmp_path)]
    single = [pydicom.dcmread(path).pixel_array for path in (chosen, localizer, other)]
    wanted = [axial[2], *single, noise(42, 4)[2], noise(44), noise(45)]
    for one in wanted:
        assert sum(bool((pixels == shown(one)).all()) for pixels in found) == 1
    assert any((sagittal[at] == single[0]).all() for at in range(3))
    assert (manifest.counts_out, manifest.measures["files not chosen"], manifest.dropped) == (7, 4 + 2, {})
    assert manifest.counts_in == 7 + 6


@pytest.mark.slow
def test_files_in_trouble_are_named_and_the_projection_is_made_of_the_rest(tmp_path: Path) -> None:
    source = tmp_path / "in"
    values = stack(source, 4)
    for at, name in enumerate(("hangs-pixels", "crashes-pixels", "hangs-header", "crashes-header", "cut"), 4):
        make(source / name, noise(at), ImagePositionPatient=[0, 0, 2.5 * at - 300])
    cut = source / "cut"
    cut.write_bytes(cut.read_bytes()[:-200])
    (source / "broken").write_bytes(cut.read_bytes()[:600])
    manifest = import_slices(tmp_path, MIP.model_copy(update={"seconds": 2}))
    assert names(tmp_path) == {
        "hangs-pixels": "too-slow",
        "hangs-header": "too-slow",
        "crashes-pixels": "crashed",
        "crashes-header": "crashed",
        "cut": "truncated",
        "broken": "no-picture",
    }
    ((row, pixels),) = pictures(tmp_path)
    assert (pixels == shown(np.max(values, axis=0))).all()
    assert row.done[0] == "maximum of 4 of 8 slices"
    assert manifest.counts_in == manifest.measures["files projected"] + sum(manifest.dropped.values()) == 10


def test_of_a_projection_that_is_kept_out_every_file_is_named(tmp_path: Path) -> None:
    for at in range(3):
        make(tmp_path / "in" / f"{at}", np.zeros((SIDE, SIDE), np.int16), ImagePositionPatient=[0, 0, at])
        name = "crashes-picture" if at == 1 else f"other{at}"
        make(tmp_path / "in" / name, noise(at), ImagePositionPatient=[0, 0, at], SeriesInstanceUID="1.2.3.9")
    last = [make(tmp_path / "in" / f"z{at}", noise(at), ImagePositionPatient=[0, 0, at], PatientID="p9") for at in range(2)]
    manifest = import_slices(tmp_path, MIP)
    assert manifest.dropped == {"blank": 3, "crashed": 3}
    assert names(tmp_path) == dict.fromkeys("012", "blank") | dict.fromkeys(("crashes-picture", "other0", "other2"), "crashed")
    assert sorted((row.number, row.frame) for row in left_out(tmp_path) if row.cause == "blank") == [
        (0, 0),
        (1, None),
        (2, None),
    ]
    assert (manifest.counts_in, manifest.counts_out, manifest.measures["files projected"]) == (8, 1, len(last))


def test_a_projection_is_as_doubtful_as_its_worst_file_and_knows_the_texts_of_all(tmp_path: Path) -> None:
    projection = MaximumProjection(DicomOptions())
    for at, fields in enumerate(
        ({}, {"BurnedInAnnotation": "YES", "ImageComments": "Zaphodson"}, {"BurnedInAnnotation": "NO"})
    ):
        projection.add(make(tmp_path / f"{at}", noise(at), ImagePositionPatient=[0, 0, at], **fields), off=abs(at - 1))
    frame = projection.frame(total=9)
    assert frame.burned == "yes"
    assert frame.identity.patient == "p1"
    assert {"Zaphodson"} <= frame.identity.texts
    odd: list[dict[str, object]] = [{"Rows": SIDE // 2}, {"PhotometricInterpretation": "MONOCHROME1"}, {"NumberOfFrames": 2}]
    for other in odd:
        with pytest.raises(ItemError) as caught:
            projection.add(make(tmp_path / "odd", noise(3, 2), **other), off=0)
        assert caught.value.cause == "unsupported"
    again = projection.frame(total=9)
    assert (again.pixels == shown(np.max([noise(at) for at in range(3)], axis=0))).all()
    assert again.facts.done[0] == "maximum of 3 of 9 slices"


def same_after_kill(folder: Path, options: IntakeOptions) -> Manifest:
    """Import at once, and killed once a part is there and resumed; the same bytes must come of both."""
    import_slices(folder, options, to="whole")
    call = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[3:]\n"
        "from helpers.intake_parts import IntakeOptions, import_slices\n"
        "options = IntakeOptions.model_validate_json(sys.argv[2])\n"
        "if __name__ == '__main__': import_slices(Path(sys.argv[1]), options)"
    )
    command = [sys.executable, "-c", call, str(folder), options.model_dump_json(), *sys.path]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((folder / "data" / "parts").glob("*.jsonl")):
            time.sleep(0.005)
        process.kill()
    assert not (folder / "data" / "manifest.json").exists()
    listed = {path: path.read_bytes() for path in (folder / "keys").glob("*.files.jsonl")}
    manifest = import_slices(folder, options)
    import_slices(folder, options)
    assert {path: path.read_bytes() for path in (folder / "keys").glob("*.files.jsonl")} == listed
    one, other = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (folder / "whole", folder / "data")
    )
    assert one.keys() == other.keys()
    assert [name for name in one if name != "manifest.json" and one[name] != other[name]] == []
    return manifest


@pytest.mark.parametrize("options", [MIDDLE, MIP], ids=["middle", "mip"])
@pytest.mark.slow
def test_a_killed_choice_goes_on_and_gives_the_same_bytes(options: IntakeOptions, tmp_path: Path) -> None:
    kept = 20
    for at in range(kept):
        stack(tmp_path / "in" / f"{at}", 3, seed=10 * at, SeriesInstanceUID=f"1.2.3.{at + 5}", PatientID=f"p{at % 5}")
    manifest = same_after_kill(tmp_path, options)
    assert (manifest.counts_in, manifest.counts_out, manifest.dropped) == (3 * kept, kept, {})


def line(number: int, *, place: float, **fields: object) -> str:
    """What a worker says of a slice of one axial stack."""
    given = {"stack": 1, "name": number, "orientation": AXIAL, "position": [0, 0, place], "instance": 0, "marks": {}} | fields
    marks = given["marks"]
    assert isinstance(marks, dict)
    given["marks"] = [str(marks.get(name, "")) for name in MARKS]
    return json.dumps([number, *given.values()])


def stacked(lines: list[str]) -> tuple[list[list[int]], list[int]]:
    """Every stack's files in order, the stacks by their first file; and the copies."""
    slices = Slices()
    for one in lines:
        slices.add(one)
    stacks, copies = list[list[int]](), list[int]()
    for numbers, again in Stacks(slices):
        stacks.append(numbers.tolist())
        copies += again.tolist()
    return sorted(stacks), sorted(copies)


@pytest.mark.parametrize("frames", ["all", "every"])
def test_the_review_page_shows_a_slice_with_its_series(tmp_path: Path, frames: Literal["all", "every"]) -> None:
    stack(tmp_path / "in", 4)
    stack(tmp_path / "in", 3, seed=9, SeriesInstanceUID="1.2.9", PatientID="other")
    import_slices(tmp_path, SLICES.model_copy(update={"frames": frames, "step": 1}))
    rows = read_imported(tmp_path / "data")
    found = series_slices(tmp_path / "data", [row.path for row in rows])
    assert sorted(Counter(map(len, found.values())).items()) == [(3, 3), (4, 4)]
    frame_of = {row.path: row.frame for row in rows}
    assert all([frame_of[path] for path in slices] == list(range(len(slices))) for slices in found.values())
    assert all(path in slices for path, slices in found.items())


def test_nothing_found_is_no_stack() -> None:
    assert stacked([]) == ([], [])


@given(st.lists(st.integers(-50, 50), unique=True, min_size=1), st.randoms(), st.floats(-1e-3, 1e-3))
def test_a_stack_goes_by_position_whatever_the_order_of_arrival(places: list[int], random: object, tilt: float) -> None:
    lines = [
        line(number, place=place * 0.7, instance=-place, orientation=[1, 0, tilt * (number % 2), 0, 1, 0])
        for number, place in enumerate(places)
    ]
    random.shuffle(lines)  # type: ignore[attr-defined]
    assert stacked(lines) == ([[places.index(place) for place in sorted(places)]], [])


def test_slices_of_one_place_go_by_instance_then_by_file() -> None:
    lines = [line(0, place=1.0, instance=3), line(1, place=1.0, instance=2), line(2, place=1.0 + 1e-5, instance=2)]
    assert stacked(lines) == ([[1, 2, 0]], [])


def test_copies_of_a_slice_count_once() -> None:
    lines = [line(0, place=1, name=7), line(1, place=2), line(2, place=1, name=7), line(3, place=1, name=8)]
    assert stacked(lines) == ([[0, 3, 1]], [2])


def test_passes_through_the_same_places_are_stacks_of_their_own_where_a_mark_tells_them_apart() -> None:
    lines = [
        line(4 * phase + 2 * echo + place, place=place, marks={"TemporalPositionIdentifier": phase, "EchoTime": 10 * echo})
        for phase in range(3)
        for echo in range(2)
        for place in range(2)
    ]
    assert stacked(lines)[0] == [[at, at + 1] for at in range(0, 12, 2)]


def test_a_mark_that_numbers_the_slices_or_the_phases_of_one_place_splits_nothing() -> None:
    numbered = [line(at, place=at // 2, marks={"AcquisitionNumber": at}) for at in range(6)]
    cine = [line(at, place=0, instance=at, marks={"TriggerTime": at}) for at in range(6)]
    assert stacked(numbered)[0] == stacked(cine)[0] == [[0, 1, 2, 3, 4, 5]]


def test_slices_turned_by_a_degree_are_no_stack_and_a_position_is_not_mixed_with_none() -> None:
    turned = [np.cos(np.radians(1)), np.sin(np.radians(1)), 0, -np.sin(np.radians(1)), np.cos(np.radians(1)), 0]
    lines = [line(0, place=0), line(1, place=1, orientation=turned), line(2, place=2), line(3, place=3, orientation=None)]
    assert stacked(lines)[0] == [[0, 2], [1], [3]]


def test_a_header_tells_where_a_slice_lies_in_old_plain_and_enhanced_objects(tmp_path: Path) -> None:
    plain = read_slice(make(tmp_path / "a", noise(0), ImagePositionPatient=[1, 2, 3], InstanceNumber=9), coloured=False)
    assert plain is not None
    assert (plain.orientation, plain.position, plain.instance) == (tuple(map(float, AXIAL)), (1.0, 2.0, 3.0), 9)
    old = read_slice(make(tmp_path / "b", noise(0), InstanceNumber=4, ImageOrientationPatient=None), coloured=False)
    assert old is not None
    assert (old.orientation, old.position) == (None, (4.0, 4.0, 4.0))
    item, orientation, position = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, position.ImagePositionPatient = SAGITTAL, [7, 8, 9]
    item.PlaneOrientationSequence, item.PlanePositionSequence = [orientation], [position]
    fields = {"PerFrameFunctionalGroupsSequence": [item], "NumberOfFrames": 1, "ImageOrientationPatient": None}
    enhanced = read_slice(make(tmp_path / "c", noise(0), **fields), coloured=False)
    assert enhanced is not None
    assert (enhanced.orientation, enhanced.position) == (tuple(map(float, SAGITTAL)), (7.0, 8.0, 9.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"SeriesInstanceUID": None},
        {"NumberOfFrames": 2},
        {"InstanceNumber": None, "ImageOrientationPatient": None},
        {"Modality": "US", "ImageOrientationPatient": None},
        {"PhotometricInterpretation": "RGB"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_no_slice_is_by_itself(fields: dict[str, object], tmp_path: Path) -> None:
    given = {"InstanceNumber": 1, "ImagePositionPatient": [0, 0, 0], **fields}
    assert read_slice(make(tmp_path / "a", noise(0), **given), coloured=False) is None


def test_pydicoms_own_series_are_thinned_to_one_slice_each(tmp_path: Path) -> None:
    shipped = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tree").symlink_to(shipped)
    found = Counter[tuple[str, ...]]()
    for path in shipped.rglob("*"):
        data = pydicom.dcmread(path, force=True) if path.is_file() else Dataset()
        if "Rows" in data and data.Modality in ("CT", "MR"):
            turned = tuple(f"{float(cosine):.3f}" for cosine in data.get("ImageOrientationPatient", ()))
            found[(data.SeriesInstanceUID, *turned, str("LOCALIZER" in data.get("ImageType", ())))] += 1
    assert max(found.values()) > 2
    manifest = import_slices(tmp_path, MIDDLE.model_copy(update={"smallest": 1, "links": "anywhere"}))
    assert manifest.measures["files not chosen"] == sum(found.values()) - len(found)
