"""Image processors of families whose own in transformers need torchvision: Llama 4 and LFM2-VL.

Each reads pictures and settings as transformers' class of its name does (5.23) and gives the same tiles, pixels within a
rounding of the resized picture. Writes nothing.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil, floor, sqrt
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs

Pixels = npt.NDArray[np.generic]
"""A picture or a tile of it, [3, H, W]."""
Grid = tuple[int, int]
"""Rows and columns, or height and width."""


class Llama4Settings(ImagesKwargs, total=False):
    """What a Llama 4's folder says beside what all image processors take."""

    max_patches: int
    resize_to_max_canvas: bool


class Llama4ImageProcessor(PilBackend):
    """A picture on the canvas of up to so many tiles that fits it best, and the whole picture as one tile more.

    Nothing is enlarged beyond a tile unless the canvas is to be filled.
    """

    valid_kwargs = Llama4Settings
    model_input_names = ["pixel_values"]  # noqa: RUF012 - processors add lists to it
    resample = Image.Resampling.BILINEAR
    image_mean = image_std = (0.5, 0.5, 0.5)
    size = SizeDict(height=336, width=336)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    max_patches = 16
    resize_to_max_canvas = False

    def __init__(self, **settings: Unpack[Llama4Settings]) -> None:
        super().__init__(**settings)  # type: ignore[misc]

    def _preprocess(  # type: ignore[override]
        self,
        images: Sequence[Pixels],
        *,
        size: SizeDict,
        resample: Image.Resampling,
        rescale_factor: float,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        max_patches: int,
        resize_to_max_canvas: bool,
        return_tensors: str | None,
        **_: object,
    ) -> BatchFeature:
        side = int(size.height or 0)
        mean, std = (torch.tensor(values, dtype=torch.bfloat16)[:, None, None] for values in (image_mean, image_std))
        tiles: list[torch.Tensor] = []
        grids: list[Grid] = []
        for image in images:
            shape = (image.shape[1], image.shape[2])
            grid = canvas(shape, side=side, most=max_patches, fill=resize_to_max_canvas)
            whole = (grid[0] * side, grid[1] * side)
            # A side that the canvas limits is counted in float32 there, where another floor can come of it.
            exact = [(max(own, side), np.float32(limit)) for own, limit in zip(shape, whole, strict=True)]
            room = [limit if resize_to_max_canvas or limit < own else own for own, limit in exact]
            fitted = self._resized(image, within(shape, room), resample)
            padded = np.pad(fitted, [(0, 0), *((0, most - size) for most, size in zip(whole, fitted.shape[1:], strict=True))])
            views = [*split(padded, grid), *([self._resized(image, (side, side), resample)] if grid != (1, 1) else [])]
            # In bfloat16, as the model was trained.
            pixels = torch.from_numpy(np.stack(views)).to(torch.bfloat16) * rescale_factor
            tiles.append((pixels - mean) / std)
            grids.append(grid)
        data = {"pixel_values": torch.cat(tiles), "aspect_ratios": torch.tensor(grids)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _resized(self, image: Pixels, size: Grid, resample: Image.Resampling) -> Pixels:
        resized: Pixels = self.resize(image, SizeDict(height=size[0], width=size[1]), resample=resample)
        return resized


def canvas(shape: Grid, *, side: int, most: int, fill: bool) -> Grid:
    """The grid of up to `most` tiles on which a picture is enlarged least, or where none is large enough, reduced least.

    Of equal ones it is the smallest; with `fill` the picture is enlarged most.
    """
    grids = [(rows, columns) for rows, columns in product(range(1, most + 1), repeat=2) if rows * columns <= most]
    tiles = np.array(grids, dtype=np.float32) * np.float32(side)
    scales = (tiles / np.array(shape, dtype=np.float32)).min(axis=1)
    larger = scales[scales >= 1]
    scale = (larger.max() if fill else larger.min()) if len(larger) else scales.max()
    fitting = [grid for grid, own in zip(grids, scales, strict=True) if own == scale]
    return min(fitting, key=lambda grid: grid[0] * grid[1])


def within(shape: Grid, room: Sequence[int | np.float32]) -> Grid:
    """The largest size of a picture's proportions that has room, at least a pixel each way."""
    height, width = shape
    down, across = room[0] / height, room[1] / width
    fitted = (floor(height * across), room[1]) if across < down else (room[0], floor(width * down))
    most_down, most_across = (max(1, int(min(side, limit))) for side, limit in zip(fitted, room, strict=True))
    return most_down, most_across


def split(picture: Pixels, grid: Grid) -> list[Pixels]:
    """The tiles of a picture, row by row."""
    return [tile for row in np.split(picture, grid[0], axis=1) for tile in np.split(row, grid[1], axis=2)]


class Lfm2VlSettings(ImagesKwargs, total=False):
    """What an LFM2-VL's folder says beside what all image processors take."""

    downsample_factor: int
    do_image_splitting: bool
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    min_image_tokens: int
    max_image_tokens: int
    encoder_patch_size: int
    tile_size: int
    max_pixels_tolerance: float
    return_row_col_info: bool


class Lfm2VlImageProcessor(PilBackend):
    """A picture in its proportions, or tiles of a large one and a smaller view of the whole, as rows of patches."""

    valid_kwargs = Lfm2VlSettings
    model_input_names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]  # noqa: RUF012 - as above
    resample = Image.Resampling.BILINEAR
    image_mean = image_std = (0.5, 0.5, 0.5)
    size = SizeDict(height=512, width=512)
    rescale_factor = 1 / 255
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    downsample_factor = 2
    do_image_splitting = True
    min_tiles = 2
    max_tiles = 10
    use_thumbnail = True
    min_image_tokens = 64
    max_image_tokens = 256
    encoder_patch_size = 16
    tile_size = 512
    max_pixels_tolerance = 2.0
    return_row_col_info = False

    def __init__(self, **settings: Unpack[Lfm2VlSettings]) -> None:
        super().__init__(**settings)  # type: ignore[misc]

    def _preprocess(  # type: ignore[override]
        self,
        images: Sequence[Pixels],
        *,
        resample: Image.Resampling,
        rescale_factor: float,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        downsample_factor: int,
        do_image_splitting: bool,
        min_tiles: int,
        max_tiles: int,
        use_thumbnail: bool,
        min_image_tokens: int,
        max_image_tokens: int,
        encoder_patch_size: int,
        tile_size: int,
        max_pixels_tolerance: float,
        return_row_col_info: bool,
        return_tensors: str | None,
        **_: object,
    ) -> BatchFeature:
        unit = encoder_patch_size * downsample_factor
        longest = max(
            max_image_tokens * downsample_factor**2,
            (tile_size // encoder_patch_size) ** 2 if do_image_splitting else 0,
        )
        rows, masks, shapes = [], [], []
        grids: list[Grid] = []
        sizes: list[Grid] = []
        for image in images:
            shape = (image.shape[1], image.shape[2])
            small = rounded(shape, unit=unit, least=min_image_tokens, most=max_image_tokens)
            # Nearest multiples of a unit, but at least a patch: this is what decides whether a picture is large.
            near = [max(encoder_patch_size, round(side / unit) * unit) for side in shape]
            large = near[0] * near[1] > max_image_tokens * unit**2 * max_pixels_tolerance
            grid = (1, 1)
            views = [small]
            if large and do_image_splitting and not min_tiles == max_tiles == 1:
                grid = nearest_grid(shape, side=tile_size, least=min_tiles, most=max_tiles)
                views = [small] if use_thumbnail and grid != (1, 1) else []
            tiles = [] if views == [small] and grid == (1, 1) else split(self._resized(image, grid, tile_size, resample), grid)
            tiles += [self._resized(image, view, 1, resample) for view in views]
            for tile in tiles:
                pixels = self.normalize(self.rescale(tile, rescale_factor), image_mean, image_std)
                patches = patched(pixels, encoder_patch_size)
                rows.append(np.pad(patches, [(0, longest - len(patches)), (0, 0)]))
                masks.append(np.arange(longest) < len(patches))
                shapes.append([side // encoder_patch_size for side in tile.shape[1:]])
            grids.append(grid)
            sizes.append(small)
        data: dict[str, object] = {
            "pixel_values": np.stack(rows).astype(np.float32),
            "pixel_attention_mask": np.stack(masks).astype(np.int32),
            "spatial_shapes": np.array(shapes),
        }
        if return_row_col_info:
            data |= {"image_rows": [grid[0] for grid in grids], "image_cols": [grid[1] for grid in grids], "image_sizes": sizes}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _resized(self, image: Pixels, grid: Grid, side: int, resample: Image.Resampling) -> Pixels:
        resized: Pixels = self.resize(image, SizeDict(height=grid[0] * side, width=grid[1] * side), resample=resample)
        return resized


def rounded(shape: Grid, *, unit: int, least: int, most: int) -> Grid:
    """A size of a picture's proportions, of whole units each way, that is `least` to `most` units in all."""
    height, width = (max(unit, round(side / unit) * unit) for side in shape)
    if height * width > most * unit**2:
        by = sqrt(shape[0] * shape[1] / (most * unit**2))
        height, width = (max(unit, floor(side / by / unit) * unit) for side in shape)
    elif height * width < least * unit**2:
        by = sqrt(least * unit**2 / (shape[0] * shape[1]))
        height, width = (ceil(side * by / unit) * unit for side in shape)
    return height, width


def nearest_grid(shape: Grid, *, side: int, least: int, most: int) -> Grid:
    """The grid of `least` to `most` tiles with proportions nearest a picture's; of equal ones the largest it half fills."""
    height, width = shape
    sides = range(1, most + 1)
    # As (columns, rows) in a set, whose order decides between grids of one size.
    grids = {(across, down) for across in sides for down in sides if least <= across * down <= most}
    best, apart = (1, 1), float("inf")
    for across, down in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        own = abs(width / height - across / down)
        if own < apart or (own == apart and height * width > 0.5 * side**2 * across * down):
            best, apart = (down, across), own
    return best


def patched(pixels: Pixels, side: int) -> Pixels:
    """[rows · columns, side · side · 3] patches of a picture, row by row, the channels of a pixel together."""
    down, across = (size // side for size in pixels.shape[1:])
    return pixels.reshape(3, down, side, across, side).transpose(1, 3, 2, 4, 0).reshape(down * across, -1)
