"""A plan as a picture: one stacked bar per phase, as a self-contained SVG string for the page."""

from __future__ import annotations

from html import escape

from magi_lite.machine.cards import GIB
from magi_lite.planner.plan import Item, Plan

WIDTH, BAR_HEIGHT, GAP, LEFT, RIGHT = 720, 30, 14, 82, 92
COLOURS = {
    "program": "#9aa5b1",
    "text encoder": "#c98b2b",
    "text activations": "#e0b566",
    "DiT shell": "#2b5c8a",
    "DiT layers": "#3b7dbb",
    "layer buffers": "#3b7dbb",
    "captions": "#7d6bb3",
    "keys and values": "#2f8f83",
    "key and value buffers": "#2f8f83",
    "VAE": "#b3506e",
    "VAE encoder": "#b3506e",
    "VAE decoder": "#b3506e",
    "activations": "#d97b5b",
    "encoding": "#d97b5b",
    "decoding": "#d97b5b",
    "frames": "#8aa15b",
}
OTHER = "#777777"


def svg(plan: Plan) -> str:
    """Stacked bars of device memory (of RAM on a CPU) per phase, the card's end marked, names as tooltips and a legend.

    Text takes the page's colour (`currentColor`), so it is readable on dark pages too.
    """
    cuda = plan.execution.device == "cuda"
    places = ("vram",) if cuda else ("ram", "pinned")
    whole = plan.device.vram_bytes if cuda else plan.device.ram_bytes or max(1, plan.peak_ram_bytes)
    extra = plan.allowance_bytes
    longest = max(whole, *(plan.phase_bytes(phase, *places) + extra for phase in plan.phases))
    scale = (WIDTH - LEFT - RIGHT) / longest
    body, y = [], 8.0
    for phase in plan.phases:
        items = [item for item in plan.items if item.phase == phase and item.place in places]
        body.append(_bar(phase, items, extra, scale, y))
        y += BAR_HEIGHT + GAP
    end = LEFT + whole * scale
    body.append(
        f'<line x1="{end:.1f}" y1="2" x2="{end:.1f}" y2="{y - GAP + 6:.1f}" stroke="currentColor" '
        f'stroke-dasharray="4 3"><title>{escape(plan.device.name)}: {whole / GIB:.1f} GB</title></line>'
    )
    legend, y = _legend(plan, places, y + 6)
    peak = plan.needed_vram_bytes if cuda else plan.peak_ram_bytes
    label = f"Memory plan: peak {peak / GIB:.2f} GB of {whole / GIB:.1f} GB"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="100%" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui, sans-serif" font-size="12">'
        f"<title>{escape(label)}</title>{''.join(body)}{legend}</svg>"
    )


def _bar(phase: str, items: list[Item], extra: int, scale: float, y: float) -> str:
    """One phase: its name, a rectangle per component, the allowance hatched grey, and the sum."""
    middle = y + BAR_HEIGHT / 2 + 4
    parts = [
        f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end" fill="currentColor">{escape(phase)}</text>'
    ]
    x = float(LEFT)
    pieces = [(item.component, item.bytes, COLOURS.get(item.component, OTHER), 1.0) for item in items]
    if extra:
        pieces.append(("context and fragmentation", extra, OTHER, 0.35))
    for name, size, colour, opacity in pieces:
        width = size * scale
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{BAR_HEIGHT}" fill="{colour}" '
            f'fill-opacity="{opacity}"><title>{escape(name)}: {_size(size)}</title></rect>'
        )
        x += width
    total = sum(size for _, size, _, _ in pieces)
    parts.append(f'<text x="{x + 6:.1f}" y="{middle:.1f}" fill="currentColor">{_size(total)}</text>')
    return "".join(parts)


def _legend(plan: Plan, places: tuple[str, ...], y: float) -> tuple[str, float]:
    """A row of coloured squares with names, wrapped; and where it ends."""
    names = list(dict.fromkeys(item.component for item in plan.items if item.place in places))
    parts, x = [], float(LEFT)
    for name in names:
        width = 24 + 7 * len(name)
        if x + width > WIDTH:
            x, y = float(LEFT), y + 18
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="10" height="10" fill="{COLOURS.get(name, OTHER)}"/>'
            f'<text x="{x + 14:.0f}" y="{y + 9:.0f}" fill="currentColor">{escape(name)}</text>'
        )
        x += width
    return "".join(parts), y + 20


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GB" if size >= GIB // 10 else f"{size / (1 << 20):.1f} MB"
