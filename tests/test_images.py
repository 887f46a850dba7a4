"""Reading image files: what is accepted, and each way in which a file is refused."""

import base64
import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from stllava.data.folder import images_in
from stllava.data.images import CAUSES, MAX_PIXELS, check_image, open_image
from stllava.errors import ItemError, StllavaError
from stllava.records import content_id
from stllava.remote.png import PngEncoder
from stllava.report.gallery import thumbnail


def noise(width: int = 40, height: int = 30) -> Image.Image:
    """An image that compresses badly, so that half a file is half a picture."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    """The file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG that is only a header announcing its size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


START_OF_DATA = struct.pack(">I", 1000) + b"IDAT"


def cause_of(root: Path, relative: str) -> str:
    """Why an image is refused."""
    with pytest.raises(ItemError) as caught:
        check_image(root, relative)
    assert relative in str(caught.value)
    assert caught.value.cause in CAUSES
    return caught.value.cause


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff", "gif"])
def test_every_format_opens_as_rgb_in_its_size(tmp_path: Path, kind: str) -> None:
    noise().save(tmp_path / f"a.{kind}")
    image = open_image(tmp_path, f"a.{kind}")
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_opens_as_rgb(tmp_path: Path, mode: str) -> None:
    noise().convert("L" if mode == "LA" else "RGB").convert(mode).save(tmp_path / "a.tif")
    assert open_image(tmp_path, "a.tif").mode == "RGB"


def test_an_image_lies_as_its_exif_orientation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path, "a.jpg").size == (30, 40)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0, 32768, 65535], [0, 128, 255], id="16 bits"),
        pytest.param([0, 2048, 4095], [0, 128, 255], id="12 bits in 16"),
        pytest.param([0, 100, 255], [0, 100, 255], id="8 bits in 16"),
        pytest.param([0, 0, 0], [0, 0, 0], id="black"),
    ],
)
def test_deep_greyscale_is_scaled_and_not_clipped(tmp_path: Path, values: list[int], expected: list[int]) -> None:
    Image.fromarray(np.array([values], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path, "a.png"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0.0, 0.5, 1.0], [0, 128, 255], id="0 to 1"),
        pytest.param([-1000.0, 0.0, 3095.0], [0, 62, 255], id="Hounsfield units"),
        pytest.param([0.0, float("nan"), 255.0], [0, 0, 255], id="not a number"),
    ],
)
def test_float_greyscale_is_scaled_and_not_clipped(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path, "a.tif"))[0, :, 0].tolist() == expected


RED, CLEAR = (200, 10, 10, 255), (0, 0, 0, 0)
"""Black is what painting programs store under transparent pixels (NVIDIA DIGITS issue 85, QwenLM Qwen3-VL pull 661)."""


def half_clear() -> Image.Image:
    """Red above, nothing below."""
    image = Image.new("RGBA", (4, 4), CLEAR)
    image.paste(RED, (0, 0, 4, 2))
    return image


def clear_palette(transparency: int | bytes) -> Image.Image:
    """A palette of red and black, of which black is transparent."""
    image = half_clear().convert("RGB").quantize(2)
    black = image.getpixel((0, 3))
    image.info["transparency"] = black if isinstance(transparency, int) else bytes(0 if i == black else 255 for i in range(2))
    return image


CLEAR_PICTURES: dict[str, tuple[str, Image.Image]] = {
    "RGBA": ("a.png", half_clear()),
    "RGBA in WebP": ("a.webp", half_clear()),
    "RGBA in TIFF": ("a.tif", half_clear()),
    "LA": ("a.png", half_clear().convert("LA")),
    "palette, one entry": ("a.png", clear_palette(0)),
    "palette, in bytes": ("a.png", clear_palette(b"")),
    "GIF": ("a.gif", clear_palette(0)),
    "one colour of RGB": ("a.png", half_clear().convert("RGB")),
    "one grey of L": ("a.png", half_clear().convert("L")),
    "one grey of 16 bits": ("a.png", Image.fromarray(np.array([[30000] * 4] * 2 + [[0] * 4] * 2, np.uint16))),
}


@pytest.mark.parametrize("kind", CLEAR_PICTURES)
def test_a_transparent_picture_lies_on_white_wherever_it_is_shown(tmp_path: Path, kind: str) -> None:
    name, image = CLEAR_PICTURES[kind]
    key: object = {"one colour of RGB": (0, 0, 0), "one grey of L": 0, "one grey of 16 bits": 0}.get(kind)
    if key is not None:
        image.info["transparency"] = key
    image.save(tmp_path / name, lossless=True)
    shown = np.asarray(open_image(tmp_path, name))
    assert (shown[2:] == 255).all()
    assert (shown[:2] < 255).any()
    url = PngEncoder(tmp_path, keep=1).get(name).url
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    assert (np.asarray(sent) == shown).all()
    card = Image.open(io.BytesIO(base64.b64decode(thumbnail(tmp_path, name).partition(",")[2])))
    assert np.asarray(card)[3].min() > 240


def test_what_shines_through_is_as_much_as_the_pixel_is_clear(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 100, 200, 51)).save(tmp_path / "a.png")
    assert open_image(tmp_path, "a.png").getpixel((0, 0)) == (204, 224, 244)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "I;16", "F"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_plain_tiff_that_lies_on_its_side_is_turned_whole(tmp_path: Path, mode: str, orientation: int) -> None:
    # Of a path Pillow 13 maps such a file in its turned size: L, RGBA, CMYK, P and I;16 came out scrambled.
    values = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    deep = {"I;16": values.astype(np.float64) * 257, "F": values / 255}
    stored = deep.get(mode, values).astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8))
    image = Image.fromarray(stored) if mode in deep else Image.fromarray(stored).convert(mode)
    image.save(tmp_path / "a.tif", tiffinfo={0x112: orientation})
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    shown = np.asarray(open_image(tmp_path, "a.tif"))[..., 0].astype(int)
    assert (abs(shown - np.rot90(values, turns)) <= (mode in deep)).all()


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_a_tiff_that_stores_white_as_zero_is_no_negative(tmp_path: Path, kind: str) -> None:
    # Pillow inverts 8 bits and nothing deeper; scanners and fax write such files.
    end = {"uint16": 65535, "float32": 1.0}[kind]
    image = Image.fromarray((np.array([[0, 0.5, 1]]) * end).astype(kind))
    image.save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as stored:
        assert isinstance(stored, TiffImageFile)
        assert stored.tag_v2[262] == 0
    shown = np.asarray(open_image(tmp_path, "a.tif"))[0, :, 0].tolist()
    assert shown in ([255, 127, 0], [255, 128, 0])  # a half rounds up or down


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_an_animation_or_several_pages_the_first_is_shown(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 255, 0))
    first.save(tmp_path / name, save_all=True, append_images=[second], duration=100, lossless=True)
    with Image.open(tmp_path / name) as stored:
        stored.seek(1)
    assert open_image(tmp_path, name).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_keeps_its_colours(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK").save(tmp_path / name)
    assert np.allclose(np.asarray(open_image(tmp_path, name))[8, 8], (200, 30, 30), atol=3)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    assert cause_of(tmp_path, "a.png") == "missing"


def test_a_file_of_no_bytes_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert cause_of(tmp_path, "a.png") == "empty"


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff"])
def test_half_a_file_is_truncated(tmp_path: Path, kind: str) -> None:
    whole = encoded(noise(), kind)
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
    assert cause_of(tmp_path, "a") == "truncated"


def test_half_a_header_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(), "png")[:20])
    assert cause_of(tmp_path, "a.png") == "truncated"


@pytest.mark.parametrize(
    "content", [b"hello, I am a text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"], ids=["text", "eps"]
)
def test_a_file_that_is_no_image_is_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert cause_of(tmp_path, "a.jpg") == "not-an-image"


@pytest.mark.parametrize("rest", [b"", START_OF_DATA], ids=["header only", "cut in the data"])
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (10_000, 10_000), (8001, 8000)])
def test_a_huge_image_is_refused_by_its_header_alone(tmp_path: Path, width: int, height: int, rest: bytes) -> None:
    (tmp_path / "a.png").write_bytes(huge_png(width, height) + rest)
    assert width * height > MAX_PIXELS
    assert cause_of(tmp_path, "a.png") == "too-large"


def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    noise().save(tmp_path / "a.png")
    (root / "link.png").symlink_to(tmp_path / "a.png")
    for path in ("../a.png", str(tmp_path / "a.png"), str(root / "a.png"), "link.png", "x/../../a.png"):
        assert cause_of(root, path) == "outside-root"


def test_a_path_that_comes_back_into_the_root_is_fine(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    assert open_image(tmp_path, "x/../a.png").size == (40, 30)


def test_what_is_not_a_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert cause_of(tmp_path, "folder.png") == "unreadable"
    assert cause_of(tmp_path, "pipe.png") == "unreadable"
    assert cause_of(tmp_path, "n" * 5000) == "unreadable"
    with pytest.raises(ItemError):
        check_image(tmp_path, "loop.png")
    with pytest.raises(ItemError):
        check_image(tmp_path, "a\0b.png")


def test_a_damaged_file_is_always_an_item_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("png", "jpeg", "gif", "webp"):
        whole = np.frombuffer(encoded(noise(), kind), dtype=np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[rng.integers(len(whole), size=8)] = rng.integers(256, size=8)
            (tmp_path / "a").write_bytes(broken[: rng.integers(1, len(whole) + 1)].tobytes())
            # Most damage is refused, some cannot be seen; anything but an ItemError would end the test.
            with contextlib.suppress(ItemError):
                open_image(tmp_path, "a")


def test_a_folder_is_listed_by_suffix_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.jpg", "a/b.txt", "a-b.tiff", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    images = images_in(tmp_path, None)
    assert [image.path for image in images] == ["a-b.tiff", "a/z.jpg", "b.PNG"]
    assert images[1].id == content_id("image", "a/z.jpg")
    assert [image.path for image in images_in(tmp_path, Path("a"))] == ["a/z.jpg"]
    assert [image.path for image in images_in(tmp_path, tmp_path / "a")] == ["a/z.jpg"]


LISTS = {
    "a path a line": "b.png\n\nsub/a b.png\r\nb.png\n",
    "in UTF-16": "\ufeffb.png\nsub/a b.png\n",
    "a table": "split;Image\ntrain;b.png\ntest;sub/a b.png\n",
    "one column": "path\nb.png\nsub/a b.png\n",
    "JSON lines": '{"image": "b.png"}\n{"image": "sub/a b.png"}\n',
    "a JSON list": '["b.png", {"path": "sub/a b.png", "bytes": null}, "b.png"]',
    "absolute paths": "{root}/b.png\n{root}/sub/a b.png\n",
    "our own records": '{"id": "x", "path": "b.png"}\n{"id": "y", "path": "sub/a b.png"}\n',
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("inside", [True, False], ids=["in the root", "elsewhere"])
def test_a_list_names_images_as_a_folder_holds_them(
    kind: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    text = LISTS[kind].replace("{root}", str(root))
    (root / "list" if inside else Path("list")).write_bytes(text.encode("utf-16-le" if "16" in kind else "utf-8"))
    found = images_in(root, Path("list"))
    assert [image.path for image in found] == ["b.png", "sub/a b.png"]
    assert [image.id for image in found] == (["x", "y"] if "own" in kind else [content_id("image", one.path) for one in found])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"picture": "a.png"}', "row 1: no path; expected one of path, file_name"),
        ("[7]", "row 1: path holds a int, no path"),
        ('["https://example.org/a.png"]', "row 1: .* is no path of a file here"),
        ('[{"image": {"bytes": "x"}}]', "row 1: image holds the bytes of an image, and no path"),
    ],
)
def test_a_list_that_names_no_images_is_refused_by_its_row(content: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content + "\n" * content.startswith("{") + content * content.startswith("{"))
    with pytest.raises(StllavaError, match=fault):
        images_in(tmp_path, Path("list.json"))


def test_a_folder_that_is_missing_or_outside_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(StllavaError, match="no folder"):
        images_in(tmp_path / "root", Path("gone"))
    with pytest.raises(StllavaError, match="outside the image root"):
        images_in(tmp_path / "root", Path(".."))
