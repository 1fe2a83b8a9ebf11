"""Colours of foreign pictures and clips in BT.709: which matrix untagged video means, and HDR made SDR.

HDR is tone-mapped in light: PQ gives nits (SMPTE ST 2084), of which 203 are diffuse white (ITU-R BT.2408); HLG gives
scene light (ARIB STD-B67, ITU-R BT.2100), of which a signal of 0.75 is diffuse white. Light up to `KNEE` of white stays
as it is, brighter light is compressed so that none clips. Primaries follow BT.2087.
"""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18
_BT2020, _P3 = 9, 12
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""The scaler's number of a matrix by that of ITU-T H.273."""
PQ_WHITE = 203.0
"""Nits of diffuse white."""
HLG_WHITE = (np.exp((0.75 - 0.55991073) / 0.17883277) + 0.28466892) / 12
"""Scene light of diffuse white: a signal of 0.75."""
KNEE = 0.6
_TO_709 = {
    _BT2020: np.array(
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
        np.float32,
    ),
    _P3: np.array(
        [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], np.float32
    ),
}


def matrix_of(colorspace: int, primaries: int, width: int, height: int) -> int:
    """The Y'CbCr matrix of a frame, as the scaler numbers them; untagged HD is BT.709 and SD is BT.601."""
    if colorspace in _MATRICES:
        return _MATRICES[colorspace]
    if primaries == _BT2020:
        return _MATRICES[_BT2020]
    return 1 if width >= 1280 or height > 576 else 5


def is_wide(transfer: int, primaries: int) -> bool:
    """Whether colours have to go through light to become BT.709: HDR, or wider primaries."""
    return transfer in (PQ, HLG) or primaries in _TO_709


def to_bt709(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """R'G'B' (H, W, 3), 0..1, of some transfer and primaries (ITU-T H.273 numbers) to BT.709 (H, W, 3) uint8."""
    signal = signal.astype(np.float32)
    if transfer == PQ:
        light = pq_nits(signal) / PQ_WHITE
    elif transfer == HLG:
        light = hlg_scene(signal) / HLG_WHITE
    else:
        light = np.where(signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45))
    if primaries in _TO_709:
        light = light @ _TO_709[primaries].T
    light = light.clip(0)
    if transfer in (PQ, HLG):
        brightest = light.max(-1, keepdims=True)
        light = light * (_compressed(brightest) / np.maximum(brightest, 1e-6))
    light = light.clip(0, 1)
    coded = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
    return np.rint(coded * 255).clip(0, 255).astype(np.uint8)


def scale_of(highest: float, up_to_1: float, whole: bool, *, floats: bool, full: float = 65535.0) -> float | None:
    """What samples of many bits are multiplied with to be 0..255; None: they are light, of which 1 is white.

    Floats are 0..1, as programs write them. Floats of which most are up to 1 and some above it are light, as HDR
    pictures have it; whole numbers are none. All others have the range of 255, 65535 or more that their highest shows.

    Args:
        highest: sample.
        up_to_1: the share of samples that are not above 1.
        whole: whether all of them are whole numbers.
        floats: whether they are stored as floats.
        full: what the highest sample could be; that of 16 bit where it is not known.
    """
    if floats and highest <= 1:
        return 255.0
    if floats and not whole and up_to_1 > 0.5:
        return None
    tops = (255.0, min(full, 65535.0), full if highest > full / 256 else highest, highest)
    return 255 / next(top for top in tops if highest <= top)


def from_light(light: np.ndarray, bright: bool = True) -> np.ndarray:
    """Light, of which 1 is diffuse white, as sRGB (IEC 61966-2-1) uint8 of the same shape; (H, W, 3) keep their hue.

    Args:
        bright: whether the picture has light above 1, for which white makes room.
    """
    light = light.astype(np.float32).clip(0)
    if bright:
        brightest = light.max(-1, keepdims=True) if light.shape[-1] == 3 and light.ndim == 3 else light
        light = light * (_compressed(brightest) / np.maximum(brightest, 1e-6))
    coded = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(coded * 255).clip(0, 255).astype(np.uint8)


def pq_nits(signal: np.ndarray) -> np.ndarray:
    """The PQ curve: signal 0..1 to nits 0..10000."""
    power = np.clip(signal, 0, 1) ** (32 / 2523)
    return 10000 * (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """The inverse of HLG's opto-electronic curve: signal 0..1 to scene light 0..1."""
    signal = np.clip(signal, 0, 1)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)


def _compressed(light: np.ndarray) -> np.ndarray:
    """Light as it is up to the knee, then ever slower towards 1."""
    room = 1 - KNEE
    return np.where(light <= KNEE, light, KNEE + room * (1 - np.exp(-(light - KNEE) / room)))
