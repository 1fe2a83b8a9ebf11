"""Bytes of everything a run holds, phase by phase: weights, keys and values, captions, activations, frames.

Phases: `text` (only the text encoder is loaded), `encode` (the picture or clip that the video continues, if there is
one; the DiT is loaded and idle), `denoise` and `decode` (which alternate for every chunk, the DiT staying where it is).
Where a chunk is decoded beside the next one's steps, denoising takes what decoding takes as well.
A clean chunk and the nearly clean copy are forwards of their own with one chunk, so the pass over the window sets the
peak.
"""

from __future__ import annotations

from collections.abc import Callable

from magi_lite.models import FRAMES_PER_LATENT, NULL_CAPTION_TOKENS, ModelSpec
from magi_lite.planner import shapes
from magi_lite.planner.activations import (
    PassShape,
    decode_activation_bytes,
    dit_activation_bytes,
    encode_activation_bytes,
    item_size,
    latent_bytes,
    rotary_bytes,
    text_activation_bytes,
)
from magi_lite.planner.execution import Execution
from magi_lite.planner.passes import WindowPass, distinct_schedules, kv_slots, prefix_chunks, window_passes
from magi_lite.planner.pinned import pinned_bytes
from magi_lite.planner.plan import Item, Phase, Place
from magi_lite.planner.speed import kv_bytes_per_token, tokens_per_chunk
from magi_lite.request.request import GenerationRequest

PROCESS_BYTES = {"cuda": 1600 << 20, "cpu": 700 << 20}
"""RAM of the program itself with torch loaded (and, on a card, CUDA's host side)."""
STREAM_BUFFERS = 2
"""Device buffers of a streamed DiT: the layer at work and the one being copied."""
KV_PREFETCH_BUFFERS = 2
"""Device buffers of a pinned KV store: the layer at work and the one being copied."""
BUSY: tuple[Phase, ...] = ("denoise", "decode")


def caption_tokens(request: GenerationRequest, model: ModelSpec) -> int:
    """Tokens to allow for in the longest caption: one for every two bytes of its prompt, and the special tokens."""
    timeline = request.timeline
    prompts = [segment.prompt for segment in timeline.segments]
    if not prompts:
        return model.dit.caption_max_length
    longest = max(len((timeline.global_prompt + " " + prompt).encode()) for prompt in prompts)
    return min(model.dit.caption_max_length, max(50, 10 + longest // 2))


Add = Callable[[str, tuple[Phase, ...], Place, int], None]
"""Adds (component, phases, place, bytes) to the items."""


def items_of(
    request: GenerationRequest, window: int, model: ModelSpec, execution: Execution
) -> tuple[Item, ...]:
    """Every item of a run, zero-sized ones left out."""
    cuda = execution.device == "cuda"
    items: list[Item] = []

    def add(component: str, phases: tuple[Phase, ...], place: Place, size: int) -> None:
        if not cuda:
            place = "ram"
        if size > 0:
            items.extend(Item(component, phase, place, int(size)) for phase in phases)

    add("program", ("text", *loaded_phases(request)), "ram", PROCESS_BYTES[execution.device])
    _add_text(add, request, model, execution)
    _add_dit(add, request, model, execution)
    _add_captions_and_kv(add, request, window, model, execution)
    _add_vae(add, request, model, execution)
    dit, tokens = model.dit, tokens_per_chunk(model, request.width, request.height)
    schedules = [schedule for schedule, _ in distinct_schedules(request, window, model)]
    chunk_shape = (dit.latent_channels, model.sampler.chunk_width)
    latents = latent_bytes(chunk_shape, request.width, request.height, window, max(map(kv_slots, schedules)))
    if request.reuse != "off":  # the last velocities, and a copy
        latents += latent_bytes(chunk_shape, request.width, request.height, 0, 2 * window)
    add("latents", BUSY, "vram", latents)
    add("rotary tables", BUSY, "vram", rotary_bytes(dit, tokens, window))
    passes = frozenset[WindowPass]().union(*map(window_passes, schedules))
    worst = max(dit_activation_bytes(dit, tokens, reads, execution) for reads in passes)
    add("activations", ("denoise",), "vram", worst)
    for phase in loaded_phases(request) if cuda else ():
        pinned = sum(item.bytes for item in items if (item.phase, item.place) == (phase, "pinned"))
        blocks = pinned_bytes(_pinned_buffers(request, window, model, execution, phase))
        add("rounding of pinned memory", (phase,), "pinned", blocks - pinned)
    return tuple(items)


def loaded_phases(request: GenerationRequest) -> tuple[Phase, ...]:
    """The phases in which transformer and autoencoder are there."""
    return ("encode", *BUSY) if request.video is not None or _pictured(request) else BUSY


def _pictured(request: GenerationRequest) -> bool:
    """Whether a shot starts from a picture."""
    return request.image is not None or any(shot.image for shot in request.timeline.shots(request.seconds))


def clip_frames(request: GenerationRequest, model: ModelSpec) -> int:
    """Frames to encode at once before a shot's first second."""
    return prefix_chunks(request, model.sampler) * frames_per_chunk(model) or int(_pictured(request))


def frames_per_chunk(model: ModelSpec) -> int:
    """Video frames of a chunk."""
    return model.sampler.chunk_width * FRAMES_PER_LATENT


def _pinned_buffers(
    request: GenerationRequest, window: int, model: ModelSpec, execution: Execution, phase: Phase
) -> list[list[int]]:
    """Sizes of the buffers cut from pinned blocks, in the order and the groups in which the program asks for them."""
    dit, size, groups = model.dit, item_size(execution), []
    if execution.layers == "streamed":
        groups.append(list(shapes.layer_sizes(model, execution.scheme, size)))
    if execution.vae == "swapped":
        groups.append([shapes.vae_weights(model.vae)[1] * size])
    if execution.kv_place == "pinned" and phase != "encode":
        groups.append([_store_bytes(request, window, model, execution) // dit.num_layers] * dit.num_layers)
    return groups


def _store_bytes(request: GenerationRequest, window: int, model: ModelSpec, execution: Execution) -> int:
    """Keys and values of all slots and layers."""
    tokens = tokens_per_chunk(model, request.width, request.height)
    slots = max(kv_slots(schedule) for schedule, _ in distinct_schedules(request, window, model))
    return slots * tokens * kv_bytes_per_token(model.dit, execution)


def _add_text(add: Add, request: GenerationRequest, model: ModelSpec, execution: Execution) -> None:
    place: Place = "vram" if execution.t5_device == "cuda" else "ram"
    add("text encoder", ("text",), place, shapes.t5_bytes(model.t5, execution.t5))
    add(
        "text activations",
        ("text",),
        place,
        text_activation_bytes(model.t5, caption_tokens(request, model), execution),
    )


def _add_dit(add: Add, request: GenerationRequest, model: ModelSpec, execution: Execution) -> None:
    dit, size, busy = model.dit, item_size(execution), loaded_phases(request)
    add("DiT shell", busy, "vram", shapes.shell_bytes(model, execution.scheme))
    layers = shapes.layer_sizes(model, execution.scheme, size)
    if execution.layers == "resident":
        add("DiT layers", busy, "vram", sum(layers))
        return
    add("DiT layers", busy, "pinned", sum(layers))
    add("layer buffers", BUSY, "vram", min(STREAM_BUFFERS, dit.num_layers) * max(layers))


def _add_captions_and_kv(
    add: Add, request: GenerationRequest, window: int, model: ModelSpec, execution: Execution
) -> None:
    dit, size, busy = model.dit, item_size(execution), BUSY
    per_token = 2 * dit.num_query_groups * dit.head_dim * size * dit.num_layers
    tokens = tokens_per_chunk(model, request.width, request.height)
    # Captions of one length are attended in one batch, a second copy, where the pass is one piece.
    one_batch = window > 1 and not PassShape.of(tokens, window, execution).attention_sliced
    copies = 1 if not one_batch else 2 if request.reuse == "off" else 3  # the last one is of the oldest chunks alone
    held = caption_tokens(request, model) * window * copies
    add("captions", busy, "vram", (held + min(NULL_CAPTION_TOKENS, dit.caption_max_length)) * per_token)
    store = _store_bytes(request, window, model, execution)
    if execution.kv_place == "device":
        add("keys and values", busy, "vram", store)
        return
    add("keys and values", busy, "pinned", store)
    add("key and value buffers", busy, "vram", KV_PREFETCH_BUFFERS * store // dit.num_layers)


def _add_vae(add: Add, request: GenerationRequest, model: ModelSpec, execution: Execution) -> None:
    encoder, decoder = (weights * item_size(execution) for weights in shapes.vae_weights(model.vae))
    busy, frames = loaded_phases(request), clip_frames(request, model)
    if execution.vae == "resident":
        add("VAE", busy, "vram", encoder + decoder)
    elif execution.vae == "cpu":
        add("VAE", busy, "ram", encoder + decoder)
    else:
        add("VAE encoder", busy, "ram", encoder)
        if execution.vae == "decoder":
            add("VAE decoder", busy, "vram", decoder)
        else:
            add("VAE decoder", busy, "pinned", decoder)
            add("VAE decoder", ("decode",), "vram", decoder)
        if frames:
            add("VAE encoder", ("encode",), "vram", encoder)
    place: Place = "ram" if execution.vae == "cpu" else "vram"
    if frames:
        tiles = encode_activation_bytes(model.vae, request.width, request.height, frames, execution)
        add("encoding", ("encode",), place, tiles)
        add("frames", ("encode",), "ram", 2 * frames * request.width * request.height * 3)
    add(
        "decoding",
        BUSY if execution.decode_beside else ("decode",),
        place,
        decode_activation_bytes(model.vae, request.width, request.height, execution),
    )
    # As decoded and as encoded; on a card a second is still being written while the next one is decoded.
    copies = 3 if execution.device == "cuda" else 2
    add("frames", BUSY, "ram", copies * frames_per_chunk(model) * request.width * request.height * 3)
