"""`python -m magi_lite plan`: will it fit that card, and how long will it take?"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace

from magi_lite import planner
from magi_lite.cli import plan_table
from magi_lite.cli.reading import add_options, options_given
from magi_lite.errors import InputError, MagiLiteError
from magi_lite.library import plan_request
from magi_lite.machine import cards, devices
from magi_lite.machine.cards import GIB, Device
from magi_lite.request.build import build
from magi_lite.request.request import OPTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the `plan` command."""
    parser.add_argument(
        "--gpu", metavar="NAME", help='a known card, for example "RTX 4090"; default: the one in this machine'
    )
    parser.add_argument("--ram-gb", metavar="N", help="RAM of the machine; default: no limit for a named card")
    parser.add_argument("--cpu", action="store_true", help="plan for the processor")
    parser.add_argument("--list-gpus", action="store_true", help="print the known cards and stop")
    add_options(parser, (option for option in OPTIONS.values() if option.planned))
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan. Returns 0, or 2 where nothing fits or a setting cannot be used."""
    if args.list_gpus:
        for card in cards.known_cards():
            print(f"{card.name:<20}{card.vram_gb:>5g} GB  {'FP8' if card.has_fp8 else '-'}")
        return 0
    try:
        plan = make_plan(args)
    except MagiLiteError as error:
        if not args.json:
            raise
        print(json.dumps({"error": str(error), "choices": list(getattr(error, "choices", ()))}, indent=2))
        return error.exit_code
    print(json.dumps(plan.to_json(), indent=2) if args.json else plan_table.text(plan))
    return 0


def make_plan(args: argparse.Namespace) -> planner.Plan:
    """The plan that the flags ask for: what `generate` would do with them, on this machine or on the one they name."""
    machine = chosen_device(args)
    given = options_given(args)
    if machine is not None:
        given.pop("vram_gb", None)  # the machine's own here
    request = build(machine=machine, demo=machine is None, **given)
    if machine is not None and machine.kind == "cuda" and "preset" not in given:
        request = replace(request, preset="auto")  # a card that is too small is refused, not replaced by the processor
    return plan_request(request, machine, free_window=args.window is None)


def chosen_device(args: argparse.Namespace) -> Device | None:
    """The machine that --gpu, --vram-gb, --ram-gb and --cpu describe; None: this one."""
    vram_gb, ram_gb = _memory(args.vram_gb, "--vram-gb"), _memory(args.ram_gb, "--ram-gb")
    if args.cpu:
        device = cards.cpu_device()
    elif args.gpu and vram_gb is not None:
        device = cards.with_memory(cards.known_card(args.gpu), vram_gb)
    elif args.gpu:
        device = cards.known_card(args.gpu)
    elif vram_gb is not None:
        device = cards.generic_card(vram_gb)
    elif ram_gb is not None:
        device = devices.detect()
    else:
        return None
    if ram_gb is None:
        return device
    free = device.free_bytes if device.kind == "cuda" else None  # another machine's RAM is taken as free
    return replace(device, ram_bytes=int(ram_gb * GIB), free_bytes=free)


def _memory(text: str | None, flag: str) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    most = OPTIONS["vram_gb"].most or math.inf
    if not 0 < number <= most:
        raise InputError(f"{flag} takes more than 0 GB and at most {most}, not {text[:40]}.")
    return number
