"""A plan as text: the table and the bars that `python -m magi_lite plan` prints."""

from __future__ import annotations

from magi_lite.machine.cards import GIB
from magi_lite.planner.plan import Place, Plan, spoken, vram_limit

BAR_WIDTH = 48
LEGEND = (
    "DiT: the network that makes the video, layer by layer; its shell is what lies around the layers. Keys and values:",
    "what it keeps of finished seconds, so that the next ones follow from them. VAE: turns its numbers into frames and",
    "back. Activations: what it works on. Pinned: RAM that the card reads directly. Window: seconds made together.",
)
"""What the table's columns and rows stand for."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def text(plan: Plan) -> str:
    """Heading, table of items, bars per phase, times and notes, as one block of text."""
    return "\n".join([*heading(plan), "", *table(plan), "", *bars(plan), "", *times(plan), *notes(plan), "", *LEGEND])


def heading(plan: Plan) -> list[str]:
    """What is planned for which device, and how it is executed."""
    request, execution = plan.request, plan.execution
    length = "endless" if request.seconds is None else f"{request.seconds} s"
    slices = f", MLP in slices of {execution.mlp_slice} tokens" if execution.mlp_slice else ""
    slices += f", attention in slices of {execution.attention_slice}" if execution.attention_slice else ""
    beside = ", decoding beside the steps" if execution.decode_beside else ""
    return [
        f"{plan.model.name}, {request.width}x{request.height}, {length}, {request.steps} steps, window {plan.window}, "
        f"on {plan.device.name}" + (f" ({plan.device.vram_gb:g} GB)" if plan.device.kind == "cuda" else ""),
        f"weights {execution.scheme}, layers {execution.layers}, keys and values {execution.kv_dtype} "
        f"({'graphics memory' if execution.kv_place == 'device' and execution.device == 'cuda' else 'RAM'}), "
        f"VAE {execution.vae}{beside}, text encoder {execution.t5} on {execution.t5_device}{slices}",
    ]


def table(plan: Plan) -> list[str]:
    """One row per component and place, one column per phase, in MB of 2^20 bytes."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for item in plan.items:
        rows.setdefault((item.component, item.place), {}).setdefault(item.phase, 0)
        rows[item.component, item.place][item.phase] += item.bytes
    lines = [f"{'MB':<26}{'where':<8}" + "".join(f"{phase:>10}" for phase in plan.phases)]
    order = {"vram": 0, "pinned": 1, "ram": 2}
    for (component, place), phases in sorted(rows.items(), key=lambda row: order[row[0][1]]):
        cells = "".join(f"{_megabytes(phases.get(phase, 0)):>10}" for phase in plan.phases)
        lines.append(f"{component:<26}{place:<8}{cells}")
    if plan.execution.device == "cuda":
        sums = "".join(f"{_megabytes(plan.peak_per_phase[phase]):>10}" for phase in plan.phases)
        lines.append(f"{'graphics memory':<26}{'vram':<8}{sums}")
    sums = "".join(f"{_megabytes(plan.phase_bytes(phase, 'ram', 'pinned')):>10}" for phase in plan.phases)
    lines.append(f"{'RAM':<26}{'':<8}{sums}")
    return lines


def bars(plan: Plan) -> list[str]:
    """A bar per phase against the memory of the device."""
    if plan.execution.device == "cuda":
        whole = plan.device.vram_bytes
        places: tuple[Place, ...] = ("vram",)
        extra, what = plan.allowance_bytes, f"of {plan.device.vram_gb:g} GB graphics memory"
    else:
        whole = plan.device.ram_bytes or max(plan.peak_ram_bytes, 1)
        places, extra, what = ("ram", "pinned"), 0, f"of {whole / GIB:.1f} GB RAM"
    lines = []
    for phase in plan.phases:
        size = plan.phase_bytes(phase, *places) + extra
        lines.append(f"{phase:<8}▕{_bar(size / whole)}▏ {size / GIB:6.2f} {what}")
    return lines


def times(plan: Plan) -> list[str]:
    """Peak and seconds, one line each."""
    lines = []
    if plan.execution.device == "cuda":
        spare = 1 - plan.needed_vram_bytes / max(1, plan.device.vram_bytes)
        lines.append(
            f"peak {plan.peak_vram_bytes / GIB:.2f} GB of tensors in phase {plan.peak_phase}, "
            f"{plan.allowance_bytes / GIB:.2f} GB allowed for context and fragmentation, {spare:.0%} of the card left"
            + ("" if plan.fits else f": more than the {vram_limit(plan.device) / GIB:.2f} GB that may be used")
        )
    lines.append(
        f"peak {plan.peak_ram_bytes / GIB:.2f} GB of RAM, {plan.pinned_bytes / GIB:.2f} GB of it pinned"
    )
    lines.append(
        f"about {spoken(plan.seconds_per_chunk)} per second of video, first second after "
        f"{spoken(plan.time_to_first_chunk)}" + (", measured here" if plan.measured != 1 else "")
    )
    return lines


def notes(plan: Plan) -> list[str]:
    """Remarks, one line each."""
    return [f"note: {note}" for note in plan.notes]


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f}" if size >= 10 << 20 else (f"{size / (1 << 20):.2f}" if size else "-")


def _bar(share: float) -> str:
    """A bar of `BAR_WIDTH` characters, filled to `share` in eighths of one; `!` at the end where it overflows."""
    if share > 1:
        return "█" * (BAR_WIDTH - 1) + "!"
    eighths = round(share * BAR_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(BAR_WIDTH)
