"""Plans: what must fit fits, what is fixed stays so, refusals name what would fit, smaller plans are smaller."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magi_lite import planner
from magi_lite.cli import plan_table
from magi_lite.errors import InputError, PlanError
from magi_lite.machine import cards
from magi_lite.machine.cards import GIB
from magi_lite.models import (
    DIT_4_5B,
    FPS,
    MODELS,
    T5_XXL,
    VAE_PUBLISHED,
    ModelSpec,
    SamplerSettings,
    T5Shape,
    layer_linears,
)
from magi_lite.planner import memory, passes, shapes
from magi_lite.planner.plan import PHASES
from magi_lite.request import presets
from magi_lite.request.request import QUALITIES, Overrides
from magi_lite.sampling.schedule import Schedule
from magi_lite.timeline import Segment, Timeline
from magi_lite.weights.streaming import PinnedMemory
from quant.schemes import SCHEMES
from tests.plan.asked import SPEC, plan, request

KEYS = Path(__file__).parents[1] / "goldens" / "keys"

# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model", "scheme"),
    [("dit_4.5B_distill", "4.5B-distill", "bf16"), ("dit_4.5B_distill_quant", "4.5B-distill-fp8", "published"),
     ("dit_24B_distill", "24B-distill", "bf16")],
)  # fmt: skip
def test_bytes_are_those_of_the_true_key_lists(name: str, model: str, scheme: str) -> None:
    sizes = {"float32": 4, "bfloat16": 2, "float8_e4m3fn": 1}
    tensors = json.loads((KEYS / f"{name}.json").read_text())["tensors"]
    counted = sum(math.prod(shape) * sizes[run] for shape, _, run in tensors.values())
    spec = MODELS[model]
    planned = shapes.all_layers_bytes(spec, scheme, 2) + shapes.shell_bytes(spec, scheme)
    assert planned == pytest.approx(counted, rel=5e-4)


def test_published_sizes() -> None:
    weights = sum(linear.weights for linear in layer_linears(DIT_4_5B) if linear.quantizable) * 34
    assert 3.8e9 < weights < 3.9e9 * 34 / 32
    assert sum(shapes.vae_weights(VAE_PUBLISHED)) == 613_755_239
    assert shapes.t5_bytes(T5_XXL, "bf16") == pytest.approx(9.52e9, rel=2e-3)


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("steps", [8, 12, 16, 64])
def test_the_store_has_the_slots_that_the_schedule_needs(window: int, steps: int) -> None:
    schedule = Schedule(SamplerSettings(steps=steps, window=window), 0, None)
    planned = passes.schedules_of(request(window=window, steps=steps, seconds=None), window, SPEC)[0]
    assert passes.kv_slots(planned) == schedule.slots(50)


def test_more_pixels_and_more_window_never_take_less() -> None:
    generator = random.Random(random.randrange(10**9))
    card = cards.known_card("H200")
    for _ in range(20):
        sides = sorted(16 * generator.randint(12, 90) for _ in range(2))
        execution = generator.choice(list(planner.choose.candidates(card, SPEC, {})))
        small = planner.plan_execution(request(sides[0], sides[0]), 1, SPEC, execution, card)
        large = planner.plan_execution(request(sides[1], sides[1]), 1, SPEC, execution, card)
        assert small.peak_vram_bytes <= large.peak_vram_bytes
        assert small.seconds_per_chunk <= large.seconds_per_chunk


# --- targets ------------------------------------------------------------------------------------------------------


def test_24_gb_runs_720_with_nothing_offloaded_but_the_text_encoder() -> None:
    found = plan("RTX 4090", 720, 720, 4, overrides=Overrides(scheme="fp8"))
    execution = found.execution
    assert (execution.layers, execution.vae, execution.kv_place, execution.kv_dtype) == (
        "resident", "resident", "device", "bf16",
    )  # fmt: skip
    assert found.fits
    assert (execution.mlp_slice, execution.attention_slice) == (None, None), "memory does not ask for slices"


def test_slices_come_where_memory_needs_them() -> None:
    asked = Overrides(scheme="fp8", layers="resident", kv_place="device", vae="resident")
    found = [plan(float(size), 720, 720, 4, overrides=asked).execution for size in (24, 14, 12)]
    rows = [(one.mlp_slice or 10**6) + (one.attention_slice or 10**6) for one in found]
    assert rows == sorted(rows, reverse=True) and rows[0] > rows[-1]


@pytest.mark.parametrize(
    ("gigabytes", "size", "window", "overrides"),
    [
        (24, (1280, 720), 4, {}),
        (24, (1440, 2560), 1, {"kv_place": "pinned"}),
        (12, (720, 720), 4, {"scheme": "fp8"}),
        (8, (720, 720), 1, {"scheme": "fp8", "layers": "streamed"}),
        (8, (480, 480), 4, {}),
        (6, (480, 480), 1, {"scheme": "nf4"}),
        (6, (480, 480), 1, {"layers": "streamed"}),
    ],
)
def test_what_every_card_must_run(
    gigabytes: int, size: tuple[int, int], window: int, overrides: dict[str, str]
) -> None:
    found = plan(float(gigabytes), *size, window, overrides=Overrides(**overrides))
    assert found.window == window
    assert found.needed_vram_bytes <= 0.95 * gigabytes * GIB
    for name, value in overrides.items():
        assert getattr(found.execution, name) == value


@pytest.mark.parametrize(("kind", "limit"), [("bf16", 16), ("nf4", 10)])
def test_ram_of_a_whole_run(kind: str, limit: int) -> None:
    for gigabytes in (6.0, 8.0, 12.0, 24.0):
        overrides = Overrides(t5=kind, t5_device="cpu" if kind == "bf16" else None)
        found = plan(gigabytes, 480, 480, 1, overrides=overrides)
        assert found.execution.t5 == kind
        assert found.peak_ram_bytes <= limit * GIB


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("quality", QUALITIES)
def test_every_preset_fits_its_card_with_5_percent_to_spare(name: str, quality: str) -> None:
    preset = presets.load(name)
    chosen = preset.quality(quality)
    if preset.vram_gb:
        ada = cards.generic_card(preset.vram_gb)
        machines = [ada, replace(ada, name="Ampere", capability=(8, 6), fp8_tflops=0.0)]
    else:
        machines = [cards.cpu_device(32 * GIB)]
    model = demo_spec() if preset.model == "demo" else MODELS[preset.model]
    for machine in machines:
        found = planner.plan(replace(request(), quality=quality, **chosen.settings()), preset, machine, model)
        assert found.preset == name and found.window == chosen.window
        if preset.vram_gb:
            assert found.needed_vram_bytes <= 0.95 * preset.vram_gb * GIB
        else:
            assert found.peak_ram_bytes <= 0.95 * 32 * GIB


def demo_spec() -> ModelSpec:
    dit = replace(
        DIT_4_5B, num_layers=8, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=8, num_query_groups=4,
        head_dim=32, caption_channels=128, caption_max_length=64,
    )  # fmt: skip
    return ModelSpec("demo", dit, VAE_PUBLISHED, T5Shape(2, 128, 4, 32, 256, 512), SamplerSettings())


def test_a_small_model_plans_in_megabytes_on_the_cpu() -> None:
    found = planner.plan(request(64, 64), "auto", cards.cpu_device(16 * GIB), demo_spec())
    assert found.execution.device == "cpu" and found.execution.dtype == "float32"
    assert found.peak_vram_bytes == 0
    assert found.phase_bytes("denoise", "ram") < 4 * GIB


# --- decoding beside the steps ----------------------------------------------------------------------------------------


def test_a_card_with_room_decodes_beside_the_steps_which_then_take_both() -> None:
    found = plan("RTX 4090", 720, 720, 4)
    assert found.execution.decode_beside
    in_line = replace(found.execution, decode_beside=False)
    other = planner.plan_execution(found.request, 4, SPEC, in_line, found.device)
    (decoding,) = (i.bytes for i in other.items if i.component == "decoding")
    assert found.peak_per_phase["denoise"] == other.peak_per_phase["denoise"] + decoding
    assert found.peak_per_phase["decode"] == other.peak_per_phase["decode"]
    assert found.seconds_per_chunk < other.seconds_per_chunk
    assert found.time_to_first_chunk == other.time_to_first_chunk
    assert "decoding beside the steps" in plan_table.text(found)
    assert "decoding beside" not in plan_table.text(other)


def test_where_only_one_of_both_fits_they_take_turns() -> None:
    roomy = plan("RTX 4090", 720, 720, 4)
    fixed = {name: getattr(roomy.execution, name) for name in ("scheme", "layers", "kv_dtype", "kv_place", "vae")}
    in_line = replace(roomy.execution, decode_beside=False)
    least = planner.plan_execution(roomy.request, 4, SPEC, in_line, roomy.device).needed_vram_bytes
    tight = replace(roomy.device, free_bytes=(least + roomy.needed_vram_bytes) // 2)
    asked = replace(roomy.request, overrides=Overrides(**fixed))
    found = planner.plan(asked, "auto", tight)
    assert found.execution == in_line and found.fits


@pytest.mark.parametrize(
    ("device", "overrides", "beside"),
    [("card", {}, True), ("card", {"vae": "decoder"}, True), ("card", {"vae": "cpu"}, True),
     ("card", {"vae": "swapped"}, False), ("card", {"device": "cpu"}, False), ("cpu", {}, False)],
)  # fmt: skip
def test_where_a_second_can_be_decoded_beside_the_steps(
    device: str, overrides: dict[str, str], beside: bool
) -> None:
    machine = cards.known_card("RTX 4090") if device == "card" else cards.cpu_device()
    machine = replace(machine, ram_bytes=64 * GIB)
    found = planner.plan(request(256, 256, 1, overrides=Overrides(**overrides)), "auto", machine)
    assert found.execution.decode_beside is beside


def test_the_processor_beside_a_card_decodes_in_the_time_of_the_steps() -> None:
    found = plan("RTX 4060", 256, 256, 4, overrides=Overrides(vae="cpu"))
    in_line = replace(found.execution, decode_beside=False)
    other = planner.plan_execution(found.request, 4, SPEC, in_line, found.device)
    assert found.execution.decode_beside
    assert other.seconds_per_chunk / 2 <= found.seconds_per_chunk < other.seconds_per_chunk
    decoding = [i.phase for i in found.items if i.component == "decoding" and i.place == "ram"]
    assert sorted(decoding) == ["decode", "denoise"]


def test_after_memory_ran_out_seconds_are_decoded_between_the_steps() -> None:
    current = plan("RTX 4090", 720, 720, 4)
    for phase in ("denoise", "decode", None):
        smaller = planner.next_smaller(current, phase)
        assert smaller is not None and not smaller.execution.decode_beside


# --- reuse between steps ----------------------------------------------------------------------------------------------


def test_reuse_takes_memory_for_what_serves_again_and_says_that_times_are_of_all_steps() -> None:
    without, reused = (plan("RTX 4090", 720, 720, 4, steps=64, reuse=level) for level in ("off", "low"))
    taken = [i.bytes for p in (without, reused) for i in p.items if (i.component, i.phase) == ("latents", "denoise")]
    chunk = 16 * 6 * 90 * 90 * 4
    assert taken[1] - taken[0] == 2 * 4 * chunk
    assert reused.seconds_per_chunk == without.seconds_per_chunk
    assert any("Reuse" in note for note in reused.notes) and not any("Reuse" in note for note in without.notes)


# --- choices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("scheme", "bf16"), ("scheme", "int8"), ("scheme", "nf4"), ("layers", "streamed"), ("kv_dtype", "fp8"),
     ("kv_place", "pinned"), ("vae", "swapped"), ("vae", "cpu"), ("t5", "nf4"), ("t5_device", "cpu"),
     ("attention", "sdpa"), ("mlp_slice", 1024)],
)  # fmt: skip
def test_an_override_is_honoured(name: str, value: object) -> None:
    found = plan("RTX 4090", 480, 480, 4, overrides=Overrides(**{name: value}))
    assert getattr(found.execution, name) == value


def test_memory_by_hand_counts_and_cards_without_fp8_get_int8() -> None:
    assert plan("RTX 4090", 480, 480, 1, overrides=Overrides(vram_gb=6)).needed_vram_bytes <= 0.95 * 6 * GIB
    assert plan("RTX 3060", 720, 720, 4).execution.scheme in ("int8", "bf16")
    published = planner.plan(request(), "auto", cards.known_card("RTX 4070"), MODELS["4.5B-distill-fp8"])
    assert published.execution.scheme == "published"


def test_what_is_free_now_is_the_limit() -> None:
    card = replace(cards.known_card("RTX 4090"), free_bytes=7 * GIB)
    assert planner.plan(request(), "auto", card).needed_vram_bytes <= 7 * GIB


def test_ram_and_pinned_memory_are_limits_where_they_are_known() -> None:
    roomy = replace(cards.known_card("RTX 4050 Laptop"), ram_bytes=32 * GIB)
    found = planner.plan(request(480, 480, 1), "auto", roomy)
    assert found.pinned_bytes > 0
    tight = replace(roomy, ram_bytes=int(found.pinned_bytes / cards.PINNED_SHARE) - GIB // 2)
    other = planner.plan(request(480, 480, 1), "auto", tight)
    assert other.pinned_bytes <= cards.PINNED_SHARE * tight.ram_bytes < found.pinned_bytes
    assert other.peak_ram_bytes <= 0.95 * tight.ram_bytes
    with pytest.raises(PlanError, match="RAM"):
        planner.plan(request(480, 480, 1), "auto", replace(roomy, ram_bytes=GIB))


def test_contradictions_with_the_weights_are_refused_in_one_sentence() -> None:
    card = cards.known_card("RTX 4090")
    with pytest.raises(InputError, match="already FP8"):
        planner.plan(request(overrides=Overrides(scheme="nf4")), "auto", card, MODELS["4.5B-distill-fp8"])
    converted = replace(SPEC, stored=SCHEMES["int8"])
    assert planner.plan(request(), "auto", card, converted).execution.scheme == "int8"
    with pytest.raises(InputError, match='already INT8 and cannot become fp8; use scheme "int8"'):
        planner.plan(request(overrides=Overrides(scheme="fp8")), "auto", card, converted)
    with pytest.raises(InputError, match='use "fp8"'):
        planner.plan(request(overrides=Overrides(scheme="published")), "auto", card)


def test_nothing_at_all_fits_a_hopeless_card_and_a_free_window_is_taken_when_it_helps() -> None:
    with pytest.raises(PlanError):
        plan(0.3, 720, 720, 4)
    overrides = Overrides(
        scheme="fp8", layers="resident", kv_dtype="bf16", kv_place="pinned", vae="cpu", t5="nf4", t5_device="cpu"
    )
    roomy = cards.known_card("H200")
    needed = {}
    for window in (1, 4):
        execution = planner.plan(request(640, 640, window, overrides=overrides), "auto", roomy).execution
        least = replace(execution, mlp_slice=2048, attention_slice=2048)
        asked = request(640, 640, window, overrides=overrides)
        needed[window] = planner.plan_execution(asked, window, SPEC, least, roomy).needed_vram_bytes
    between = cards.generic_card((needed[1] + needed[4]) / 2 / 0.95 / GIB)
    with pytest.raises(PlanError) as caught:
        planner.plan(request(640, 640, 4, overrides=overrides), "auto", between)
    assert any("window" in choice for choice in caught.value.choices)
    found = planner.plan(request(640, 640, 4, overrides=overrides), "auto", between, free_window=True)
    assert found.window < 4 and any("Window" in note for note in found.notes)


@pytest.mark.parametrize("card", [24.0, 12.0, 8.0, 6.0])
def test_each_smaller_plan_is_smaller_until_there_is_none(card: float) -> None:
    current = plan(card, 480, 480, 1, overrides=Overrides(kv_dtype="bf16"))
    for _ in range(40):
        smaller = planner.next_smaller(current)
        if smaller is None:
            break
        for phase in ("denoise", "decode"):
            before = max(current.peak_per_phase[s] for s in ("denoise", "decode"))
            assert smaller.peak_per_phase[phase] <= 0.9 * before
        assert smaller.peak_per_phase["text"] <= current.peak_per_phase["text"]
        assert (smaller.window, smaller.request) == (current.window, current.request)
        assert smaller.execution.kv_dtype == "bf16", "what the user fixed stays"
        current = smaller
    else:
        raise AssertionError("smaller plans never end")
    assert current.execution.layers == "streamed"


def test_memory_that_ran_out_while_encoding_text_changes_the_text_encoder_only() -> None:
    current = plan(24.0, 480, 480, 1)
    seen = [(current.execution.t5_device, current.execution.t5)]
    while (smaller := planner.next_smaller(current, "text")) is not None:
        assert smaller.peak_per_phase["text"] < current.peak_per_phase["text"]
        assert replace(smaller.execution, t5="bf16", t5_device="cuda") == replace(
            current.execution, t5="bf16", t5_device="cuda"
        )
        current = smaller
        seen.append((current.execution.t5_device, current.execution.t5))
    assert seen == [("cuda", "bf16"), ("cuda", "int8"), ("cuda", "nf4"), ("cpu", "nf4")]


@pytest.mark.parametrize("phase", ["encode", "denoise", "decode"])
def test_where_memory_ran_out_there_the_smaller_plan_is_smaller(phase: planner.Phase) -> None:
    current = plan(24.0, 720, 720, 4, video=Path("clip.mp4"), overrides=Overrides(attention="sdpa", kv_dtype="bf16"))
    steps = 0
    while (smaller := planner.next_smaller(current, phase)) is not None:
        assert smaller.peak_per_phase[phase] <= 0.9 * current.peak_per_phase[phase]
        assert max(smaller.peak_per_phase[s] for s in ("encode", "denoise", "decode")) <= current.peak_vram_bytes
        assert (smaller.execution.attention, smaller.execution.kv_dtype) == ("sdpa", "bf16"), "fixed"
        assert smaller.execution.t5 == current.execution.t5
        current, steps = smaller, steps + 1
    assert steps >= 2


def test_encoding_is_a_phase_only_where_something_is_encoded() -> None:
    without, image, clip = (plan(12.0, 480, 480, 1, **x) for x in ({}, {"image": Path("a")}, {"video": Path("b")}))
    assert without.phases == ("text", "denoise", "decode") and without.peak_per_phase["encode"] == 0
    assert image.phases == clip.phases == PHASES
    assert 0 < image.peak_per_phase["encode"] < clip.peak_per_phase["encode"] < clip.peak_per_phase["denoise"]
    assert "encoding" in plan_table.text(clip)
    assert "encoding" not in plan_table.text(without)


def test_the_clip_that_is_counted_is_the_one_that_is_read() -> None:
    """And the model decides how much that is."""
    for ranges in ((5, 4, 3, 2), (9, 7, 5, 3), (2, 2)):
        model = replace(SPEC, sampler=replace(SPEC.sampler, noise_to_clean_ranges=ranges))
        clip = request(video=Path("clip.mp4"))
        assert memory.clip_frames(clip, model) == (ranges[0] - 1) * FPS == model.sampler.prefix_reach * FPS


def test_pinned_memory_is_counted_in_the_blocks_that_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `PinnedMemory` asks torch for when the plan's buffers are taken in the program's order."""
    blocks: list[int] = []

    def empty(size: int, *, pin_memory: bool = False, **_: object) -> torch.Tensor:
        blocks.append(size)
        return torch.zeros(1, dtype=torch.uint8).expand(size)

    overrides = Overrides(layers="streamed", vae="swapped", kv_place="pinned", kv_dtype="bf16")
    found = plan(24.0, 1280, 720, 4, overrides=overrides)
    pinned = {i.component: i.bytes for i in found.items if (i.phase, i.place) == ("denoise", "pinned")}
    host, sizes = PinnedMemory(pin=True), shapes.layer_sizes(found.model, found.execution.scheme, 2)
    assert sum(sizes) == pinned["DiT layers"]
    monkeypatch.setattr(torch, "empty", empty)
    for group in (sizes, [pinned["VAE decoder"]], [pinned["keys and values"] // 34] * 34):
        host.expect(group)
        for size in group:
            host.take(size)
    assert all(block & (block - 1) == 0 for block in blocks)
    assert found.phase_bytes("denoise", "pinned") == sum(blocks) == found.pinned_bytes
    assert pinned["rounding of pinned memory"] < 0.25 * sum(blocks)


def test_captions_are_counted_by_their_words() -> None:
    short = request(timeline=Timeline((Segment(0, 4, "a cat"),)))
    long = request(timeline=Timeline((Segment(0, 4, "a cat walks. " * 200),)))
    model = SPEC
    assert memory.caption_tokens(short, model) == 50
    assert memory.caption_tokens(long, model) == 800
