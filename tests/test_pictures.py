"""The image processors that stand for those that need torchvision: their tiles, and the originals' where they can be had."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.image_processing_backends import PilBackend

from stllava.model import pictures
from stllava.model.pictures import (
    Grid,
    Lfm2VlImageProcessor,
    Llama4ImageProcessor,
    canvas,
    nearest_grid,
    patched,
    rounded,
    within,
)

RANDOM = np.random.default_rng(0)
SIZES: list[tuple[int, int]] = [
    *[(336, 336), (100, 100), (1000, 700), (700, 1000), (2000, 300), (300, 2000), (64, 48), (5000, 20), (20, 5000), (1, 1)],
    *[(3, 7), (513, 511), (1024, 1024), (337, 336), (2500, 1900), (640, 480), (480, 640), (1280, 720), (512, 512)],
    *[(1500, 500), (800, 1600), (1250, 1000)],
    *[(int(width), int(height)) for width, height in RANDOM.integers(1, 2200, (60, 2))],
]
SMALL: dict[str, Any] = {
    "tile_size": 64,
    "encoder_patch_size": 8,
    "min_image_tokens": 4,
    "max_image_tokens": 16,
    "max_tiles": 4,
}
SETTINGS: list[tuple[type[PilBackend], dict[str, Any]]] = [
    (Llama4ImageProcessor, {}),
    (Llama4ImageProcessor, {"resize_to_max_canvas": True}),
    (Llama4ImageProcessor, {"max_patches": 4, "size": {"height": 32, "width": 32}}),
    (Lfm2VlImageProcessor, {"return_row_col_info": True}),
    (Lfm2VlImageProcessor, {"return_row_col_info": True, **SMALL}),
    (Lfm2VlImageProcessor, {"return_row_col_info": True, "use_thumbnail": False}),
    (Lfm2VlImageProcessor, {"return_row_col_info": True, "do_image_splitting": False}),
]


def draw(width: int, height: int) -> Image.Image:
    """A smooth picture."""
    noise = RANDOM.integers(0, 255, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_pictures_are_read_as_the_original_reads_them(kind: type[PilBackend], settings: dict[str, Any]) -> None:
    original: Callable[..., Any] = getattr(transformers, kind.__name__)
    for size in SIZES:
        picture = draw(*size)
        try:
            ours = kind(**settings)([picture], return_tensors="np")
        except ValueError:
            continue
        theirs = original(**settings)([picture], return_tensors="pt")
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            close = 0.02 if name == "pixel_values" else 0.0
            assert np.asarray(value).shape == tuple(np.shape(theirs[name]))
            assert np.abs(np.asarray(value, dtype=np.float32) - np.asarray(theirs[name]).astype(np.float32)).max() <= close


@pytest.mark.parametrize(
    ("shape", "most", "fill", "expected"),
    [
        ((200, 300), 3, False, (1, 2)),
        ((300, 200), 3, False, (2, 1)),
        ((224, 224), 16, False, (1, 1)),
        ((225, 224), 16, False, (2, 1)),
        ((5000, 20), 16, False, (16, 1)),
        ((100, 100), 16, True, (4, 4)),
    ],
)
def test_a_picture_gets_the_smallest_canvas_that_needs_the_least_change(
    shape: Grid, most: int, fill: bool, expected: Grid
) -> None:
    assert canvas(shape, side=224, most=most, fill=fill) == expected


def test_a_picture_keeps_its_proportions_on_its_canvas() -> None:
    assert within((200, 300), (450, 200)) == (133, 200)
    assert within((800, 600), (450, 1300)) == (450, 337)
    assert within((5000, 1), (336, 336)) == (336, 1)


def test_the_tiles_of_llama_4_make_up_the_picture_and_the_last_shows_it_whole() -> None:
    made = Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=4)([draw(64, 64)], return_tensors="pt")
    assert made["aspect_ratios"].tolist() == [[2, 2]]
    tiles = made["pixel_values"].float().numpy()
    assert tiles.shape == (5, 3, 32, 32)
    rows = [np.concatenate(tiles[start : start + 2], axis=2) for start in (0, 2)]
    whole = np.concatenate(rows, axis=1).reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(whole - tiles[4]).mean() < 0.02


def test_a_large_picture_of_lfm2_is_tiles_and_a_view_and_a_small_one_is_itself() -> None:
    processor = Lfm2VlImageProcessor(return_row_col_info=True, **SMALL)
    large, small = (processor([draw(*size)], return_tensors="np") for size in ((256, 128), (48, 32)))
    assert (large["image_rows"], large["image_cols"]) == ([1], [2])
    assert large["spatial_shapes"].tolist()[:2] == [[8, 8], [8, 8]]
    assert len(large["spatial_shapes"]) == 3
    assert (small["image_rows"], small["image_cols"]) == ([1], [1])
    assert small["spatial_shapes"].tolist() == [[4, 6]]
    assert small["pixel_attention_mask"].sum() == 24


def test_sizes_are_whole_units_within_their_number() -> None:
    for width, height in SIZES:
        down, across = rounded((height, width), unit=32, least=64, most=256)
        assert down % 32 == across % 32 == 0
        if max(width, height) < 16 * min(width, height):
            assert 64 <= down * across / 32**2 <= 256


def test_the_grid_nearest_a_pictures_proportions_is_taken() -> None:
    assert nearest_grid((500, 1500), side=512, least=2, most=10) == (1, 3)
    assert nearest_grid((1500, 500), side=512, least=2, most=10) == (3, 1)
    # Of two by two and three by three, the larger only where the picture half fills it.
    assert nearest_grid((600, 600), side=512, least=2, most=10) == (2, 2)
    assert nearest_grid((1200, 1200), side=512, least=2, most=10) == (3, 3)


def test_patches_go_row_by_row_with_a_pixels_channels_together() -> None:
    pixels = np.arange(3 * 4 * 6).reshape(3, 4, 6)
    patches = patched(pixels, 2)
    assert patches.shape == (6, 12)
    assert patches[1].reshape(2, 2, 3)[1, 0].tolist() == pixels[:, 1, 2].tolist()
    assert pictures.split(pixels, (2, 3))[4].tolist() == pixels[:, 2:4, 2:4].tolist()
