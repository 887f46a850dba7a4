"""The readers of NIfTI, TIFF, slides and photographs: what a file is, which way up it is shown, and how it is refused."""

import gzip
import itertools
import logging
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from stllava.config import IntakeOptions
from stllava.data.images import open_image
from stllava.errors import ItemError, StllavaError
from stllava.intake.convert import Toolbox, default_toolbox
from stllava.intake.readers import nifti
from stllava.intake.readers.frame import Frame
from stllava.intake.readers.nifti import CAUSES as NIFTI_CAUSES
from stllava.intake.readers.nifti import NiftiOptions, read_nifti
from stllava.intake.readers.photograph import CAUSES as PHOTOGRAPH_CAUSES
from stllava.intake.readers.photograph import read_photograph
from stllava.intake.readers.recognise import recognise
from stllava.intake.readers.tiff import CAUSES as TIFF_CAUSES
from stllava.intake.readers.tiff import TiffOptions, find_tissue, otsu, read_tiff

nibabel = pytest.importorskip("nibabel")
tifffile = pytest.importorskip("tifffile")

NAME = "Quintilla-Vexworth"
KNOWN_CAUSES = {*NIFTI_CAUSES, *PHOTOGRAPH_CAUSES, *TIFF_CAUSES}
MUTATIONS = int(os.environ.get("STLLAVA_MUTATIONS", "300"))
SHAPE = (6, 5, 4)
AFFINES = {
    f"{''.join('RAS'[axis] for axis in order)} {''.join('+-'[sign < 0] for sign in signs)}": (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
}


def noise(*shape: int, high: int = 256) -> npt.NDArray[np.uint8]:
    """Numbers that compress badly."""
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


def head_volume() -> npt.NDArray[np.int16]:
    """[right, anterior, superior] whose value tells the place: 100 · right + 10 · anterior + superior."""
    right, anterior, superior = np.indices(SHAPE)
    values: npt.NDArray[np.int16] = (100 * right + 10 * anterior + superior).astype(np.int16)
    return values


def stored(order: tuple[int, ...], signs: tuple[int, ...], sizes: tuple[float, ...] = (1, 1, 1)) -> Any:
    """The volume kept with its axes in another order and direction, and the affine that says so.

    The file's axis i runs along the canonical axis order[i], towards its end for sign 1.
    """
    values, affine = head_volume().transpose(order), np.eye(4)
    affine[:3, :3] = 0
    for at, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, at] = sign * sizes[axis]
        affine[axis, 3] = 0 if sign > 0 else sizes[axis] * (SHAPE[axis] - 1)
        values = values if sign > 0 else np.flip(values, at)
    return nibabel.Nifti1Image(np.ascontiguousarray(values), affine)


def frames(path: Path, **options: object) -> list[Frame]:
    """What the reader of NIfTI gives with these options."""
    return list(read_nifti(path, NiftiOptions(**options)))  # type: ignore[arg-type]


def cause(read: Callable[[], object]) -> str:
    """The cause of the error that reading gives; its words must not hold the planted name."""
    with pytest.raises(ItemError) as caught:
        read()
    assert NAME not in str(caught.value)
    return caught.value.cause


# A window of width 510 around 255 maps 0 … 510 to 0 … 255: a shade is half the value.
EXACT = (255.0, 510.0)


@pytest.mark.parametrize(("order", "signs"), AFFINES.values(), ids=list(AFFINES))
def test_every_layout_of_one_head_is_shown_alike_and_the_radiological_way(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    path = tmp_path / "a.nii"
    nibabel.save(stored(order, signs), path)
    shown = {frame.facts.view: frame.pixels for frame in frames(path, plane="all", frames="middle", window=EXACT)}
    # By hand: rows from superior or anterior downwards, columns from the patient's right (or anterior) on.
    axial = [[100 * r + 10 * a + 2 for r in range(5, -1, -1)] for a in range(4, -1, -1)]
    coronal = [[100 * r + 10 * 2 + s for r in range(5, -1, -1)] for s in range(3, -1, -1)]
    sagittal = [[100 * 3 + 10 * a + s for a in range(4, -1, -1)] for s in range(3, -1, -1)]
    for plane, truth in (("axial", axial), ("coronal", coronal), ("sagittal", sagittal)):
        assert shown[plane].tolist() == np.floor(np.clip(np.array(truth) / 2, 0, 255) + 0.5).astype(int).tolist(), plane


def test_slices_are_counted_from_the_feet_the_back_and_the_left(tmp_path: Path) -> None:
    nibabel.save(stored((2, 0, 1), (-1, 1, -1)), tmp_path / "a.nii")
    for plane, last in (("axial", 3), ("coronal", 4), ("sagittal", 5)):
        shown = frames(tmp_path / "a.nii", plane=plane, window=EXACT)
        assert [frame.facts.frame for frame in shown] == list(range(last + 1))
        values = [int(frame.pixels.min()) for frame in shown]
        assert values == sorted(values)


def test_slices_can_be_thinned_out_or_projected(tmp_path: Path) -> None:
    nibabel.save(stored((0, 1, 2), (1, 1, 1)), tmp_path / "a.nii")
    every = frames(tmp_path / "a.nii", plane="sagittal", frames="every", step=2)
    assert [frame.facts.frame for frame in every] == [0, 2, 4]
    (mip,) = frames(tmp_path / "a.nii", plane="axial", frames="mip", window=EXACT)
    assert mip.facts.frame is None
    assert mip.pixels[-1, -1] == 2  # 3 at the left posterior corner, halved and rounded
    assert mip.pixels[-1, -2] == 52  # 103


def test_the_acquired_plane_is_the_one_across_the_widest_steps(tmp_path: Path) -> None:
    for sizes, plane in (((1, 1, 1), "axial"), ((4, 1, 1), "sagittal"), ((1, 5, 1.5), "coronal"), ((1, 1, 3), "axial")):
        nibabel.save(stored((1, 2, 0), (1, -1, 1), sizes), tmp_path / "a.nii")
        assert {frame.facts.view for frame in frames(tmp_path / "a.nii")} == {plane}


def test_pixels_are_square_whatever_the_voxels(tmp_path: Path) -> None:
    nibabel.save(stored((0, 1, 2), (1, 1, 1), (1, 2, 3)), tmp_path / "a.nii")
    shown = {frame.facts.view: frame.pixels.shape for frame in frames(tmp_path / "a.nii", plane="all", frames="middle")}
    assert shown == {"axial": (10, 6), "coronal": (12, 6), "sagittal": (6, 5)}


def test_the_window_comes_from_the_whole_volume_so_that_an_outlier_does_not_darken_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "PERCENTILES", (10, 90))
    values = np.tile(np.arange(101, dtype=np.float32), (20, 20, 1))
    values[0, 0, 0], values[0, 0, 1], values[0, 0, 2] = 1e6, np.nan, -np.inf
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    shown = [frame.pixels for frame in frames(tmp_path / "a.nii", plane="axial")]
    # Of 0 … 100 in equal shares the percentiles are 10 and 90: 50 is the middle, and the ends are cut.
    assert shown[50][5, 5] in (127, 128)
    assert shown[5].max() == 0
    assert shown[95].min() == 255
    assert shown[1][-1, -1] == 0
    assert shown[0][-1, -1] == 255


def test_a_sparse_mask_is_not_lost_in_the_percentiles(tmp_path: Path) -> None:
    values = np.zeros((30, 30, 30), dtype=np.uint8)
    values[15, 15, 15] = 1
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    (middle,) = frames(tmp_path / "a.nii", frames="middle")
    assert middle.pixels.max() == 255
    assert int((middle.pixels > 0).sum()) == 1


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<f4", ">f4", "<f8"])
def test_number_types_scaling_and_packing_do_not_change_the_picture(tmp_path: Path, dtype: str) -> None:
    values = (head_volume() % 100).astype(dtype)
    image = nibabel.Nifti1Image(values, np.eye(4), header=nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<"))
    image.header.set_data_dtype(dtype)
    image.header.set_slope_inter(2, -7)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(image, tmp_path / name)
        truth = np.asanyarray(nibabel.load(tmp_path / name).dataobj)
        (middle,) = frames(tmp_path / name, frames="middle", window=(100, 200))
        expected = np.floor(np.clip(truth[:, :, 2].T[::-1, ::-1] * (255 / 200), 0, 255) + 0.5)
        assert np.abs(middle.pixels - expected).max() <= 1


def test_pairs_nifti_2_colour_and_time_points_are_read(tmp_path: Path) -> None:
    single = stored((0, 1, 2), (1, 1, 1))
    nibabel.save(single, tmp_path / "a.nii")
    truth = [frame.pixels.tolist() for frame in frames(tmp_path / "a.nii", window=EXACT)]
    nibabel.save(nibabel.Nifti1Pair(single.dataobj, single.affine), tmp_path / "b.hdr")
    nibabel.save(nibabel.Nifti2Image(single.dataobj, single.affine), tmp_path / "c.nii.gz")
    series = np.stack([head_volume() * 0, head_volume(), head_volume() * 0], axis=3)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), tmp_path / "d.nii.gz")
    for name, point in (("b.hdr", 0), ("c.nii.gz", 0), ("d.nii.gz", 1)):
        assert recognise(tmp_path / name) == "nifti"
        assert [frame.pixels.tolist() for frame in frames(tmp_path / name, window=EXACT, time_point=point)] == truth
    assert recognise(tmp_path / "b.img") is None
    assert cause(lambda: frames(tmp_path / "d.nii.gz", time_point=3)) == "no-time-point"
    colour = noise(*SHAPE, 3)
    packed = colour.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(packed, np.diag([-1, 1, 1, 1])), tmp_path / "e.nii")
    (frame,) = frames(tmp_path / "e.nii", frames="middle")
    # The file runs from right to left: its first column is the picture's.
    assert np.array_equal(frame.pixels, colour[:, :, 2].swapaxes(0, 1)[::-1])


def test_orientation_that_the_header_does_not_give_is_said_to_be_assumed(tmp_path: Path) -> None:
    image = stored((0, 1, 2), (1, 1, 1))
    nibabel.save(image, tmp_path / "a.nii")
    assert not any("assumed" in word for word in frames(tmp_path / "a.nii")[0].facts.done)
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[252:256] = bytes(4)
    (tmp_path / "b.nii").write_bytes(data)
    assert any("assumed" in word for word in frames(tmp_path / "b.nii")[0].facts.done)


def test_every_text_of_a_volume_is_known_and_none_is_told(tmp_path: Path) -> None:
    image = stored((0, 1, 2), (1, 1, 1))
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = b"Doe Descrip", b"Doe Aux", b"Doe Db"
    image.header["intent_name"] = b"Doe Intent"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe Comment"))
    nibabel.save(image, tmp_path / "plain.nii")
    path = tmp_path / f"{NAME}.nii.gz"
    with path.open("wb") as raw, gzip.GzipFile("Doe Packed.nii", "wb", fileobj=raw) as file:
        file.write((tmp_path / "plain.nii").read_bytes())
    first = frames(path)[0]
    for text in ("Doe Descrip", "Doe Aux", "Doe Db", "Doe Intent", "Doe Comment", "Doe Packed.nii", NAME):
        assert text in first.identity.texts
    assert "Doe" not in repr(first.facts)
    assert NAME not in repr(first.facts)


def test_two_slices_of_one_volume_share_a_series_and_two_volumes_do_not(tmp_path: Path) -> None:
    nibabel.save(stored((0, 1, 2), (1, 1, 1)), tmp_path / "a.nii")
    nibabel.save(stored((0, 1, 2), (1, 1, -1)), tmp_path / "b.nii")
    one = {frame.identity.series for frame in frames(tmp_path / "a.nii")}
    other = {frame.identity.series for frame in frames(tmp_path / "b.nii")}
    assert len(one) == len(other) == 1
    assert one != other


def nifti_bytes(folder: Path) -> bytearray:
    """A whole small volume."""
    nibabel.save(stored((0, 1, 2), (1, 1, 1)), folder / "whole.nii")
    return bytearray((folder / "whole.nii").read_bytes())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:352], "truncated"),
        (lambda data: gzip.compress(data)[:-20], "truncated"),
        (lambda data: gzip.compress(data)[:60] + bytes(200), "truncated"),
        (lambda data: data[:40] + struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1) + data[56:], "too-large"),
        (lambda data: gzip.compress(data[:40] + struct.pack("<4h", 3, 30000, 30000, 4) + data[48:] + bytes(9)), "too-large"),
        (lambda data: data[:40] + struct.pack("<4h", 3, 600, 600, 600) + data[48:], "truncated"),
        (lambda data: data[:40] + struct.pack("<4h", 3, 0, 5, 4) + data[48:], "unreadable"),
        (lambda data: data[:40] + struct.pack("<4h", 9, 6, 5, 4) + data[48:], "unreadable"),
        (lambda data: data[:40] + struct.pack("<6h", 5, 2, 5, 4, 1, 3) + data[52:], "unsupported"),
        (lambda data: data[:70] + struct.pack("<2h", 32, 64) + data[74:], "unsupported"),
        (lambda data: data[:70] + struct.pack("<2h", 999, 16) + data[74:], "unreadable"),
        (lambda data: data[:108] + struct.pack("<f", 1e30) + data[112:], "unreadable"),
        (lambda data: data[:108] + struct.pack("<f", float("nan")) + data[112:], "unreadable"),
        (lambda data: data[:280] + bytes(48) + data[328:], "bad-geometry"),
        (lambda data: data[:280] + struct.pack("<f", float("nan")) + data[284:], "bad-geometry"),
        (lambda data: data[:38] + b"r" + data[39:344] + bytes(4), "bad-geometry"),
        (lambda data: data[:344] + b"ni1\0" + data[348:], "missing"),
        (lambda data: b"no volume", "not-an-image"),
    ],
)
def test_a_damaged_volume_is_refused_with_its_cause(tmp_path: Path, change: Callable[[bytes], bytes], expected: str) -> None:
    path = tmp_path / f"{NAME}.nii"
    path.write_bytes(change(bytes(nifti_bytes(tmp_path))))
    assert cause(lambda: frames(path)) == expected


def test_a_packed_bomb_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with (tmp_path / "bomb.nii.gz").open("wb") as file:
        file.write(packer.compress(bytes(nifti_bytes(tmp_path))))
        for _ in range(64):
            file.write(packer.compress(bytes(1 << 20)))
        # Never finished: whoever reads to the end fails.
    assert len(frames(tmp_path / "bomb.nii.gz")) == SHAPE[2]


def test_mni152_stands_upright_in_three_planes() -> None:
    name = os.environ.get("STLLAVA_MNI")
    if not name:
        pytest.skip("STLLAVA_MNI is not set: the published MNI152 head is NOT tested; set it to nilearn's T1 .nii.gz")
    image = nibabel.as_closest_canonical(nibabel.load(name))
    values = np.asanyarray(image.dataobj)
    shown = {frame.facts.view: frame.pixels for frame in frames(Path(name), plane="all", frames="middle")}
    width, depth, height = values.shape
    assert {plane: pixels.shape for plane, pixels in shown.items()} == {
        "axial": (depth, width),
        "coronal": (height, width),
        "sagittal": (height, depth),
    }
    truth = {
        "axial": values[::-1, ::-1, height // 2].T,
        "coronal": values[::-1, depth // 2, ::-1].T,
        "sagittal": values[width // 2, ::-1, ::-1].T,
    }
    for plane, pixels in shown.items():
        assert np.corrcoef(pixels.ravel(), truth[plane].ravel())[0, 1] > 0.98, plane
    # By anatomy: brain stem and cerebellum, the lowest part of the brain, lie behind, hence at the right.
    rows, columns = np.nonzero(shown["sagittal"] > 40)
    lowest = columns[rows > np.percentile(rows, 97)]
    assert lowest.mean() > depth / 2
    # The frontal pole, low in front, makes the upper left quarter fuller than the lower left one is.
    assert (rows[columns < depth / 4] < height / 2).any()
    assert rows.max() - rows[columns < depth / 3].max() > height / 10


def slide(path: Path, *, side: int = 1024, compression: str | None = "jpeg") -> npt.NDArray[np.uint8]:
    """A pyramid of bare glass with a stained square in its middle, texts in it, and a label that must stay unseen."""
    values = np.full((side, side, 3), 240, dtype=np.uint8)
    middle = slice(side // 4, 3 * side // 4)
    values[middle, middle] = [180, 60, 150]
    values[middle, middle] += noise(side // 2, side // 2, 3, high=30)
    label = np.zeros((64, 64, 3), dtype=np.uint8)
    # As SVS files are: the whole, a small picture, a coarser level, the label.
    with tifffile.TiffWriter(path) as file:
        whole = {"description": f"Aperio {NAME}", "software": "Scan Doe"}
        file.write(values, tile=(240, 240), photometric="rgb", compression=compression, metadata=None, **whole)
        file.write(values[::8, ::8], photometric="rgb", metadata=None)
        file.write(values[::4, ::4], tile=(240, 240), photometric="rgb", compression=compression, metadata=None)
        file.write(label, photometric="rgb", metadata=None, description="label", subfiletype=1)
    return values


def tiles(path: Path, **options: object) -> list[Frame]:
    """What the reader of TIFF gives with these options."""
    return list(read_tiff(path, TiffOptions(**options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["jpeg", "lzw", None])
def test_a_slide_gives_the_tiles_that_hold_tissue_and_never_its_label(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "a.svs"
    values = slide(path, compression=compression)
    assert recognise(path) == "slide"
    found = tiles(path, tile=256)
    # Of 4 × 4 tiles the four in the middle are tissue.
    assert [frame.facts.frame for frame in found] == [5, 6, 9, 10]
    for frame, (y, x) in zip(found, itertools.product((256, 512), repeat=2), strict=True):
        difference = abs(frame.pixels.astype(int) - values[y : y + 256, x : x + 256])
        assert difference.max() <= (40 if compression == "jpeg" else 0)
        assert difference.mean() < 8
        assert frame.facts.modality == "SM"
        assert {f"Aperio {NAME}", "Scan Doe", "a.svs"} <= frame.identity.texts
        assert NAME not in repr(frame.facts)
    assert len(tiles(path, tile=256, tissue=0)) == 16


def test_tiles_reach_the_edge_and_have_one_size(tmp_path: Path) -> None:
    values = slide(tmp_path / "a.tif", side=1000, compression=None)
    found = tiles(tmp_path / "a.tif", tile=300, tissue=0)
    starts = (0, 300, 600, 700)
    assert len(found) == 16
    for frame, (y, x) in zip(found, itertools.product(starts, repeat=2), strict=True):
        assert np.array_equal(frame.pixels, values[y : y + 300, x : x + 300])
    (small,) = tiles(tmp_path / "a.tif", level=1)
    assert np.array_equal(small.pixels, values[::4, ::4])


def test_a_slide_without_tissue_or_level_is_named(tmp_path: Path) -> None:
    slide(tmp_path / "a.tif", compression=None)
    assert cause(lambda: tiles(tmp_path / "a.tif", level=2)) == "no-level"
    glass = np.full((5000, 300, 3), 240, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", glass, tile=(256, 256), photometric="rgb")
    assert recognise(tmp_path / "b.tif") == "slide"
    assert cause(lambda: tiles(tmp_path / "b.tif")) == "no-tissue"
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "c.tif").write_bytes(data[: len(data) // 2])
    assert cause(lambda: tiles(tmp_path / "c.tif")) in ("truncated", "unreadable", "not-an-image")


def test_a_slide_of_deep_grey_has_one_brightness_for_all_tiles(tmp_path: Path) -> None:
    values = np.full((600, 5000), 100, dtype=np.uint16)
    values[100:400, 1000:1500], values[100:400, 3000:3500] = 4000, 2000
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(256, 256), photometric="minisblack")
    found = tiles(tmp_path / "a.tif", tile=500, tissue=0.3)
    assert {int(frame.pixels.max()) for frame in found} == {round(4000 * 255 / 4095), round(2000 * 255 / 4095)}


def test_otsu_parts_two_heaps_and_tissue_is_told_from_glass_and_padding() -> None:
    heaps = np.array([10] * 70 + [12] * 30 + [200] * 40 + [210] * 10, dtype=np.int32)
    assert 12 <= otsu(heaps) < 200
    picture = np.full((40, 40, 3), 235, dtype=np.uint8)
    picture[10:20, 10:20] = [190, 90, 160]
    picture[30:] = [3, 0, 3]
    assert np.argwhere(find_tissue(picture)).tolist() == [[y, x] for y in range(10, 20) for x in range(10, 20)]
    assert not find_tissue(noise(40, 40, 3, high=4) + np.uint8(230)).any()


def test_deep_tiff_and_png_follow_the_rule_of_every_other_stage(tmp_path: Path) -> None:
    values = (np.arange(64 * 48).reshape(48, 64) % 4096).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="miniswhite")
    by_hand = np.floor(values * (255 / 4095) + 0.5).astype(int)
    for name in ("a.png", "a.tif"):
        assert recognise(tmp_path / name) == "tiff"
        (frame,) = tiles(tmp_path / name)
        assert frame.pixels.shape == (48, 64)
        assert abs(frame.pixels.astype(int) - by_hand).max() == 0
        assert np.array_equal(frame.pixels, np.asarray(open_image(tmp_path, name))[..., 0])
    (inverted,) = tiles(tmp_path / "b.tif")
    assert np.array_equal(inverted.pixels, 255 - by_hand)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_numbers_of_32_bits_keep_their_order_up_to_the_greatest(signed: bool, tmp_path: Path) -> None:
    values = np.linspace(0, (1 << 32) - 1, 64 * 48).reshape(48, 64).astype(np.uint32)
    stored = (values.astype(np.int64) - (1 << 31)).astype(np.int32) if signed else values
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
    wanted = np.floor(values * (255 / ((1 << 32) - 1)) + 0.5).astype(int)
    (frame,) = tiles(tmp_path / "a.tif")
    assert abs(frame.pixels.astype(int) - wanted).max() <= 1
    assert abs(np.asarray(open_image(tmp_path, "a.tif").convert("L")).astype(int) - wanted).max() <= 1


def test_pages_of_a_plain_tiff_are_chosen_and_counted(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((20, 30), shade, dtype=np.uint8)) for shade in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for option, truth in (
        ("all", [(0, 10), (1, 20), (2, 30)]),
        ("middle", [(1, 20)]),
        ("every", [(0, 10), (2, 30)]),
        ("mip", [(None, 30)]),
    ):
        found = tiles(tmp_path / "a.tif", frames=option, step=2)
        assert [(frame.facts.frame, int(frame.pixels[0, 0])) for frame in found] == truth


def test_pages_of_different_sizes_have_no_maximum(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((20, width), 10, dtype=np.uint8)) for width in (30, 31)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert cause(lambda: tiles(tmp_path / "a.tif", frames="mip")) == "unsupported"


def options_in(toolbox: Toolbox) -> list[Any]:
    """What the readers and the masker of a toolbox were given."""
    makers: list[Any] = [toolbox.readers[kind] for kind in ("dicom", "nifti", "tiff", "slide")]
    return [*(maker.keywords["options"] for maker in makers), *cast(Any, toolbox.masker).args]


def test_every_option_of_a_reader_and_of_the_masker_can_be_given_to_the_import() -> None:
    given = IntakeOptions(
        window="lung",
        frames="every",
        step=3,
        largest=1000,
        plane="all",
        time_point=2,
        nifti_window=(40, 400),
        tile=300,
        level=1,
        tissue=0.5,
        look_for_text="all",
        keep_markers=True,
        enlarge_up_to=2000,
        keep_16_bit=True,
    )
    toolbox, plain = default_toolbox(given), default_toolbox(IntakeOptions())
    for options, default in zip(options_in(toolbox), options_in(plain), strict=True):
        names = [field.name for field in fields(options)] if is_dataclass(options) else [*type(options).model_fields]
        assert {name for name in names if getattr(options, name) == getattr(default, name)} == set(), type(options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_content_tells_what_a_file_is_and_a_photograph_is_read_as_by_every_other_stage(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "Doe.dcm"
    Image.fromarray(noise(20, 30, 3)).save(path, kind)
    assert recognise(path) == ("tiff" if kind == "TIFF" else "photograph")
    read = read_tiff(path, TiffOptions()) if kind == "TIFF" else read_photograph(path)
    (frame,) = read
    assert np.array_equal(frame.pixels, np.asarray(open_image(tmp_path, path.name)))
    assert {"Doe.dcm", "Doe"} <= frame.identity.texts
    Image.fromarray(noise(20, 30)).save(path, kind)
    (grey,) = read_tiff(path, TiffOptions()) if kind == "TIFF" else read_photograph(path)
    assert np.array_equal(
        np.broadcast_to(grey.pixels.reshape(20, 30, -1), (20, 30, 3)), np.asarray(open_image(tmp_path, path.name))
    )


def test_a_lying_photograph_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(20, 30, 3))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "a.tif", exif=exif)
    for frame in (*read_photograph(tmp_path / "a.png"), *tiles(tmp_path / "a.tif")):
        assert np.array_equal(frame.pixels, np.rot90(noise(20, 30, 3), -1))
        assert "turned upright" in frame.facts.done


def named_files(folder: Path) -> dict[str, Path]:
    """One file for every place in which a picture can carry a text."""
    picture, files = Image.fromarray(noise(16, 16, 3)), dict[str, Path]()
    exif = picture.getexif()
    exif[0x013B], exif[0x9C9D] = NAME, NAME.encode("utf-16-le")
    inner = picture.getexif()
    inner.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + NAME.encode()
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{NAME}</dc:creator></x:xmpmeta>'.encode()
    info = {key: PngImagePlugin.PngInfo() for key in ("text", "packed", "international")}
    info["text"].add_text("Author", NAME)
    info["packed"].add_text("Author", NAME, zip=True)
    info["international"].add_itxt("Author", NAME, zip=True)
    save: dict[str, dict[str, object]] = {
        "exif.jpg": {"exif": exif},
        "inner.jpg": {"exif": inner},
        "comment.jpg": {"comment": NAME.encode()},
        "xmp.jpg": {"xmp": xmp},
        "exif.webp": {"exif": exif},
        "xmp.webp": {"xmp": xmp},
        "exif.png": {"exif": exif},
        "comment.gif": {"comment": NAME.encode()},
        "exif.tif": {"exif": exif},
        "tag.tif": {"tiffinfo": {270: NAME}},
        **{f"{key}.png": {"pnginfo": value} for key, value in info.items()},
    }
    for name, options in save.items():
        files[name] = folder / name
        picture.save(files[name], **options)  # type: ignore[arg-type]
    data = (folder / "exif.png").read_bytes()
    chunk = b"tEXtAuthor\0" + NAME.encode()
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    files["late.png"] = folder / "late.png"
    picture.save(files["late.png"])
    data = files["late.png"].read_bytes()
    files["late.png"].write_bytes(data[:-12] + late + data[-12:])
    return files


def test_a_name_is_known_wherever_a_picture_carries_it(tmp_path: Path) -> None:
    for name, path in named_files(tmp_path).items():
        reader = read_tiff(path, TiffOptions()) if name.endswith(".tif") else read_photograph(path)
        (frame,) = reader
        assert NAME in frame.identity.texts, name
        assert NAME not in repr(frame.facts), name


def test_what_is_no_image_is_not_recognised(tmp_path: Path) -> None:
    contents = {
        "a.dcm": b"PatientName: Doe",
        "a.nii": bytes(400),
        "a.nii.gz": gzip.compress(b"a text"),
        "b.nii.gz": b"\x1f\x8bdamaged",
        "a.bmp": b"BMI of all patients, by year and ward",
        "a.wav": b"RIFF\x24\0\0\0WAVEfmt ",
        "a.jpg": b"",
        "a.json": b'{"\x08": 1}',
        "a.zip": b"PK\x03\x04" + bytes(100),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert recognise(tmp_path / name) is None, name
    os.mkfifo(tmp_path / "pipe")
    assert cause(lambda: recognise(tmp_path / "pipe")) == "unreadable"
    assert cause(lambda: recognise(tmp_path / "nothing")) == "missing"
    (tmp_path / "round").symlink_to("round")
    assert cause(lambda: recognise(tmp_path / "round")) == "unreadable"


def test_dicom_is_known_with_and_without_its_preamble(tmp_path: Path) -> None:
    explicit = struct.pack("<HH2sH", 8, 5, b"CS", 10) + b"ISO_IR 100" + struct.pack("<HH2sH", 8, 0x60, b"CS", 2) + b"CT"
    implicit = struct.pack("<HHI", 8, 5, 10) + b"ISO_IR 100" + struct.pack("<HHI", 8, 0x60, 2) + b"CT"
    turned = struct.pack(">HH2sH", 8, 5, b"CS", 10) + b"ISO_IR 100" + struct.pack(">HH2sH", 8, 0x60, b"CS", 2) + b"CT"
    for content in (explicit, implicit, turned, bytes(128) + b"DICM" + explicit, b"II*\0" + bytes(124) + b"DICM" + explicit):
        (tmp_path / "a.jpg").write_bytes(content)
        assert recognise(tmp_path / "a.jpg") == "dicom"


def test_every_dicom_file_of_pydicom_is_recognised() -> None:
    data = pytest.importorskip("pydicom.data.data_manager")
    folder = Path(data.DATA_ROOT) / "test_files"
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix in ("", ".dcm") and path.name != "README"
    )
    assert len(paths) > 50
    # A stray byte stands before the first element of this one.
    assert [path.name for path in paths if recognise(path) != "dicom"] == ["no_meta.dcm"]


def broken(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes cut off, or with some of them changed."""
    if rng.random() < 0.3:
        return data[: int(rng.integers(1, len(data)))]
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        # Half of the blows fall on the header, where lengths are.
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        changed[int(rng.integers(end))] = int(rng.integers(256))
    return bytes(changed)


def test_damaged_files_are_read_or_refused_by_name_and_nothing_of_them_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "MAX_BYTES", 1 << 24)
    caplog.set_level(logging.WARNING)
    sources = [*named_files(tmp_path).values(), tmp_path / "slide.tif", tmp_path / "a.nii", tmp_path / "a.nii.gz"]
    slide(tmp_path / "slide.tif", side=512)
    image = stored((0, 1, 2), (1, 1, 1))
    image.header["descrip"] = NAME.encode()
    nibabel.save(image, tmp_path / "a.nii")
    nibabel.save(image, tmp_path / "a.nii.gz")
    readers = {
        "nifti": lambda path: read_nifti(path, NiftiOptions()),
        "tiff": lambda path: read_tiff(path, TiffOptions()),
        "slide": lambda path: read_tiff(path, TiffOptions(tile=256)),
        "photograph": lambda path: read_photograph(path),
    }
    rng, read, errors, slowest = np.random.default_rng(1), 0, list[ItemError](), 0.0
    for at in range(MUTATIONS):
        path = tmp_path / f"{NAME}-{at}"
        path.write_bytes(broken(sources[at % len(sources)].read_bytes(), rng))
        begun = time.monotonic()
        try:
            kind = recognise(path)
            if kind in readers:
                read += len(list(readers[kind](path)))
        except ItemError as error:
            errors.append(error)
        slowest = max(slowest, time.monotonic() - begun)
    assert read > MUTATIONS / 10
    assert len(errors) > MUTATIONS / 10
    assert {error.cause for error in errors} <= KNOWN_CAUSES
    assert not any(NAME in str(error) or error.__cause__ is not None for error in errors)
    assert slowest < 10
    assert NAME not in caplog.text
    output = capfd.readouterr()
    assert NAME not in output.out + output.err


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    reads: tuple[Callable[[], object], ...] = (
        lambda: list(read_nifti(path, NiftiOptions(step=0))),
        lambda: list(read_nifti(path, NiftiOptions(window=(40, 0)))),
        lambda: list(read_tiff(path, TiffOptions(tile=1))),
        lambda: list(read_tiff(path, TiffOptions(tissue=2))),
    )
    for read in reads:
        with pytest.raises(StllavaError):
            read()


def test_a_reader_leaves_the_warnings_of_its_caller_alone(tmp_path: Path) -> None:
    slide(tmp_path / "a.tif")
    before = list(warnings.filters)
    for _ in read_tiff(tmp_path / "a.tif", TiffOptions(tile=256)):
        assert list(warnings.filters) == before


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_an_imported_picture_that_is_transparent_lies_on_white_and_says_so(mode: str, kind: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (0, 0, 8, 4))
    image.convert(mode).save(tmp_path / f"a.{kind}")
    (frame,) = read_tiff(tmp_path / "a.tif", TiffOptions()) if kind == "tif" else read_photograph(tmp_path / "a.png")
    assert {int(value) for value in np.unique(frame.pixels[:4])} == {90}
    assert {int(value) for value in np.unique(frame.pixels[4:])} == {255}
    assert f"from mode {mode}" in frame.facts.done
    assert "laid on white" in frame.facts.done
