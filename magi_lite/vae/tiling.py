"""Any size through an autoencoder trained on 256 x 256 x 16: overlapping tiles, linearly blended.

Tiles overlap by a quarter in space and not at all in time. The published program blends an encoded tile with
neighbours that are already blended, and a decoded one with neighbours that are not; both are kept. Tiles of one shape
are stacked into batches of `tile_batch`: the result does not depend on it beyond rounding, the memory does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from magi_lite.models import PUBLISHED_TILING, SCALE_FACTOR, Tiling
from magi_lite.vae.model import ViTVAE


def encode_tiled(
    vae: ViTVAE,
    frames: Tensor,
    *,
    tiling: Tiling = PUBLISHED_TILING,
    scale_factor: float = SCALE_FACTOR,
    tile_batch: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Frames to scaled latents.

    Args:
        vae: the autoencoder.
        frames: (N, 3, T, H, W) in [-1, 1], or (N, T, H, W, 3) uint8, of which only a tile at a time becomes float; T is
            1 or a multiple of 4, H and W multiples of 16.
        tiling: tile sizes.
        scale_factor: what the latents are multiplied with.
        tile_batch: how many tiles of one shape run at once.
        device: where the autoencoder is, if `frames` are somewhere else: tiles are brought there one by one.

    Returns:
        (N, 16, max(T/4, 1), H/8, W/8) float32.
    """
    steps = tuple(int(size * (1 - overlap)) for size, overlap in zip(tiling.sample_sizes, tiling.overlaps, strict=True))
    extents = tuple(int(size * overlap) for size, overlap in zip(tiling.latent_sizes, tiling.overlaps, strict=True))
    limits = tuple(size - extent for size, extent in zip(tiling.latent_sizes, extents, strict=True))
    in_bytes = frames.dtype == torch.uint8
    if in_bytes:
        frames = frames.permute(0, 4, 1, 2, 3)
    boxes = [
        _boxes(length, size, step)
        for length, size, step in zip(frames.shape[2:], tiling.sample_sizes, steps, strict=True)
    ]

    def encode(tile: Tensor) -> Tensor:
        tile = tile if device is None else tile.to(device)
        return vae.encode(_signed(tile) if in_bytes else tile)

    tiles = _run_tiles(encode, frames, boxes, tile_batch)
    return _stitch(tiles, [len(b) for b in boxes], extents, limits, cascade=True) * scale_factor


def decode_tiled(
    vae: ViTVAE,
    latents: Tensor,
    *,
    tiling: Tiling = PUBLISHED_TILING,
    scale_factor: float = SCALE_FACTOR,
    tile_batch: int = 1,
    every_frame: bool = True,
) -> Tensor:
    """Scaled latents to frames.

    Args:
        vae: the autoencoder, on the device of `latents`.
        latents: (N, 16, T, H, W), scaled.
        tiling: tile sizes.
        scale_factor: what the latents were multiplied with.
        tile_batch: how many tiles of one shape run at once.
        every_frame: choose time tiles so that none is a single latent frame, which would decode to one frame instead of
            four (the published program loses three frames there). Only a T = 1 input still gives a single frame.

    Returns:
        (N, 3, 4T, 8H, 8W) float32, about [-1, 1].
    """
    sizes = tiling.latent_sizes
    steps = tuple(int(size * (1 - overlap)) for size, overlap in zip(sizes, tiling.overlaps, strict=True))
    extents = tuple(int(size * overlap) for size, overlap in zip(tiling.sample_sizes, tiling.overlaps, strict=True))
    limits = tuple(size - extent for size, extent in zip(tiling.sample_sizes, extents, strict=True))
    boxes = [_boxes(length, size, step) for length, size, step in zip(latents.shape[2:], sizes, steps, strict=True)]
    if every_frame and extents[0] == 0:
        boxes[0] = _without_single_frames(boxes[0])
    tiles = _run_tiles(vae.decode, latents / scale_factor, boxes, tile_batch)
    return _stitch(tiles, [len(b) for b in boxes], extents, limits, cascade=False)


def to_uint8(frames: Tensor) -> Tensor:
    """(N, 3, T, H, W) in [-1, 1] -> (N, T, H, W, 3) uint8; truncated, as published."""
    return (frames * 127.5 + 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def to_signed(frames: Tensor) -> Tensor:
    """(N, T, H, W, 3) uint8 -> (N, 3, T, H, W) float32 in [-1, 1]."""
    return _signed(frames.permute(0, 4, 1, 2, 3))


def _signed(frames: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1]."""
    return (frames.float() / 127.5) - 1.0


def _boxes(length: int, size: int, step: int) -> list[slice]:
    """Slices of `size` that begin every `step`; the last ones are cut at the end."""
    return [slice(start, min(start + size, length)) for start in range(0, length, step)]


def _without_single_frames(boxes: list[slice]) -> list[slice]:
    """Move the last seam back by one where the last time tile would hold one latent frame."""
    if len(boxes) < 2 or boxes[-1].stop - boxes[-1].start > 1:
        return boxes
    before, last = boxes[-2], boxes[-1]
    if before.stop - before.start < 3:  # moving the seam would leave a single frame there instead
        return [*boxes[:-2], slice(before.start, last.stop)]
    seam = last.start - 1
    return [*boxes[:-2], slice(before.start, seam), slice(seam, last.stop)]


def _run_tiles(
    run: Callable[[Tensor], Tensor], x: Tensor, boxes: list[list[slice]], tile_batch: int
) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
    """Yield (position, result) of every tile in raster order, equal shapes stacked up to `tile_batch`."""
    times, rows, columns = (range(len(b)) for b in boxes)
    places = list(product(times, rows, columns))
    samples = len(x)

    def cut(place: tuple[int, int, int]) -> Tensor:
        time, row, column = (boxes[axis][index] for axis, index in enumerate(place))
        return x[:, :, time, row, column]

    def shape(place: tuple[int, int, int]) -> tuple[int, ...]:
        return tuple(boxes[axis][index].stop - boxes[axis][index].start for axis, index in enumerate(place))

    at = 0
    while at < len(places):
        batch = [places[at]]
        while (
            len(batch) < tile_batch
            and at + len(batch) < len(places)
            and shape(places[at + len(batch)]) == shape(batch[0])
        ):
            batch.append(places[at + len(batch)])
        results = run(torch.cat([cut(place) for place in batch])) if len(batch) > 1 else run(cut(batch[0]))
        for number, place in enumerate(batch):
            yield place, results[number * samples : (number + 1) * samples].float()
        at += len(batch)


def _stitch(
    tiles: Iterator[tuple[tuple[int, int, int], Tensor]],
    counts: list[int],
    extents: tuple[int, ...],
    limits: tuple[int, ...],
    *,
    cascade: bool,
) -> Tensor:
    """Blend each tile with the one before it in time, height and width, crop and join.

    `cascade`: neighbours that are blended into are the already blended ones. Only the tiles that a later one can still
    touch are kept.
    """
    kept: dict[tuple[int, int, int], Tensor] = {}
    slabs, rows, row = [], [], []
    for place, tile in tiles:
        blended = tile
        for axis in range(3):
            if place[axis] == 0 or extents[axis] == 0:
                continue
            time, high, wide = (index - (number == axis) for number, index in enumerate(place))
            neighbour = kept[time, high, wide]
            blended = _blend(neighbour, blended, extents[axis], axis + 2)
        kept[place] = blended if cascade else tile
        row.append(blended[:, :, : limits[0], : limits[1], : limits[2]])
        if place[2] == counts[2] - 1:
            rows.append(torch.cat(row, dim=4))
            row = []
            if place[1] == counts[1] - 1:
                slabs.append(torch.cat(rows, dim=3))
                rows = []
        _forget(kept, place, extents)
    return torch.cat(slabs, dim=2)


def _forget(kept: dict[tuple[int, int, int], Tensor], place: tuple[int, int, int], extents: tuple[int, ...]) -> None:
    """Drop tiles that no later tile touches: the slab before (or, without overlap in time, the row before)."""
    time, row, column = place
    kept.pop((time - 1, row, column), None)
    if extents[0] == 0:
        kept.pop((time, row - 1, column), None)
        if column == 0:
            for old in [p for p in kept if p[0] < time]:
                del kept[old]


def _blend(before: Tensor, tile: Tensor, extent: int, axis: int) -> Tensor:
    """Fade from the end of `before` into the start of `tile` over `extent` places of `axis`."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    weight = torch.arange(extent, device=tile.device, dtype=tile.dtype) / extent
    weight = weight.view([-1 if dimension == axis else 1 for dimension in range(tile.ndim)])
    end = before.narrow(axis, before.shape[axis] - extent, extent)
    start = tile.narrow(axis, 0, extent)
    faded = end * (1 - weight) + start * weight
    return torch.cat([faded, tile.narrow(axis, extent, tile.shape[axis] - extent)], dim=axis)
