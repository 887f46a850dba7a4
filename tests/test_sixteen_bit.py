"""16-bit pixels beside the 8-bit pictures of an imported set: exact, in the units of their files, and without text."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from helpers.intake_parts import SLICES, MasksWhite, import_folder, toolbox
from stllava.config import IntakeOptions
from stllava.data.image_set import DEEP_FOLDER, Imported, read_imported
from stllava.data.images import open_deep
from stllava.errors import ItemError
from stllava.gathering import gather
from stllava.intake.convert import Toolbox, default_toolbox
from stllava.intake.deidentify.burned_text import Box, BurnedOptions, Findings, FrameMasker, MaskResult
from stllava.intake.deidentify.deep_text import DeepMasker, even_view, local_view
from stllava.intake.encode import png
from stllava.intake.readers.deep import deep_pixels
from stllava.intake.readers.dicom.read import DicomOptions, read_dicom
from stllava.intake.readers.frame import DeepPixels, Facts, Frame, Identity
from stllava.intake.readers.nifti import NiftiOptions, read_nifti
from stllava.intake.readers.tiff import TiffOptions, read_tiff
from stllava.intake.run import import_images
from stllava.store import read_manifest
from test_series import make, stack

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")

DEEP = SLICES.model_copy(update={"keep_16_bit": True, "memory": 2.0})
Values = NDArray[np.number]


def measured(deep: DeepPixels | None) -> NDArray[np.float64]:
    """What the pixels stand for."""
    assert deep is not None
    return deep.offset + deep.step * deep.values.astype(np.float64)


def seen(deep: DeepPixels | None) -> NDArray[np.uint8]:
    """The pixels through the window of the 8-bit picture."""
    assert deep is not None
    light = np.clip((deep.values - deep.black) / (deep.white - deep.black), 0, 1)
    return np.asarray(np.floor(light * 255 + 0.5), dtype=np.uint8)


def slope(side: int = 48, *, top: int = 60_000) -> NDArray[np.uint16]:
    """A picture of deep shades."""
    return (np.arange(side * side).reshape(side, side) * (top // side**2)).astype(np.uint16)


# --- values ----------------------------------------------------------------------------------------------------------


def test_whole_numbers_that_have_room_are_kept_one_by_one() -> None:
    values = np.array([[-1024, -1000], [40, 3071]])
    deep = deep_pixels(values, black=-160.0, white=240.0)
    assert (measured(deep) == values).all()
    assert deep is not None
    assert (deep.offset, deep.step, deep.black, deep.white) == (-1024, 1, 864, 1264)
    turned = deep_pixels(values, black=-160.0, white=240.0, inverted=True)
    assert turned is not None
    assert (measured(turned) == values).all()
    assert (turned.values[0, 0], turned.values[1, 1]) == (4095, 0)
    assert (turned.black, turned.white) == (3071 - 240, 3071 + 160)


def test_what_is_no_value_is_black_and_a_picture_of_nothing_has_none() -> None:
    deep = deep_pixels(np.array([[np.nan, 1.5], [np.inf, 2.5]]), black=1.5, white=2.5)
    assert deep is not None
    assert deep.values.tolist() == [[0, 0], [0, 65535]]
    shown = deep_pixels(np.array([[9, 5]]), black=0, white=9, shown=np.array([[False, True]]))
    assert shown is not None
    assert shown.values.tolist() == [[0, 0]]
    assert shown.offset == 5
    assert deep_pixels(np.full((2, 2), np.nan), black=0, white=1) is None


def test_one_value_far_away_does_not_cost_the_others_their_shades() -> None:
    values = np.linspace(0, 1, 4096).reshape(64, 64)
    values[0, 0] = 1e30
    deep = deep_pixels(values, black=0.0, white=1.0)
    assert deep is not None
    assert len(np.unique(deep.values)) > 900
    assert np.abs(measured(deep) - values)[1:].max() < 1e-3
    assert deep.values[0, 0] == 65535


def test_values_as_far_apart_as_numbers_go_are_kept_near_the_window_or_not_at_all() -> None:
    far = np.array([[1e308, -1e308, 0.25]])
    deep = deep_pixels(far, black=0.0, white=1.0)
    assert deep is not None
    assert deep.values.tolist()[0][:2] == [65535, 0]
    assert abs(float(measured(deep)[0, 2]) - 0.25) < 0.001
    assert deep_pixels(far, black=-1.7e308, white=1.7e308) is None


# --- readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["MONOCHROME2", "MONOCHROME1"])
def test_dicom_keeps_hounsfield_units_and_the_window_of_its_picture(tmp_path: Path, colour: str) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.int16)
    fields = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    path = make(tmp_path / "a.dcm", values, PhotometricInterpretation=colour, **fields)
    (frame,) = read_dicom(path, DicomOptions(keep_16_bit=True))
    assert (measured(frame.deep) == values - 1024.0).all()
    assert np.abs(seen(frame.deep).astype(int) - frame.pixels).max() <= 1
    (plain,) = read_dicom(path, DicomOptions())
    assert plain.deep is None
    assert (plain.pixels == frame.pixels).all()


def test_a_table_that_turns_a_picture_round_turns_its_16_bits_round(tmp_path: Path) -> None:
    item = pydicom.dataset.Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "US", list(range(4095, -1, -1)))
    values = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.int16)
    (frame,) = read_dicom(make(tmp_path / "a.dcm", values, VOILUTSequence=[item]), DicomOptions(keep_16_bit=True))
    assert (measured(frame.deep) == values).all()
    assert np.abs(seen(frame.deep).astype(int) - frame.pixels).max() <= 1


def test_an_overlay_in_unused_high_bits_is_not_kept(tmp_path: Path) -> None:
    """It may be a name that was written over the picture."""
    values = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.int16)
    drawn = values | (0x1000 * (values > 900)).astype(np.int16)
    fields = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    (frame,) = read_dicom(make(tmp_path / "a.dcm", drawn, **fields), DicomOptions(keep_16_bit=True))
    assert (measured(frame.deep) == values).all()


def test_padding_is_black_and_eight_bits_have_no_more_to_keep(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.int16)
    values[:3] = -2000
    path = make(tmp_path / "a.dcm", values, PixelPaddingValue=-2000)
    (frame,) = read_dicom(path, DicomOptions(keep_16_bit=True))
    assert frame.deep is not None
    assert not frame.deep.values[:3].any()
    small = np.random.default_rng(0).integers(0, 1 << 15, (40, 20), dtype=np.int16)  # two pixels each
    fields = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    (eight,) = read_dicom(make(tmp_path / "b.dcm", small, **fields), DicomOptions(keep_16_bit=True))
    assert eight.deep is None


def test_nifti_keeps_its_units_where_its_pictures_are_and_masks_of_8_bits_none(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    volume = np.random.default_rng(0).integers(-1024, 3000, (40, 50, 3), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, 1, 4, 1])), tmp_path / "a.nii")
    options = NiftiOptions(keep_16_bit=True, window=(40, 400))
    for frame in read_nifti(tmp_path / "a.nii", options):
        assert measured(frame.deep).shape == frame.pixels.shape
        assert np.abs(seen(frame.deep).astype(int) - frame.pixels).max() <= 1
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, 1.5, 4, 1])), tmp_path / "b.nii")
    for frame in read_nifti(tmp_path / "b.nii", options):
        assert measured(frame.deep).shape == frame.pixels.shape
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.uint8), np.eye(4)), tmp_path / "c.nii")
    assert {frame.deep for frame in read_nifti(tmp_path / "c.nii", options)} == {None}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_png_and_tiff_keep_their_shades(tmp_path: Path, name: str) -> None:
    Image.fromarray(slope()).save(tmp_path / name)
    (frame,) = read_tiff(tmp_path / name, TiffOptions(keep_16_bit=True))
    assert (measured(frame.deep) == slope()).all()
    assert np.abs(seen(frame.deep).astype(int) - frame.pixels).max() <= 1


@pytest.mark.parametrize(
    ("kind", "low", "high", "inverted"),
    [
        (np.int16, -1000, 1000, False),
        (np.float32, -500, 900, False),
        (np.float32, -500, 900, True),
        (np.int32, -70000, 90000, False),
    ],
)
def test_a_tiff_with_negative_values_keeps_its_own_units(
    tmp_path: Path, kind: type[np.number], low: int, high: int, inverted: bool
) -> None:
    stored = np.linspace(low, high, 48 * 40).round().reshape(48, 40).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite" if inverted else "minisblack")
    (frame,) = read_tiff(tmp_path / "a.tif", TiffOptions(keep_16_bit=True))
    assert frame.deep is not None
    assert frame.deep.offset == (high if inverted else low)
    assert np.abs(measured(frame.deep) - stored).max() <= abs(frame.deep.step) / 2 + 1e-3
    assert np.abs(seen(frame.deep).astype(int) - frame.pixels).max() <= 1


def test_a_tiff_that_lies_on_its_side_with_white_as_0_is_upright_and_the_right_way_round(tmp_path: Path) -> None:
    tags = {262: 0, 274: 6}
    Image.fromarray(slope()[:, :30].copy()).save(tmp_path / "a.tif", tiffinfo=tags)
    (frame,) = read_tiff(tmp_path / "a.tif", TiffOptions(keep_16_bit=True))
    assert frame.pixels.shape == (30, 48)
    assert np.abs(seen(frame.deep).astype(int) - frame.pixels).max() <= 1


def test_what_lies_under_transparent_pixels_is_not_kept(tmp_path: Path) -> None:
    Image.fromarray(slope()).save(tmp_path / "a.png", transparency=int(slope()[4, 4]))
    (frame,) = read_tiff(tmp_path / "a.png", TiffOptions(keep_16_bit=True))
    assert frame.deep is not None
    assert frame.deep.values[4, 4] == 0


# --- the set ---------------------------------------------------------------------------------------------------------


def write_studies(folder: Path) -> None:
    """Two CT slices, a deep PNG and an ordinary one."""
    stack(folder / "in" / "ct", 2, RescaleSlope=1, RescaleIntercept=-100)
    Image.fromarray(slope()).save(folder / "in" / "deep.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)).save(folder / "in" / "plain.png")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_set_keeps_them_apart_and_its_8_bit_pictures_are_the_same_with_and_without(tmp_path: Path) -> None:
    write_studies(tmp_path)
    manifest = import_folder(tmp_path, DEEP, to="deep", make=default_toolbox)
    import_folder(tmp_path, SLICES, to="plain", make=default_toolbox)
    with_them, without = (read_imported(tmp_path / name) for name in ("deep", "plain"))
    assert [row.model_copy(update={"deep": None}) for row in with_them] == without
    assert manifest.measures["16-bit pixels"] == 3
    assert "holds the 16-bit pixels of 3 pictures" in (tmp_path / "deep" / "README.md").read_text()
    kept = {row.deep.path: row for row in with_them if row.deep is not None}
    files = {name: data for name, data in tree(tmp_path / "deep").items() if name.startswith(DEEP_FOLDER)}
    assert files.keys() == kept.keys()
    for path, row in kept.items():
        pixels = open_deep(tmp_path / "deep", path)
        assert pixels.shape == (row.height, row.width)
        assert png(pixels, DEEP.compression) == files[path]
    ours, theirs = tree(tmp_path / "deep"), tree(tmp_path / "plain")
    assert {name: data for name, data in ours.items() if name.startswith("images/")} == {
        name: data for name, data in theirs.items() if name.startswith("images/")
    }


def test_without_the_option_nothing_of_it_is_written(tmp_path: Path) -> None:
    write_studies(tmp_path)
    manifest = import_folder(tmp_path, SLICES, make=default_toolbox)
    assert not (tmp_path / "data" / DEEP_FOLDER).exists()
    assert "keep_16_bit" not in manifest.config
    assert not any("16-bit" in name for name in manifest.measures)
    assert '"deep"' not in (tmp_path / "data" / "images.jsonl").read_text()
    again = read_manifest(tmp_path / "data")
    assert IntakeOptions.model_validate(again.config) == SLICES.model_copy(update={"workers": 1})


def test_copies_leave_no_16_bit_pixels_behind(tmp_path: Path) -> None:
    write_studies(tmp_path)
    (tmp_path / "in" / "copy.png").write_bytes((tmp_path / "in" / "deep.png").read_bytes() + b"\0")
    import_folder(tmp_path, DEEP, make=default_toolbox)
    kept = [row.deep.path for row in read_imported(tmp_path / "data") if row.deep is not None]
    assert sorted(kept) == [name for name in tree(tmp_path / "data") if name.startswith(DEEP_FOLDER)]
    assert len(kept) == 3


def test_shards_bring_theirs(tmp_path: Path) -> None:
    write_studies(tmp_path)
    options = DEEP.model_copy(update={"chunk": 1})
    import_folder(tmp_path, options, make=default_toolbox)
    source, salt = tmp_path / "in", tmp_path / "keys" / "salt"
    for shard in ("1/2", "2/2"):
        import_images(options, source=source, to=tmp_path / "cut", salt=salt, shard=shard)
    gather(tmp_path / "cut")
    whole, cut = (tree(tmp_path / name) for name in ("data", "cut"))
    assert whole.keys() == cut.keys()
    assert {name for name in whole if whole[name] != cut[name]} <= {"manifest.json", "card.html", "README.md"}


def test_a_lost_file_of_16_bit_pixels_is_made_again(tmp_path: Path) -> None:
    write_studies(tmp_path)
    import_folder(tmp_path, DEEP, make=default_toolbox)
    before = tree(tmp_path / "data")
    (tmp_path / "data" / "manifest.json").unlink()
    next((tmp_path / "data" / DEEP_FOLDER).rglob("*.png")).unlink()
    import_folder(tmp_path, DEEP, make=default_toolbox)
    after = tree(tmp_path / "data")
    assert {name: data for name, data in before.items() if name != "manifest.json"} == {
        name: data for name, data in after.items() if name != "manifest.json"
    }


def test_only_grey_pngs_of_16_bits_inside_the_root_are_opened(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "eight.png")
    (tmp_path / "no.png").write_bytes(b"nothing")
    for path, cause in (("eight.png", "not-an-image"), ("no.png", "unreadable"), ("../x.png", "outside-root")):
        with pytest.raises(ItemError) as caught:
            open_deep(tmp_path, path)
        assert caught.value.cause == cause


# --- text ------------------------------------------------------------------------------------------------------------


def letters(side: int, at: tuple[int, int], text: str = "DOE JOHN 1961", size: int = 20) -> NDArray[np.bool_]:
    """Where a text's ink is."""
    ink = Image.new("L", (side, side))
    ImageDraw.Draw(ink).text(at, text, font=ImageFont.load_default(size), fill=255)
    return np.asarray(ink) > 128


def deep_frame(values: NDArray[np.number], *, black: float, white: float, burned: str = "unknown") -> Frame:
    deep = deep_pixels(values, black=black, white=white)
    pixels = seen(deep)
    return Frame(pixels, Facts(modality="CR"), Identity(), burned=burned, deep=deep)  # type: ignore[arg-type]


def masked_both(frame: Frame, options: IntakeOptions | None = None) -> tuple[MaskResult, DeepPixels | None, tuple[Box, ...]]:
    """What becomes of a frame, and of its 16-bit pixels, by the package's own finder."""
    result = FrameMasker(BurnedOptions()).mask(frame)
    deep, alone = DeepMasker(lambda: FrameMasker(BurnedOptions()), options or IntakeOptions()).mask(frame, result)
    return result, deep, alone


def body(noise: float = 20.0, side: int = 320) -> NDArray[np.float64]:
    """Air of one value, and a noisy round body in it."""
    y, x = np.mgrid[:side, :side]
    there = np.hypot(x - side / 2, y - side / 2) < side / 3
    return np.where(there, 40 + np.random.default_rng(0).normal(0, noise, (side, side)), -1000.0).round()


HIDDEN = {
    "three units above the air": ((10, 10), 3.0),
    "far below the window's black": ((10, 280), -24.0),
    "beyond the window's white": ((90, 150), 2000.0),
}


@pytest.mark.parametrize(("at", "more"), HIDDEN.values(), ids=list(HIDDEN))
def test_text_that_the_8_bit_picture_shows_nowhere_is_blacked_out_of_the_16_bits(at: tuple[int, int], more: float) -> None:
    pytest.importorskip("cv2", reason="the extra `ocr` is not installed")
    values, ink = body(), letters(320, at)
    values[120:200, 70:260] += 600  # an implant, all of it white in 8 bits
    values[ink] += more
    frame = deep_frame(values, black=-160, white=240)
    result, deep, alone = masked_both(frame)
    assert result.frame is not None
    assert result.action == "passed"
    assert (result.frame.pixels == frame.pixels).all()
    assert alone
    assert deep is not None
    assert (deep.values[ink] != 0).mean() <= 0.1


def test_pictures_without_text_keep_their_16_bits_whole() -> None:
    pytest.importorskip("cv2", reason="the extra `ocr` is not installed")
    frame = deep_frame(body(), black=-160, white=240)
    result, deep, alone = masked_both(frame)
    assert (result.action, alone) == ("passed", ())
    assert deep is not None
    assert frame.deep is not None
    assert (deep.values == frame.deep.values).all()


def test_views_tell_one_level_apart_on_a_plain_ground_and_hold_no_more_rows_than_a_band() -> None:
    values = np.full((600, 300), 7, dtype=np.uint16)
    ink = np.zeros(values.shape, dtype=bool)
    ink[250:262, 100:140:4] = True
    values[ink] = 8
    view = local_view(values).astype(int)
    assert view[ink].min() > view[~ink].max() + 60
    whole = np.random.default_rng(0).integers(0, 65536, (600, 300), dtype=np.uint16)
    y, x = 256, 150  # on the border of two bands
    square = whole[y - 15 : y + 16, x - 15 : x + 16].astype(float)
    light = (whole[y, x] - square.mean()) / square.std()
    assert local_view(whole)[y, x] == int(np.clip(light, -3, 3) * 127 / 3 + 128)
    assert np.ptp(even_view(np.array([[0, 0, 65535]], dtype=np.uint16))) == 255


def deep_toolbox(options: IntakeOptions) -> Toolbox:
    """The tests' reader of PNG, whose pictures get 16-bit pixels; white squares stand for text, in either.

    Of pictures whose name has `hidden` the 16 bits have a white square where the 8 bits are black.
    """
    plain = toolbox(options)

    def read(path: Path):  # type: ignore[no-untyped-def]
        for frame in plain.readers["photograph"](path):
            values = frame.pixels.astype(np.uint16) * 64
            if "hidden" in path.name:
                values[20:30, 20:40] = 65535
            yield replace(frame, deep=DeepPixels(values, 0.0, 1.0, 0.0, 255.0 * 64))

    return Toolbox(plain.recognise, {"photograph": read}, MasksSquares)


class MasksSquares(MasksWhite):
    """Blacks out white squares, and passes a few white pixels, which every view has."""

    def mask(self, frame: Frame, findings: Findings | None = None) -> MaskResult:
        few = (frame.pixels == 255).sum() < 150
        return MaskResult(frame, "passed", "for the tests") if few else super().mask(frame, findings)


def write_white(folder: Path) -> None:
    for number, name in enumerate(("plain", "white", "hidden", "white-hidden")):
        pixels = np.random.default_rng(number).integers(0, 200, (48, 48), dtype=np.uint8)
        if "white" in name:
            pixels[4:12, 6:30] = 255
        path = folder / "in" / f"{name}_{number}_20200101_.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def by_name(folder: Path, to: str) -> dict[str, Imported]:
    (files,) = (folder / "keys").glob("*.files.jsonl")
    listed = sorted(Path(json.loads(line)[1]).name for line in files.read_text().splitlines())
    rows = {row.patient: row for row in read_imported(folder / to)}
    assert len(rows) == len(listed)
    return {str(len(row.masked)) + str(len(row.deep.masked) if row.deep else "-"): row for row in rows.values()}


def test_places_blacked_out_of_either_are_black_in_the_16_bits_and_shown_for_confirmation(tmp_path: Path) -> None:
    write_white(tmp_path)
    import_folder(tmp_path, DEEP, make=deep_toolbox)
    rows = by_name(tmp_path, "data")
    sheet = (tmp_path / "data" / "changes-001.html").read_text()
    for row in rows.values():
        assert row.deep is not None
        pixels = open_deep(tmp_path / "data", row.deep.path)
        for left, top, right, bottom in (*row.masked, *row.deep.masked):
            assert not pixels[top:bottom, left:right].any()
        assert pixels.max() < 65535
        assert sheet.count(f"{row.id}</code> · masked") == bool(row.masked) + bool(row.deep.masked)
    assert any(row.deep.masked and not row.masked for row in rows.values() if row.deep is not None)


def test_where_text_is_not_blacked_out_but_left_out_the_16_bits_with_text_are(tmp_path: Path) -> None:
    write_white(tmp_path)
    options = DEEP.model_copy(update={"text": "quarantine"})
    manifest = import_folder(tmp_path, options, make=deep_toolbox)
    rows = read_imported(tmp_path / "data")
    assert len(rows) == 2
    assert manifest.dropped == {"burned-in-text": 2}
    assert manifest.measures["withheld 16-bit pixels"] == 1
    assert sum(row.deep is not None for row in rows) == 1
