"""`python -m magi_lite plan`: will it fit that card, and how long will it take?"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from magi_lite import planner
from magi_lite.cli.reading import overrides_given, parse_size
from magi_lite.errors import InputError, MagiLiteError
from magi_lite.machine import cards, devices
from magi_lite.machine.cards import GIB, Device
from magi_lite.models import MODELS
from magi_lite.planner import table
from magi_lite.request import presets
from magi_lite.request.checks import check_size
from magi_lite.request.defaults import own_steps
from magi_lite.request.request import GenerationRequest, Overrides
from magi_lite.timeline import Timeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the `plan` command."""
    parser.add_argument(
        "--gpu", metavar="NAME", help='a known card, for example "RTX 4090"; default: the one in this machine'
    )
    parser.add_argument(
        "--vram-gb", type=float, metavar="N", help="memory of the card, in place of what is known of it"
    )
    parser.add_argument(
        "--ram-gb", type=float, metavar="N", help="RAM of the machine; default: no limit for a named card"
    )
    parser.add_argument("--cpu", action="store_true", help="plan for the processor")
    parser.add_argument("--list-gpus", action="store_true", help="print the known cards and stop")
    parser.add_argument("--model", default=None, help=f"one of {', '.join(MODELS)}, demo, or a folder")
    parser.add_argument(
        "--size", metavar="WxH", help="pixels, multiples of 16; default: the preset's, or 720x720"
    )
    parser.add_argument("--seconds", type=int, default=4, help="length in seconds (default 4)")
    parser.add_argument("--steps", type=int, help="denoising steps; default: the preset's, or 8")
    parser.add_argument(
        "--window",
        type=int,
        choices=(1, 2, 4),
        help="seconds denoised together; default: the largest that fits",
    )
    parser.add_argument("--preset", default="auto", help="auto or the name of a preset")
    parser.add_argument("--quality", choices=presets.QUALITIES, help="quality of the preset (default balanced)")
    for name, legal in presets.LEGAL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", choices=legal, help="fix this choice of the planner")
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
    print(json.dumps(plan.to_json(), indent=2) if args.json else table.text(plan))
    return 0


def make_plan(args: argparse.Namespace) -> planner.Plan:
    """The plan that the flags ask for."""
    device = chosen_device(args)
    settings: dict[str, int] = {}
    model = args.model
    name = "demo" if args.preset == "auto" and args.model == "demo" else args.preset
    if name != "auto":
        preset = presets.load(name)
        settings = preset.quality(args.quality).settings()
        model = model or preset.model
    if args.size:
        settings["width"], settings["height"] = check_size(*parse_size(args.size))
    model = model or "4.5B-distill"
    steps = own_steps(model) if args.steps is None else args.steps
    if steps is not None:
        settings["steps"] = steps
    if args.window is not None:
        settings["window"] = args.window
    request = replace(
        GenerationRequest(timeline=Timeline()),
        model=model,
        seconds=args.seconds,
        quality=args.quality,
        overrides=replace(Overrides(**overrides_given(args)), vram_gb=None),  # which is the device's here
        **settings,
    )
    if request.seconds is not None and request.seconds < 1:
        raise InputError(f"A video lasts at least 1 second, not {request.seconds}.")
    if request.steps < 1 or request.steps % request.window:
        raise InputError(
            f"{request.steps} steps cannot be split over window {request.window}; use a multiple of {request.window}."
        )
    return planner.plan(request, args.preset, device, _shape(request.model), free_window=args.window is None)


def chosen_device(args: argparse.Namespace) -> Device:
    """The device that --gpu, --vram-gb, --ram-gb and --cpu describe, or the one in this machine."""
    if args.cpu:
        device = cards.cpu_device()
    elif args.gpu and args.vram_gb is not None:
        device = cards.with_memory(cards.known_card(args.gpu), args.vram_gb)
    elif args.gpu:
        device = cards.known_card(args.gpu)
    elif args.vram_gb is not None:
        device = cards.generic_card(args.vram_gb)
    else:
        device = devices.detect()
    return device if args.ram_gb is None else replace(device, ram_bytes=int(args.ram_gb * GIB))


def _shape(model: str) -> str | planner.ModelShape:
    """A published name as it is; the demo or a folder through the loader, which reads from disk what it is."""
    if model in MODELS:
        return model
    from magi_lite.pipeline.engine import planning_shape
    from magi_lite.weights.loader import open_model

    return planning_shape(open_model(model))
