"""DICOM files become the pictures they hold: every file of pydicom's wheel, and small ones made here with known values."""

import logging
import random
import struct
import sys
import traceback
import tracemalloc
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stllava.errors import ItemError, StllavaError
from stllava.intake.readers.dicom import read
from stllava.intake.readers.dicom.read import CAUSES, DicomOptions, read_dicom
from stllava.intake.readers.dicom.windows import PRESETS, Window, choose, to_unit
from stllava.intake.readers.frame import Frame

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing  # noqa: E402
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless  # noqa: E402

SHIPPED = Path(pydicom.__file__).parent / "data"
FILES = SHIPPED / "test_files"
CR = FILES / "dicomdirtests" / "77654033" / "CR1" / "6154"
Array = NDArray[np.integer] | NDArray[np.floating]
NAME = "Quenneville^Zoltan"


def first(path: Path, options: DicomOptions | None = None) -> Frame:
    return next(iter(read_dicom(path, options or DicomOptions())))


def stored(name: str, kind: str) -> Array:
    """The file's pixels as numpy reads their bytes."""
    data = pydicom.dcmread(FILES / name)
    return np.frombuffer(data.PixelData, dtype=kind)[: data.Rows * data.Columns].reshape(data.Rows, data.Columns)


def linear(values: Array, centre: float, width: float) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2.1, its three cases one after the other."""
    x = values.astype(np.float64)
    y = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    y[x <= centre - 0.5 - (width - 1) / 2] = 0
    y[x > centre - 0.5 + (width - 1) / 2] = 255
    return np.floor(y + 0.5).astype(np.uint8)


def unpack_rle(frame: bytes) -> list[bytes]:
    """The byte planes of an RLE frame (PS3.5 annex G), by hand."""
    count, *starts = struct.unpack("<16I", frame[:64])
    ends = [*starts[1:count], len(frame)]
    planes = []
    for begin, end in zip(starts[:count], ends, strict=True):
        out, place = bytearray(), begin
        while place < end:
            head = frame[place]
            if head < 128:
                out += frame[place + 1 : place + 2 + head]
                place += 2 + head
            elif head > 128:
                out += frame[place + 1 : place + 2] * (257 - head)
                place += 2
            else:
                place += 1
        planes.append(bytes(out))
    return planes


def rle_values(name: str, width: int, frame: int = 0) -> Array:
    """[H, W, samples] of an RLE file whose values have `width` bytes, the highest byte's plane first."""
    data = pydicom.dcmread(FILES / name)
    count = int(data.get("NumberOfFrames", 1))
    planes = unpack_rle(list(generate_frames(data.PixelData, number_of_frames=count))[frame])
    size = data.Rows * data.Columns
    whole = np.stack([np.frombuffer(plane[:size], dtype=np.uint8) for plane in planes], axis=-1).astype(np.uint64)
    weights = (1 << (8 * np.arange(width)[::-1])).astype(np.uint64)
    values: Array = (whole.reshape(data.Rows, data.Columns, -1, width) * weights).sum(axis=-1)
    return values


def ybr_to_rgb(y: Array, blue: Array, red: Array) -> Array:
    """PS3.3 C.7.6.3.1.2 solved for RGB."""
    y, cb, cr = (part.astype(np.float64) for part in (y, blue - 128.0, red - 128.0))
    planes = (y + 1.402 * cr, y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, y + 1.772 * cb)
    rgb: Array = np.clip(np.stack(planes, axis=-1), 0, 255)
    return rgb


def encoded(name: str) -> Image.Image:
    """The first compressed frame as Pillow opens it."""
    data = pydicom.dcmread(FILES / name)
    return Image.open(BytesIO(next(generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames", 1))))))


def make(path: Path, values: Array, **attributes: object) -> Path:
    """A file of grey values, [H, W] or [frames, H, W], CT unless the attributes say otherwise; `syntax` is one of them."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(str(attributes.pop("syntax", ExplicitVRLittleEndian)))
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID("1.2.3.4")
    data.Modality = "CT"
    data.Rows, data.Columns = values.shape[-2:]
    if values.ndim == 3:
        data.NumberOfFrames = len(values)
    bits = values.dtype.itemsize * 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    data.save_as(path, enforce_file_format=True)
    return path


def item(**attributes: object) -> list[Dataset]:
    """A sequence of one item."""
    data = Dataset()
    for name, value in attributes.items():
        setattr(data, name, value)
    return [data]


def refusal(path: Path, options: DicomOptions | None = None) -> ItemError:
    with pytest.raises(ItemError) as caught:
        list(read_dicom(path, options or DicomOptions()))
    assert caught.value.cause in CAUSES
    return caught.value


def test_every_file_that_pydicom_ships_is_read_or_refused_with_its_cause() -> None:
    read, refused = set(), {}
    for path in sorted(SHIPPED.rglob("*")):
        if not path.is_file() or path.suffix in (".py", ".pyc"):
            continue
        try:
            frames = list(read_dicom(path, DicomOptions()))
        except ItemError as error:
            refused[path.name] = error.cause
            continue
        read.add(path.name)
        for frame in frames:
            assert frame.pixels.dtype == np.uint8
            assert frame.pixels.ndim == 2 or frame.pixels.shape[2] == 3
            assert frame.pixels.min() < frame.pixels.max() or "dicomdirtests" in path.parts
    assert len(read) >= 85
    assert set(refused.values()) <= set(CAUSES)
    known_bad = {name: cause for name, cause in refused.items() if cause not in ("no-picture", "not-dicom")}
    assert known_bad == {
        "JPEG-lossy.dcm": "unsupported",
        "JPEG2000-embedded-sequence-delimiter.dcm": "damaged",
        "MR_truncated.dcm": "truncated",
        "meta_missing_tsyntax.dcm": "damaged",
        "nested_priv_SQ.dcm": "damaged",
    } | ({} if find_spec("libjpeg") else {"JPGExtended.dcm": "unsupported"})
    assert refused["rtdose.dcm"] == refused["liver_1frame.dcm"] == refused["reportsi.dcm"] == "no-picture"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_ct_values_become_hounsfield_units_seen_through_a_preset(preset: str) -> None:
    frame = first(FILES / "CT_small.dcm", DicomOptions(window=preset))  # type: ignore[arg-type]
    centre, width = PRESETS[preset]  # type: ignore[index]
    assert (frame.pixels == linear(stored("CT_small.dcm", "<i2").astype(int) - 1024, centre, width)).all()
    assert frame.facts.done == ("rescaled to HU", f"window {preset} ({centre:g}, {width:g})")


@pytest.mark.parametrize(
    "kind", ["", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded"]
)
def test_an_mr_slice_is_the_same_in_every_lossless_syntax(kind: str) -> None:
    frame = first(FILES / f"MR_small{kind}.dcm")
    assert (frame.pixels == linear(stored("MR_small.dcm", "<i2"), 600, 1600)).all()
    assert (frame.facts.modality, frame.facts.view) == ("MR", "axial")


def by_pydicom(data: Dataset) -> NDArray[np.float64]:
    """A file's greys from 0 to 255 as pydicom's own functions make them, over the whole range that they give."""
    stored = data.pixel_array
    shown = apply_voi_lut(apply_modality_lut(stored, data), data).astype(np.float64)
    if "VOILUTSequence" in data:
        low, high = 0.0, 2.0 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        # A window's ends are what values far beyond it become.
        low, high = (float(end) for end in apply_windowing(np.array([-1e9, 1e9]), data))
    light = (shown - low) / (high - low)
    greys: NDArray[np.float64] = (1 - light if data.PhotometricInterpretation == "MONOCHROME1" else light) * 255
    return greys


@pytest.mark.filterwarnings("ignore")
def test_plain_files_have_the_greys_that_pydicoms_own_functions_give_them() -> None:
    compared = 0
    for path in [FILES / "MR_small.dcm", FILES / "examples_overlay.dcm", *sorted((FILES / "dicomdirtests").rglob("*"))]:
        data = pydicom.dcmread(path, force=True) if path.is_file() else Dataset()
        if data.get("SamplesPerPixel") == 1 and data.get("WindowWidth"):
            frame = first(path, DicomOptions(window="file"))
            assert abs(frame.pixels - by_pydicom(data)).max() <= 0.501, path.name
            compared += 1
    assert compared > 25


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("colour", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("curve", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(1500.25, 900), (40, 80), (2000, 2)])
def test_every_curve_has_the_greys_that_pydicoms_own_functions_give(
    colour: str, curve: str, centre: float, width: float, tmp_path: Path
) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    path = make(
        tmp_path / "a",
        values,
        WindowCenter=centre,
        WindowWidth=width,
        VOILUTFunction=curve,
        RescaleSlope="1.5",
        RescaleIntercept="-20",
        PhotometricInterpretation=colour,
    )
    frame = first(path, DicomOptions(window="file"))
    assert abs(frame.pixels - by_pydicom(pydicom.dcmread(path))).max() <= 0.501


def test_a_table_has_the_greys_that_pydicoms_own_functions_give(tmp_path: Path) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    entries = ((np.arange(3000) / 2999) ** 0.5 * 4095).astype(np.uint16)
    table = item(LUTDescriptor=[3000, 500, 12], LUTData=entries.tolist())
    table[0]["LUTDescriptor"].VR = table[0]["LUTData"].VR = "US"
    path = make(tmp_path / "a", values, VOILUTSequence=table)
    assert abs(first(path, DicomOptions(window="file")).pixels - by_pydicom(pydicom.dcmread(path))).max() <= 0.501


def test_a_radiograph_whose_0_is_white_is_rescaled_windowed_and_turned_round() -> None:
    data = pydicom.dcmread(CR)
    values = np.frombuffer(data.PixelData, "<u2").reshape(16, 16) * 0.684 + 200
    frame = first(CR)
    light = np.clip((values - 1599.5) / 2799 + 0.5, 0, 1)
    assert (frame.pixels == np.floor((1 - light) * 255 + 0.5)).all()
    assert frame.facts.done[-1] == "inverted"


def test_a_palette_is_looked_up() -> None:
    data = pydicom.dcmread(FILES / "examples_palette.dcm")
    places = np.frombuffer(data.PixelData, np.uint8)[: 350 * 800].reshape(350, 800)
    first_mapped = data.RedPaletteColorLookupTableDescriptor[1]
    tables = [np.frombuffer(data[f"{colour}PaletteColorLookupTableData"].value, "<u2") for colour in ("Red", "Green", "Blue")]
    expected = np.stack([table[places - first_mapped] // 256 for table in tables], axis=-1)
    assert expected.max() > 100
    assert (first(FILES / "examples_palette.dcm").pixels == expected).all()


def test_colours_in_big_endian_order_are_as_their_bytes_say() -> None:
    data = pydicom.dcmread(FILES / "ExplVR_BigEnd.dcm")
    whole = np.frombuffer(data.PixelData, np.uint8)
    if data["PixelData"].VR == "OW":
        whole = whole.reshape(-1, 2)[:, ::-1].reshape(-1)
    planar = data.PlanarConfiguration == 1
    expected = whole.reshape(3, 60, 80).transpose(1, 2, 0) if planar else whole.reshape(60, 80, 3)
    assert (first(FILES / "ExplVR_BigEnd.dcm").pixels == expected).all()


def test_halved_colours_become_rgb() -> None:
    data = pydicom.dcmread(FILES / "SC_ybr_full_422_uncompressed.dcm")
    whole = np.frombuffer(data.PixelData, np.uint8).reshape(100, 50, 4)
    blue, red = (np.repeat(whole[..., part], 2, axis=1) for part in (2, 3))
    expected = ybr_to_rgb(whole[..., :2].reshape(100, 100), blue, red)
    frame = first(FILES / "SC_ybr_full_422_uncompressed.dcm")
    assert np.abs(frame.pixels - expected).max() <= 1
    assert frame.facts.done == ("YBR_FULL_422 to RGB",)


@pytest.mark.parametrize(("name", "width"), [("", 1), ("_16bit", 2), ("_32bit", 4)])
@pytest.mark.parametrize("frames", [1, 2])
def test_run_length_coded_colours_of_any_depth_keep_their_light(name: str, width: int, frames: int) -> None:
    file = f"SC_rgb_rle{name}{'_2frame' if frames == 2 else ''}.dcm"
    pictures = list(read_dicom(FILES / file, DicomOptions()))
    assert len(pictures) == frames
    for index, picture in enumerate(pictures):
        expected = rle_values(file, width, index) / float(256**width - 1) * 255
        assert (picture.pixels == np.floor(expected + 0.5)).all()


def test_lossless_jpeg_holds_the_same_colours_as_run_lengths() -> None:
    assert (first(FILES / "SC_rgb_jpeg_gdcm.dcm").pixels == rle_values("SC_rgb_rle.dcm", 1)).all()


def test_baseline_jpeg_is_what_pillow_decodes() -> None:
    for name in ("examples_ybr_color.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        expected = np.asarray(encoded(name).convert("RGB"), dtype=int)
        assert np.abs(first(FILES / name).pixels - expected).mean() < 1.5, name


def test_jpeg_2000_colours_are_what_pillow_decodes() -> None:
    lossless = np.asarray(encoded("examples_jpeg2k.dcm").convert("RGB"))
    assert (first(FILES / "examples_jpeg2k.dcm").pixels == lossless).all()
    lossy = np.asarray(encoded("SC_rgb_gdcm_KY.dcm").convert("RGB"), dtype=int)
    assert np.abs(first(FILES / "SC_rgb_gdcm_KY.dcm").pixels - lossy).max() <= 1


def test_a_deflated_file_is_inflated() -> None:
    whole = (FILES / "image_dfl.dcm").read_bytes()
    begin = 144 + int.from_bytes(whole[140:144], "little")
    inflated = zlib.decompress(whole[begin:], -zlib.MAX_WBITS)
    assert inflated.count(b"\xe0\x7f\x10\0O") == 1
    pixels = inflated.index(b"\xe0\x7f\x10\0O") + 12
    expected = np.frombuffer(inflated[pixels : pixels + 512 * 512], np.uint8).reshape(512, 512)
    assert (first(FILES / "image_dfl.dcm").pixels == expected).all()


def test_an_overlay_in_planes_of_its_own_is_left_out() -> None:
    frame = first(FILES / "examples_overlay.dcm")
    assert (frame.pixels == linear(stored("examples_overlay.dcm", "<u2"), 450, 790)).all()
    assert frame.facts.done[-1] == "overlays left out"


def test_an_overlay_in_unused_high_bits_is_left_out(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 200
    more = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1500, "WindowWidth": 3000}
    plain = first(make(tmp_path / "plain", values, Modality="MR", **more))
    drawn = first(make(tmp_path / "drawn", values | (0x1000 * (values > 900)).astype(np.uint16), Modality="MR", **more))
    assert (plain.pixels == drawn.pixels).all()
    assert (plain.pixels == linear(values, 1500, 3000)).all()


def test_values_justified_to_the_left_lose_their_empty_bits(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 200
    more = {"WindowCenter": 1500, "WindowWidth": 3000, "BitsStored": 12}
    assert (first(make(tmp_path / "left", values << 4, HighBit=15, **more)).pixels == linear(values, 1500, 3000)).all()


def test_tables_take_the_place_of_rescale_and_window(tmp_path: Path) -> None:
    values = np.array([[0, 9, 10], [11, 12, 200]], dtype=np.uint8)
    measured = item(LUTDescriptor=[3, 10, 16], LUTData=struct.pack("<3H", 7, 300, 20), ModalityLUTType="US")
    shown = item(LUTDescriptor=[256, 7, 8], LUTData=bytes(min(3 * place, 255) for place in range(256)))
    path = make(tmp_path / "a", values, ModalityLUTSequence=measured, VOILUTSequence=shown, WindowCenter=1, WindowWidth=2)
    # 0, 9, 10 → 7 → entry 0; 11 → 300 → the last; 12 and above → 20 → entry 13.
    assert first(path).pixels.tolist() == [[0, 0, 0], [255, 39, 39]]
    assert first(path).facts.done == ("modality table", "the file's VOI table")


@pytest.mark.parametrize(
    ("curve", "values", "light"),
    [
        ("LINEAR", [0, 2047, 2048, 4095], [0, 2047 / 4095, 2048 / 4095, 1]),
        ("LINEAR_EXACT", [0, 1024, 2048, 4096], [0, 0.25, 0.5, 1]),
        ("SIGMOID", [-1e9, 2048, 2048 + 1024, 1e9], [0, 0.5, 1 / (1 + np.exp(-1)), 1]),
    ],
)
def test_a_window_follows_its_curve(curve: str, values: list[float], light: list[float]) -> None:
    window = Window(2048, 4096, curve)  # type: ignore[arg-type]
    assert to_unit(np.array(values, dtype=np.float64), window) == pytest.approx(np.array(light), abs=1e-12)


def test_the_file_window_comes_before_the_body_part_and_a_preset_before_both() -> None:
    own = Window(1, 2)
    assert choose("auto", own, hounsfield=True, body_part="chest")[0] == own
    assert choose("lung", own, hounsfield=True, body_part="chest")[0] == Window(*PRESETS["lung"])
    assert choose("auto", None, hounsfield=True, body_part="head")[0] == Window(*PRESETS["brain"])
    assert choose("auto", None, hounsfield=True, body_part="")[0] == Window(*PRESETS["abdomen"])
    assert choose("file", None, hounsfield=True, body_part="head")[0] is None
    assert choose("lung", own, hounsfield=False, body_part="chest")[0] == own


@pytest.mark.parametrize(("centre", "width"), [("2.74e+33", "1e+30"), ("0", "1e+9"), ("-5000", "2"), ("70000", "100")])
def test_a_window_that_shows_nothing_of_what_a_file_can_hold_is_not_used(tmp_path: Path, centre: str, width: str) -> None:
    """As viewers meet them (fo-dicom issues 161 and 752, ami issue 184): the picture is grey all over, and good."""
    values = np.arange(0, 4000, 40, dtype=np.uint16).reshape(10, 10)
    more = {"WindowCenter": centre, "WindowWidth": width, "BitsStored": 12, "HighBit": 11}
    frame = first(make(tmp_path / "a", values, Modality="MR", **more), DicomOptions(keep_16_bit=True))
    assert (frame.pixels == first(make(tmp_path / "b", values, Modality="MR", BitsStored=12, HighBit=11)).pixels).all()
    assert frame.facts.done == ("window of all values (0 to 3960)", "the file's window shows nothing")
    assert frame.deep is not None
    assert (frame.deep.black, frame.deep.white) == (0, 3960)
    rescaled = make(tmp_path / "c", values, RescaleSlope=1, RescaleIntercept=-1024, **more)
    assert first(rescaled).facts.done[1:] == ("window abdomen (50, 400)", "the file's window shows nothing")


def test_a_slice_of_air_stays_black_in_a_window_that_shows_others(tmp_path: Path) -> None:
    values = np.arange(-1024, -924, dtype=np.int16).reshape(10, 10)
    frame = first(make(tmp_path / "a", values, WindowCenter=40, WindowWidth=400))
    assert not frame.pixels.any()
    assert "shows nothing" not in " ".join(frame.facts.done)


def test_frames_of_an_enhanced_object_have_their_own_rescale_window_and_plane(tmp_path: Path) -> None:
    values = np.stack([np.arange(4).reshape(2, 2)] * 2).astype(np.int16)
    groups = []
    for slope, centre, cosines in ((10, 15, [1, 0, 0, 0, 1, 0]), (100, 100, [1, 0, 0, 0, 0, -1])):
        groups += item(
            PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept=-5, RescaleType="HU"),
            FrameVOILUTSequence=item(WindowCenter=centre, WindowWidth=200),
            PlaneOrientationSequence=item(ImageOrientationPatient=cosines),
        )
    shared = item(FrameAnatomySequence=item(FrameLaterality="R", AnatomicRegionSequence=item(CodeMeaning="Knee")))
    path = make(tmp_path / "a", values, PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=shared)
    one, two = read_dicom(path, DicomOptions())
    assert (one.pixels == linear(values[0] * 10.0 - 5, 15, 200)).all()
    assert (two.pixels == linear(values[1] * 100.0 - 5, 100, 200)).all()
    assert (one.facts.view, two.facts.view) == ("axial", "coronal")
    assert (one.facts.laterality, one.facts.body_part, one.facts.frame, two.facts.frame) == ("R", "knee", 0, 1)


def test_frames_are_chosen_by_the_options(tmp_path: Path) -> None:
    values = np.stack([np.full((2, 2), place) for place in range(5)]).astype(np.uint8)
    path = make(tmp_path / "a", values, Modality="MR")

    def shown(**chosen: object) -> list[int]:
        return [int(frame.pixels[0, 0]) for frame in read_dicom(path, DicomOptions(**chosen))]  # type: ignore[arg-type]

    assert shown() == [0, 1, 2, 3, 4]
    assert shown(frames="middle") == [2]
    assert shown(frames="every", step=2) == [0, 2, 4]
    with pytest.raises(StllavaError, match="step"):
        shown(frames="every", step=0)


def test_the_projection_takes_the_greatest_measured_value_padding_aside(tmp_path: Path) -> None:
    values = np.array([[[1, 7], [90, 90]], [[5, 2], [4, 90]]], dtype=np.int16)
    window = {"WindowCenter": 4, "WindowWidth": 8, "VOILUTFunction": "LINEAR_EXACT", "PixelPaddingValue": 90}
    (frame,) = read_dicom(make(tmp_path / "a", values, **window), DicomOptions(frames="mip"))
    assert frame.pixels.tolist() == [[159, 223], [128, 0]]
    assert frame.facts.frame is None
    assert frame.facts.done[0] == "maximum of 2 frames"


def test_padding_is_black_and_does_not_stretch_the_range(tmp_path: Path) -> None:
    values = np.array([[-2000, 0], [50, 100]], dtype=np.int16)
    frame = first(make(tmp_path / "a", values, Modality="MR", PixelPaddingValue=-2000))
    assert frame.pixels.tolist() == [[0, 0], [128, 255]]
    assert frame.facts.done == ("window of all values (0 to 100)",)


def test_frames_in_fragments_beyond_the_first_megabyte_are_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 800, 800), dtype=np.uint8)
    planes = [values[index].tobytes() for index in range(3)]
    # Literal runs of 128 bytes: longer than the pixels, and over the size that is kept in memory.
    runs = [b"".join(b"\x7f" + plane[at : at + 128] for at in range(0, len(plane), 128)) for plane in planes]
    frames = [struct.pack("<16I", 1, 64, *[0] * 14) + run + b"\0" * (len(run) % 2) for run in runs]
    path = make(tmp_path / "a", values, Modality="MR", syntax=RLELossless, PixelData=encapsulate(frames))
    for frame, expected in zip(read_dicom(path, DicomOptions()), values, strict=True):
        assert (frame.pixels == expected).all()
    plain = make(tmp_path / "b", values, Modality="MR")
    assert (next(read_dicom(plain, DicomOptions(frames="middle"))).pixels == values[1]).all()


def test_a_long_file_is_read_frame_by_frame(tmp_path: Path) -> None:
    path = make(tmp_path / "a", np.full((60, 1000, 1000), 7, dtype=np.uint8), Modality="MR")
    tracemalloc.start()
    frames = sum(int(frame.pixels[0, 0]) for frame in read_dicom(path, DicomOptions()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames == 60 * 7
    assert peak < 30e6


def test_every_text_is_gathered_and_the_patient_told_apart(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a",
        np.zeros((2, 2), np.uint8),
        PatientName=NAME,
        PatientID="4711",
        StudyDate="20240229",
        StudyInstanceUID="1.2.3",
        SeriesInstanceUID="1.2.3.9",
        RequestAttributesSequence=item(RequestedProcedureDescription="asked by Dr Oyelaran"),
    )
    data = pydicom.dcmread(path)
    block = data.private_block(0x0029, "ACME", create=True)
    block.add_new(1, "LO", "Private Petersen")
    block.add_new(2, "OB", b"\0\1\2Hidden Hansen\0\3")
    block.add_new(3, "SQ", item(PatientComments="Nested Nakamura"))
    block.add_new(4, "UN", "Ünknown Ürgüp".encode())
    data.file_meta.PrivateInformationCreatorUID = "1.9.9"
    data.file_meta.PrivateInformation = b"Meta Mbeki"
    data.SpecificCharacterSet = "ISO_IR 192"
    data.InstitutionName = "Clínica Ñandú"
    data.save_as(path)
    identity = first(path).identity
    assert (identity.patient, identity.name, identity.date) == ("4711", NAME, "20240229")
    assert (identity.study, identity.series) == ("1.2.3", "1.2.3.9")
    assert identity.texts >= {NAME, "Quenneville", "Zoltan", "4711", "asked by Dr Oyelaran", "Private Petersen"}
    assert identity.texts >= {"Hidden Hansen", "Nested Nakamura", "Ünknown Ürgüp", "Meta Mbeki", "Clínica Ñandú"}


@pytest.mark.parametrize(
    ("more", "burned"),
    [
        ({"BurnedInAnnotation": "YES"}, "yes"),
        # Signs of copied screens as filters of MIRC's CTP go by them (johnperry/CTP issue 16); their flag says NO by habit.
        ({"BurnedInAnnotation": "NO", "ConversionType": "WSD"}, "likely"),
        ({"BurnedInAnnotation": "NO", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "likely"),
        ({"BurnedInAnnotation": "NO", "ImageType": ["ORIGINAL", "PRIMARY", "SAVED_SCREEN"]}, "likely"),
        ({"BurnedInAnnotation": "NO", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "likely"),
        ({"BurnedInAnnotation": "NO", "SeriesDescription": "Screen Save"}, "likely"),
        ({"BurnedInAnnotation": "NO", "SeriesDescription": "Dose Report"}, "likely"),
        ({"BurnedInAnnotation": "NO", "DateOfSecondaryCapture": "20200101"}, "likely"),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, "likely"),
        ({"BurnedInAnnotation": "NO", "ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "unknown"),
        ({"BurnedInAnnotation": "NO", "ImageType": ["DERIVED", "PRIMARY", "PERFUSION"]}, "no"),
        ({"BurnedInAnnotation": "NO", "SeriesDescription": "Low dose thorax"}, "no"),
        ({"BurnedInAnnotation": "NO", "Modality": "CR"}, "no"),
        ({"ConversionType": "WSD", "ImageType": ["ORIGINAL", "PRIMARY"]}, "likely"),
        ({"Modality": "US"}, "likely"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "likely"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, "no"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "likely"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "unknown"),
    ],
)
def test_burned_in_text_is_told_by_flag_and_kind(tmp_path: Path, more: dict[str, object], burned: str) -> None:
    assert first(make(tmp_path / "a", np.zeros((2, 2), np.uint8), **more)).burned == burned


def test_a_slice_in_colour_may_hold_text_whatever_it_calls_itself(tmp_path: Path) -> None:
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Rows": 2, "Columns": 2}
    more = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "BurnedInAnnotation": "NO"}
    assert first(make(tmp_path / "a", np.zeros((2, 6), np.uint8), **colour, **more)).burned == "unknown"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda whole: b"", "empty"),
        (lambda whole: b"no picture at all" * 99, "not-dicom"),
        (lambda whole: whole[:-400], "truncated"),
        (lambda whole: whole.replace(b"\x28\0\x10\0US\2\0\x80\0", b"\x28\0\x10\0US\2\0\0\0"), "damaged"),
        (lambda whole: whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"), "unsupported"),
        (lambda whole: whole.replace(b"MONOCHROME2 ", b"HSV         "), "unsupported"),
    ],
    ids=["empty", "text", "cut", "no rows", "unknown syntax", "strange colours"],
)
def test_a_bad_file_is_refused_by_its_cause(tmp_path: Path, change: Callable[[bytes], bytes], cause: str) -> None:
    whole = (FILES / "CT_small.dcm").read_bytes()
    changed = change(whole)
    assert changed != whole
    (tmp_path / "a").write_bytes(changed)
    assert refusal(tmp_path / "a").cause == cause


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(StllavaError, match=r"stllava\[dicom\]"):
        first(FILES / "CT_small.dcm")


def test_a_huge_frame_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = make(tmp_path / "a", np.zeros((2, 2), np.uint8), Rows=60000, Columns=60000)
    assert refusal(path).cause == "too-large"
    assert refusal(FILES / "CT_small.dcm", DicomOptions(max_pixels=128 * 128 - 1)).cause == "too-large"


def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (FILES / "image_dfl.dcm").read_bytes()
    begin = 144 + int.from_bytes(whole[140:144], "little")
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(1 << 20)
    (tmp_path / "a").write_bytes(whole[:begin] + b"".join(deflate.compress(block) for _ in range(6)) + deflate.flush())
    monkeypatch.setattr(read, "_INFLATED", 5 << 20)
    assert (tmp_path / "a").stat().st_size < 1 << 16
    assert refusal(tmp_path / "a").cause == "too-large"


def test_a_compressed_frame_that_claims_another_size_is_refused(tmp_path: Path) -> None:
    path = FILES / "SC_rgb_jpeg_dcmtk.dcm"
    whole = path.read_bytes()
    size = b"\x08\0\x64\0\x64\x03"
    assert whole.count(size) == 1
    (tmp_path / "a").write_bytes(whole.replace(size, b"\x08\xff\xff\xff\xff\x03"))
    assert refusal(tmp_path / "a").cause == "damaged"


def test_a_name_in_the_wrong_place_reaches_no_message_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "a", np.zeros((2, 2), np.uint16), WindowCenter="1", WindowWidth="2", StudyDate="20240101")
    data = path.read_bytes()
    for number, (old, new) in enumerate(
        ((b"\x28\0\x50\x10DS\2\0001 ", b"\x28\0\x50\x10DS\x0a\0Quenneviln"), (b"DA\x08\x0020240101", b"DA\x08\0Quennevi"))
    ):
        assert data.count(old) == 1
        changed = tmp_path / str(number)
        changed.write_bytes(data.replace(old, new))
        said = ""
        with caplog.at_level(logging.DEBUG):
            try:
                list(read_dicom(changed, DicomOptions()))
            except ItemError as error:
                said = "".join(traceback.format_exception(error))
        assert "Quenn" not in said + caplog.text + "".join(capfd.readouterr())


def test_mutated_files_are_read_or_refused_and_never_crash(tmp_path: Path) -> None:
    names = ["CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_small_odd.dcm", "examples_overlay.dcm", "SC_rgb_rle_2frame.dcm"]
    dice, refused = random.Random(0), list[str]()
    for number in range(150):
        whole = bytearray((FILES / names[number % len(names)]).read_bytes())
        if number % 3 == 0:
            del whole[dice.randrange(len(whole)) :]
        else:
            for _ in range(dice.choice((1, 8, 64))):
                whole[dice.randrange(132, min(len(whole), 4000))] = dice.randrange(256)
        path = tmp_path / "mutated"
        path.write_bytes(whole)
        try:
            list(read_dicom(path, DicomOptions()))
        except ItemError as error:
            refused.append(error.cause)
    assert 50 <= len(refused) < 150
    assert set(refused) <= set(CAUSES)
