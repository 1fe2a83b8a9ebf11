"""The plan counts what sampler and loader do: compared with both on random configurations, with tiny models."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from magi_lite.dit.model import DiT
from magi_lite.models import VAE_PUBLISHED, Guidance, ModelSpec, SamplerSettings, T5Shape, layer_linears, linear_name
from magi_lite.planner import passes, shapes
from magi_lite.planner.activations import QUANT_SLICE_BYTES
from magi_lite.planner.execution import Execution
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.results import Caption, CleanChunk
from magi_lite.sampling.sampler import Sampler
from magi_lite.timeline.text import parse
from magi_lite.weights.demo import random_weights
from magi_lite.weights.loader import load_dit_weights
from quant import QuantizedLinear, convert_, convert_folder, read_manifest, scheme_named
from quant.kinds import SLICE_VALUES
from quant.schemes import SCHEMES, Fp8, Int8, Published, Scheme, detect, quantized_names
from quant.select import Selection
from quant.storage.shards import Checkpoint
from tests.plan.asked import request
from tests.sampling.conftest import CONFIG as TINY

T5 = T5Shape(1, 12, 1, 12, 12, 8)


def spec_of(config: Any = TINY, sampler: SamplerSettings | None = None, **changes: Any) -> ModelSpec:
    return ModelSpec("tiny", config, VAE_PUBLISHED, T5, sampler or SamplerSettings(), **changes)


# --- sampler ----------------------------------------------------------------------------------------------------------


class Watched(KVRing):
    """A KV store that remembers how large it was and which ranges were read."""

    slots_seen: list[int]
    reads: list[tuple[int, int]]

    def __init__(self, slots: int, log: dict[str, Any]) -> None:
        super().__init__(slots)
        log["slots"].append(slots)
        self._log = log

    def read(self, layer: int, first: int, last: int) -> Any:
        if layer == 0:
            self._log["reads"][-1].append((first, last))
        return super().read(layer, first, last)


def random_settings(generator: random.Random) -> SamplerSettings:
    steps, window = generator.choice([(8, 1), (8, 2), (8, 4), (4, 1), (4, 4), (16, 2), (12, 4), (12, 1)])
    count = generator.choice([1, 2, 4])
    ranges = tuple(sorted((generator.randint(1, 9) for _ in range(count)), reverse=generator.random() < 0.8))
    settings = SamplerSettings(steps, window, noise_to_clean_ranges=ranges)
    if generator.random() < 0.3:
        return replace(settings, distilled=False, guidance=Guidance(), nearly_clean=False)
    return settings


@torch.no_grad()
def run(settings: SamplerSettings, seconds: int, prefix: int) -> dict[str, Any]:
    """What the sampler really does: slots of its stores, ranges read by each pass, chunks of each forward."""
    torch.manual_seed(0)
    dit = DiT(TINY).requires_grad_(False)
    log: dict[str, Any] = {"slots": [], "reads": [], "forwards": [], "first": None}

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        log["reads"].append([])
        log["forwards"].append(args[1].shape[1])

    dit.register_forward_pre_hook(watch, with_kwargs=True)
    words = Caption(torch.randn(3, TINY.caption_channels))
    sampler = Sampler(
        dit, settings, latent_size=(2, 2), chunks=seconds, caption=lambda *_: words, null_caption=words,
        prefix=torch.randn(1, 4, 6 * prefix, 2, 2) if prefix else None, store_factory=lambda n: Watched(n, log),
    )  # fmt: skip
    for event in sampler.run():
        if isinstance(event, CleanChunk) and log["first"] is None:
            log["first"] = len(log["forwards"])
    return log


@pytest.mark.parametrize("seed", range(24))
def test_slots_reads_and_forwards_are_those_of_the_sampler(seed: int) -> None:
    generator = random.Random(seed if seed < 12 else random.randrange(10**9))
    settings = random_settings(generator)
    clip = generator.random() < 0.4
    seconds = generator.randint(1, 13)
    asked = request(
        window=settings.window, steps=settings.steps, seconds=seconds, video=Path("clip.mp4") if clip else None
    )
    schedule = passes.schedules_of(asked, settings.window, spec_of(sampler=settings))[0]
    assert schedule.offset == (settings.prefix_reach if clip else 0)
    done = run(settings, seconds, schedule.offset)
    assert passes.kv_slots(schedule) == max(done["slots"]), settings
    past = starts = 0
    for reads in done["reads"]:
        firsts = {first for first, _ in reads}
        past = max([past, *(last - first for first, last in reads)])
        starts = max(starts, len(firsts))
    planned = passes.window_passes(schedule)
    assert max(one.past for one in planned) == past, settings
    assert max(one.starts for one in planned) == starts, settings
    assert max(one.chunks for one in planned) == max(done["forwards"])
    first = sum(work.chunks * work.times for work in passes.work_to_first_second(schedule))
    assert first == sum(done["forwards"][: done["first"]]), settings


@pytest.mark.parametrize("seed", range(12))
def test_a_video_with_cuts_takes_what_its_shots_take(seed: int) -> None:
    """Memory as in the shot that needs most, and the forwards of all: each fills and empties its window."""
    generator = random.Random(seed if seed < 6 else random.randrange(10**9))
    settings = random_settings(generator)
    lengths = [generator.randint(1, 21) for _ in range(generator.randint(2, 4))]
    ends = list(accumulate(lengths))
    text = "".join(f"[{end - length}s-{end}s cut: a]" for end, length in zip(ends, lengths, strict=True))
    clip = Path("clip.mp4") if generator.random() < 0.3 else None
    asked = request(window=settings.window, steps=settings.steps, seconds=ends[-1], video=clip, timeline=parse(text))
    schedules = passes.schedules_of(asked, settings.window, spec_of(sampler=settings))
    done = [run(settings, length, one.offset) for length, one in zip(lengths, schedules, strict=True)]
    assert max(map(passes.kv_slots, schedules)) == max(max(one["slots"]) for one in done), settings
    forwards = sum(sum(one["forwards"]) for one in done) - schedules[0].offset  # the clip's own clean passes
    planned = passes.work_of_shots(passes.distinct_schedules(asked, settings.window, spec_of(sampler=settings)))
    assert sum(work.chunks * work.times for work in planned) * ends[-1] == pytest.approx(forwards), settings
    calls = sum(len(one["forwards"]) for one in done) - schedules[0].offset
    assert sum(work.times for work in planned) * ends[-1] == pytest.approx(calls), settings
    plain = replace(asked, timeline=parse("[0s-1s: a]"))
    whole = passes.distinct_schedules(plain, settings.window, spec_of(sampler=settings))
    assert len(whole) == 1 and passes.work_of_shots(whole) == passes.work_per_second(whole[0][0])


def test_a_model_with_long_ranges_needs_its_own_slots() -> None:
    settings = SamplerSettings(noise_to_clean_ranges=(9, 7, 5, 3))
    schedule = passes.schedules_of(request(window=1, seconds=None), 1, spec_of(sampler=settings))[0]
    assert passes.kv_slots(schedule) == 8


@pytest.mark.parametrize("seed", range(8))
def test_a_second_takes_its_steps_the_nearly_clean_copies_and_a_clean_pass(seed: int) -> None:
    settings = replace(random_settings(random.Random(seed)), guidance=None, distilled=True, nearly_clean=True)
    asked = request(window=settings.window, steps=settings.steps, seconds=40)
    schedule = passes.schedules_of(asked, settings.window, spec_of(sampler=settings))[0]
    planned = sum(work.chunks * work.times for work in passes.work_per_second(schedule))
    copies = sum(t > settings.nearly_clean_threshold for t in schedule.grid[:-1])
    assert planned == settings.steps + copies + 1


def test_temporaries_of_quantization_are_those_of_the_plain_path() -> None:
    assert QUANT_SLICE_BYTES == 4 * SLICE_VALUES


# --- loader -----------------------------------------------------------------------------------------------------------

GATED = replace(TINY, num_layers=4, hidden_size=64, ffn_hidden_size=96, head_dim=16, gated_linear_unit=True,
                half_channel_vae=True, in_channels=8, out_channels=8, caption_channels=16)  # fmt: skip
SHALLOW = replace(TINY, num_layers=2, hidden_size=64, ffn_hidden_size=64)
DEEP = replace(TINY, num_layers=5, hidden_size=128, ffn_hidden_size=192, num_attention_heads=8, head_dim=16)
CONFIGS = {"gated": GATED, "deep": DEEP}


def loaded_bytes(model: nn.Module) -> tuple[list[int], int]:
    """Bytes of each layer, and of everything outside the layers, as they lie in memory."""
    layers = list(model.videodit_blocks.layers)  # type: ignore[union-attr,arg-type]
    sizes = [sum(t.numel() * t.element_size() for t in layer.state_dict().values()) for layer in layers]
    return sizes, sum(t.numel() * t.element_size() for t in model.state_dict().values()) - sum(sizes)


def write(folder: Path, config: Any) -> Path:
    folder.mkdir()
    state = {name: tensor.to(torch.bfloat16) for name, tensor in random_weights(DiT(config)).items()}
    save_file(state, folder / "model.safetensors")
    return folder


def check(folder: Path, config: Any, execution: Execution) -> DiT:
    """The planner's bytes of the model that this folder holds, against those of the loaded one."""
    names, manifest = frozenset(Checkpoint.open(folder).tensors), read_manifest(folder)
    stored = detect(names) if manifest is None else manifest.scheme
    linears = None if stored is None else quantized_names(names)
    spec = spec_of(config, stored=stored, stored_linears=linears)
    model = load_dit_weights(folder, config, execution)
    layers, shell = loaded_bytes(model)
    size = 2 if execution.dtype == "bfloat16" else 4
    assert list(shapes.layer_sizes(spec, execution.scheme, size)) == layers
    assert shapes.shell_bytes(spec, execution.scheme) == shell
    quantized = {name for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    every = {linear_name(layer, one) for layer in range(config.num_layers) for one in layer_linears(config)}
    every |= {linear.name for linear in shapes.shell_linears(config)}
    wanted = {name for name in every if spec.quantizes(name)} if execution.scheme in SCHEMES else set()
    assert quantized == wanted
    return model


DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["plain", "fp8", "int8", "nf4"])
def test_planned_bytes_are_loaded_bytes(config: str, dtype: str, scheme: str, tmp_path: Path) -> None:
    plain = "bf16" if dtype == "bfloat16" else "float32"
    execution = Execution(dtype=dtype, scheme=plain if scheme == "plain" else scheme)  # type: ignore[arg-type]
    model = check(write(tmp_path / "weights", CONFIGS[config]), CONFIGS[config], execution)
    assert model.config == CONFIGS[config]


def test_a_model_of_two_layers_has_nothing_to_quantize(tmp_path: Path) -> None:
    folder = write(tmp_path / "weights", SHALLOW)
    execution = Execution(scheme="int8")
    assert loaded_bytes(load_dit_weights(folder, SHALLOW, execution))[0] == list(
        shapes.layer_sizes(spec_of(SHALLOW), "int8", 4)
    )


SELECTIONS: dict[str, tuple[Scheme, Selection]] = {
    "every layer": (Int8(), Selection(keep_first_and_last=False)),
    "only the MLP": (Fp8(), Selection(include=r"mlp\.linear_fc")),
    "one scale a tensor": (Fp8(granularity="tensor"), Selection()),
    "embedders too": (Int8(), Selection(exclude="norm")),
    "captions too": (scheme_named("nf4"), Selection(exclude="embed|norm|ada_|final")),
}


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_folder_that_was_converted_otherwise_is_planned_as_it_is(kind: str, tmp_path: Path) -> None:
    scheme, selection = SELECTIONS[kind]
    folder = write(tmp_path / "weights", DEEP)
    convert_folder(folder, tmp_path / "converted", scheme, selection)
    check(tmp_path / "converted", DEEP, Execution(scheme=scheme.name, dtype="bfloat16"))


def test_published_fp8_weights_are_planned_as_they_are(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = DiT(DEEP)
    convert_(model, Published(), spec_of(DEEP, stored=Published()).quantizes)
    tensors = {}
    for name, tensor in model.state_dict().items():
        made = torch.full(tensor.shape, 0.01)
        tensors[name] = made.to(tensor.dtype if tensor.dtype != torch.float32 or "scale" in name else torch.bfloat16)
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / "weights" / "model.safetensors")
    for dtype in DTYPES:
        check(tmp_path / "weights", DEEP, Execution(scheme="published", dtype=dtype))  # type: ignore[arg-type]


