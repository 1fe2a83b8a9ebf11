"""Attention kernels behind one signature, and the choice between them.

Every kernel takes queries (N, S, heads, head_dim) and keys, values (N, L, groups, head_dim), heads a multiple of
groups, query head h reading group h // (heads / groups); everything sees everything (ranges are cut before the call),
scale head_dim ** -0.5; output like the queries. Which kernel serves is chosen once, by `choose`, and shown by its name.

On a card torch's attention has a formula behind its fused kernels, which writes out every score: hundreds of gigabytes
for a window. Nothing here comes to it unasked: `serves` asks torch first, what no fused kernel takes as it is goes
group by group or in float16, and what none takes at all is computed in slices of bounded size (`plain`), with a notice.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from magi_lite import attention_trial
from magi_lite.attention_choice import OWN, PACKAGED, PLAIN, SCORE_BYTES, SHARED, Trial, fastest, question
from magi_lite.attention_shared import CAPABILITIES, HEAD_SIZES, Reach, Reader, Sage, Share, by_whole
from magi_lite.errors import InputError
from magi_lite.machine import devices, findings

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
HALF = (torch.bfloat16, torch.float16)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """An attention kernel and the name under which it is shown."""

    name: str
    kernel: Kernel
    notice: str = ""
    """Which better kernels are installed here and cannot be used, and why; empty: none."""
    speedup: float | None = None
    """How many times as fast as PyTorch's own it was in its trial; None: not measured."""
    share: Share | None = None
    """Does what a kernel does with keys and values before it attends, once for several ranges; None: at every call."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.kernel(query, key, value)

    def readers(self, reaches: Sequence[Reach]) -> list[Reader]:
        """For each range what attends to it, its keys and values made ready."""
        if self.share is not None:
            return self.share(reaches)
        return [by_range(self.kernel, reach) for reach in reaches]


def by_range(kernel: Kernel, reach: Reach) -> Reader:
    """A kernel's call on a range."""
    key, value = reach.seen
    return lambda query: kernel(query, key, value)


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own kernels; keys and values of a group are not expanded to its heads."""
    return _attend(query, key, value, None)


SDPA = Backend(OWN, sdpa)


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As `sdpa`, by torch's plain formula, a few queries of a group at a time: `SCORE_BYTES` of scores at most."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return by_group(q, k, v, attend=in_slices).transpose(1, 2)


def masked_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As `sdpa`, where rows have different numbers of keys: mask (N, L), True where there is one."""
    return _attend(query, key, value, mask[:, None, None])


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if q.shape[1] == k.shape[1]:
        return fused(q, k, v, mask).transpose(1, 2)
    if reads_groups(q, mask):
        return fused(q, k, v, mask, enable_gqa=True).transpose(1, 2)
    return by_group(q, k, v, mask).transpose(1, 2)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, enable_gqa: bool = False) -> Tensor:
    """torch's attention, tensors (N, heads, S, head_dim), without cuDNN from the moment that cuDNN refuses a shape.

    On H100 and its kin torch prefers cuDNN, which is fast there, and raises where cuDNN has no plan for the sizes at
    hand instead of going on to its own kernels. Cards before Ampere have a fused kernel for float16 but none for
    bfloat16: there it is computed in float16.

    Args:
        mask: (N, 1, 1, L), True where there is a key; None: everywhere.
    """
    if not serves(q, k, v, mask, enable_gqa=enable_gqa):
        if enable_gqa:
            return by_group(q, k, v, mask)
        if q.dtype == torch.bfloat16:
            as_half = (q.to(torch.float16), k.to(torch.float16), v.to(torch.float16))
            if serves(*as_half, mask):
                return fused(*as_half, mask).to(q.dtype)
        if mask is None and (found := _by_cudnn(q, k, v)) is not None:
            return found
        _say_once(f"Attention of {q.dtype} numbers, {q.shape[-1]} to a head: {UNFUSED}.")
        return in_slices(q, k, v, mask)
    try:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=enable_gqa)
    except RuntimeError as error:
        text = str(error).lower()
        of_cudnn = "cudnn" in text or "mha_graph" in text
        if not of_cudnn or devices.is_out_of_memory(error) or not torch.backends.cuda.cudnn_sdp_enabled():
            raise
        _log.warning("cuDNN's attention is not used any more: %s", error)
    torch.backends.cuda.enable_cudnn_sdp(False)
    return fused(q, k, v, mask, enable_gqa=enable_gqa)


UNFUSED = (
    "no fused kernel of this PyTorch serves it on this card, so the plain formula does, in slices, many times slower"
)
MATH = 0
"""torch's number of the plain formula (`torch.nn.attention.SDPBackend`)."""
MOST_ANSWERS = 4096
_answers: dict[tuple[object, ...], bool] = {}


def serves(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, enable_gqa: bool = False) -> bool:
    """Whether torch would take a fused kernel for these tensors, and not its plain formula; True off CUDA.

    torch's own choice, asked once for each outline: it hangs on types, sizes, strides and the card.
    """
    if not q.is_cuda or isinstance(q, torch._subclasses.FakeTensor):
        return True
    with_cudnn, training = torch.backends.cuda.cudnn_sdp_enabled(), torch.is_grad_enabled()
    outlines = tuple((x.shape, x.stride()) for x in (q, k, v))
    asked = (outlines, q.dtype, q.device, mask is None, enable_gqa, with_cudnn, training)
    if asked not in _answers:
        if len(_answers) >= MOST_ANSWERS:
            _answers.clear()
        _answers[asked] = _choice(q, k, v, mask, enable_gqa) != MATH
    return _answers[asked]


def _choice(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, enable_gqa: bool) -> int | None:
    """The number of the kernel that torch would take; None: it does not say, and may raise when it is called."""
    try:
        return torch._fused_sdp_choice(q, k, v, mask, 0.0, False, scale=None, enable_gqa=enable_gqa)
    except (AttributeError, RuntimeError, TypeError):
        return None


_refused: set[tuple[torch.Size, torch.Size]] = set()
"""Sizes of queries and keys that cuDNN refused when it was asked behind torch's back."""


def _by_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """cuDNN's answer where it has one: but on Hopper and later torch would rather take its formula."""
    asked = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    if (q.shape, k.shape) in _refused or not torch.backends.cuda.can_use_cudnn_attention(asked):
        return None
    try:
        output: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0]
    except RuntimeError as error:
        if devices.is_out_of_memory(error):
            raise
        _refused.add((q.shape, k.shape))
        return None
    return output


def in_slices(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `fused`, by torch's formula for so many queries at a time that their scores take `SCORE_BYTES` at most."""
    rows = max(1, SCORE_BYTES // (4 * q.shape[0] * q.shape[1] * k.shape[2]))
    slices = [F.scaled_dot_product_attention(part, k, v, attn_mask=mask) for part in q.split(rows, dim=2)]
    return torch.cat(slices, dim=2)


@lru_cache
def _say_once(sentence: str) -> None:
    _log.warning(sentence)


def reads_groups(query: Tensor, mask: Tensor | None = None) -> bool:
    """Whether torch has a fused kernel here that reads grouped keys as they are.

    On CUDA only the flash kernel does (half precision, compute capability 8.0, no mask). Asked for groups anyway, torch
    silently takes the plain formula, and its matrix of scores is larger than any card.
    """
    if not query.is_cuda:
        return True
    built = getattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)()
    return mask is None and query.dtype in HALF and built and devices.capability(query.device.index) >= (8, 0)


def by_group(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, attend: Callable[..., Tensor] = fused
) -> Tensor:
    """Group by group, so that kernels which know no groups serve: keys and values are expanded as views, not copied.

    q (N, heads, S, head_dim), k and v (N, groups, L, head_dim), mask (N, 1, 1, L) or None; output like q. Cards before
    Ampere have a fused kernel for float16 but none for bfloat16: there each group is computed in float16.
    """
    share = q.shape[1] // k.shape[1]
    old_card = q.is_cuda and q.dtype == torch.bfloat16 and devices.capability(q.device.index) < (8, 0)
    kind = torch.float16 if old_card else q.dtype
    parts = []
    for group in range(k.shape[1]):
        one, expanded = slice(group, group + 1), (-1, share, -1, -1)
        keys, values = (x[:, one].to(kind).expand(expanded) for x in (k, v))
        queries = q[:, group * share : (group + 1) * share].to(kind)
        parts.append(attend(queries, keys, values, mask).to(q.dtype))
    return torch.cat(parts, dim=1)


SHORT_KEYS = 1024
"""Keys below which SageAttention's own quantization costs more than it saves: captions, but no chunk from 256x256."""


def _cudnn() -> Kernel:
    """cuDNN's kernel, which reads grouped keys as they are: the only one on Windows, whose wheels have no flash kernel.

    It is called by its own name: to ask `scaled_dot_product_attention` for it means setting flags of the whole process,
    which a thread that decodes meanwhile would meet. Sizes that it has no plan for go to PyTorch's own kernels.
    """
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Tensor = attend(*(x.transpose(1, 2) for x in (query, key, value)), None, False)[0]
        return output.transpose(1, 2)

    return _where_it_serves("cudnn", kernel)


def _where_it_serves(name: str, kernel: Kernel) -> Kernel:
    """The kernel, and PyTorch's own for sizes that it refuses though its trial went well: no run is lost for that."""
    refused: set[tuple[torch.Size, torch.Size]] = set()

    def careful(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sizes = (query.shape, key.shape)
        if sizes not in refused:
            try:
                return kernel(query, key, value)
            except (RuntimeError, ValueError, AssertionError) as error:
                if devices.is_out_of_memory(error):
                    raise
                _log.warning("The attention kernel %s does not serve %s: %s", name, sizes, error)
                refused.add(sizes)
        return sdpa(query, key, value)

    return careful


def _flash() -> Kernel:
    flash_attn_func = importlib.import_module("flash_attn").flash_attn_func
    return lambda query, key, value: flash_attn_func(query, key, value)


def _sage() -> Kernel:
    sageattn = importlib.import_module("sageattention").sageattn

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if key.shape[1] < SHORT_KEYS:
            return sdpa(query, key, value)
        output: Tensor = sageattn(query, key, value, tensor_layout="NHD", is_causal=False)
        return output

    return kernel


def load_share(device: str) -> Share:
    """SageAttention's own steps, see `attention_shared`.

    Raises:
        ImportError, OSError, AttributeError, ValueError: they cannot be used on this card, or with this package.
    """
    return Sage(devices.capability(torch.device(device).index), torch.version.cuda).share


STEP_ERRORS = (RuntimeError, ValueError, AssertionError, AttributeError, TypeError)
"""What a package's step may raise where it is another than was thought."""


class Sharing:
    """Ranges that SageAttention serves, their keys and values quantized once; all others are the kernel's.

    Those are ranges that share nothing, or are too short, head sizes that its public function pads, and everything from
    the moment that a step fails, which does not cost the run.
    """

    def __init__(self, share: Share, kernel: Kernel) -> None:
        self._share, self._kernel, self._works = share, kernel, True

    def __call__(self, reaches: Sequence[Reach]) -> list[Reader]:
        readers = [by_range(self._kernel, reach) for reach in reaches]
        if not self._works:
            return readers
        long = {i: r for i, r in enumerate(reaches) if r.length >= SHORT_KEYS and r.key.shape[3] in HEAD_SIZES}
        several = {whole for whole, lengths in by_whole(long.values()).items() if len(lengths) > 1}
        fit = [i for i, reach in long.items() if reach.whole in several]
        if not fit:
            return readers
        try:
            shared = self._share([reaches[i] for i in fit])
        except STEP_ERRORS as error:
            self._give_up(error)
            return readers
        for i, reader in zip(fit, shared, strict=True):
            readers[i] = self._careful(reader, readers[i])
        return readers

    def _careful(self, shared: Reader, by_itself: Reader) -> Reader:
        def read(query: Tensor) -> Tensor:
            if self._works:
                try:
                    return shared(query)
                except STEP_ERRORS as error:
                    self._give_up(error)
            return by_itself(query)

        return read

    def _give_up(self, error: Exception) -> None:
        if devices.is_out_of_memory(error):
            raise error
        self._works = False
        _log.warning("SageAttention quantizes keys and values for each range again, for a step of it fails: %s", error)


def _has_sage() -> bool:
    """SageAttention 2 or later; version 1 visibly breaks video models and does not know grouped queries."""
    if importlib.util.find_spec("sageattention") is None:
        return False
    from importlib import metadata

    try:
        return int(metadata.version("sageattention").split(".")[0]) >= 2
    except (metadata.PackageNotFoundError, ValueError):  # a checkout: its trial will tell
        return True


def available(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Names that `choose` accepts here, best first. All but PyTorch's own need an Ampere GPU and half precision."""
    names = []
    place = torch.device(device)
    too_old = place.type == "cuda" and devices.cuda_available() and devices.capability(place.index) < (8, 0)
    if place.type == "cuda" and dtype in HALF and not too_old:
        names += ["flash"] if importlib.util.find_spec("flash_attn") is not None else []
        names += ["sage"] if _has_sage() else []
        names += ["cudnn"] if torch.backends.cudnn.is_available() and not torch.version.hip else []
    return (*names, "sdpa")


def choose(name: str = "auto", device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backend:
    """The kernel for a run; all but PyTorch's own are tried first, see `attention_trial`.

    Args:
        name: "auto" (the fastest that is right here), "flash", "sage", "cudnn" or "sdpa".

    Raises:
        InputError: the kernel is not installed, does not work here, or cannot serve this device and type.
    """
    names = available(device, dtype)
    kind = str(dtype).removeprefix("torch.")
    works = " or ".join(other for other in names if other != name)
    if name not in ("auto", *names):
        raise InputError(f"Attention backend {name!r} cannot be used here ({device}, {kind}); use {works}.")
    if name == "auto":
        return _fastest(names, device, kind)
    found = trial_of(name, device, kind)
    if found.fault:
        raise InputError(
            f"Attention backend {name!r} cannot be used here ({device}, {kind}), because {found.fault}; use {works}."
        )
    if name == OWN:
        return own(device, kind)
    return _tried(name, device, kind, found)


def _tried(name: str, device: str, kind: str, found: Trial, notice: str = "") -> Backend:
    """A kernel whose trial went well; SageAttention's with its ranges shared where that was tried, too."""
    kernel, share = serving(name), None
    if name == "sage" and may_share(device):
        steps = attention_trial.trial(SHARED, device, kind)
        if steps.fault:
            slower = (
                "SageAttention is a little slower here than it could be: it quantizes keys and values for each range"
            )
            notice = f"{notice} {slower}, because {steps.fault}.".strip()
        else:
            share = Sharing(load_share(device), kernel)
    return Backend(name, kernel, notice, found.speedup, share)


def may_share(device: str) -> bool:
    """Whether a card is one of those for which SageAttention's steps are known."""
    place = torch.device(device)
    return place.type == "cuda" and devices.cuda_available() and devices.capability(place.index) in CAPABILITIES


def own(device: str, kind: str) -> Backend:
    """PyTorch's own attention as it is on a device: its fused kernels, or the plain formula in slices, with a notice.

    What was found is kept for plans, which count what the formula takes.
    """
    place = torch.device(device)
    if place.type != "cuda" or not devices.cuda_available():
        return SDPA
    example = torch.empty(1, 1, 256, attention_trial.HEAD_SIZE, dtype=getattr(torch, kind), device=place)
    fault = "" if any_serves(example) else UNFUSED
    name = question(OWN, torch.__version__, kind, devices.identity(place.index or 0))
    findings.find(name, lambda: asdict(Trial(fault)))
    return Backend(PLAIN, plain, f"Attention in {kind}: {fault}.") if fault else SDPA


def any_serves(example: Tensor) -> bool:
    """Whether torch has a fused kernel for tensors like this, (N, heads, S, head_dim), in their type or in float16."""
    half = example.to(torch.float16) if example.dtype == torch.bfloat16 else example
    return serves(example, example, example) or serves(half, half, half)


def _fastest(names: tuple[str, ...], device: str, kind: str) -> Backend:
    """Of the kernels that are right here the fastest; the first of them where none was measured."""
    trials = {one: trial_of(one, device, kind) for one in names}
    notices = []
    for one, found in trials.items():
        if found.fault and one in PACKAGED:  # nobody installed the others, so nobody misses them
            notices.append(f"The attention kernel {one} is installed and not used, because {found.fault}.")
            _log.warning(notices[-1])
        elif found.fault:
            _log.info("The attention kernel %s is not used, because %s.", one, found.fault)
    best = fastest(trials)
    if best == OWN:
        served = own(device, kind)
        return replace(served, notice=" ".join([*notices, served.notice]).strip())
    return _tried(best, device, kind, trials[best], " ".join(notices))


def serving(name: str) -> Kernel:
    """A kernel as runs use it: one of a package that fails behind its trial does not cost the run."""
    return _where_it_serves(name, load(name)) if name in PACKAGED else load(name)


def load(name: str) -> Kernel:
    """The function of a kernel's package.

    Raises:
        ImportError, OSError, AttributeError: it does not load: built for another torch, as a rule.
    """
    return {"flash": _flash, "sage": _sage, "cudnn": _cudnn, "sdpa": lambda: sdpa}[name]()


def trial_of(name: str, device: str, kind: str) -> Trial:
    """What the trial of a kernel found: torch's own is always right, or says so itself."""
    return Trial() if name == OWN else attention_trial.trial(name, device, kind)
