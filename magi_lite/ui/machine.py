"""What this computer is and has, for the top bar and the System tab; plans before anything is loaded."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from magi_lite import attention_choice, planner
from magi_lite.errors import InputError, MagiLiteError
from magi_lite.files import is_folder
from magi_lite.library import plan_request
from magi_lite.machine import cards, devices
from magi_lite.machine.cards import GIB
from magi_lite.models import MODELS, ModelSpec
from magi_lite.planner import learned
from magi_lite.request.build import build, choose_model, choose_preset, models_on_disk
from magi_lite.request.request import GenerationRequest
from magi_lite.ui.downloads import Downloads
from magi_lite.ui.expose import sentence
from magi_lite.ui.plan_picture import svg
from magi_lite.workers.cluster import Cluster
from magi_lite.workers.fleet import Fleet


class Machine:
    """The device found at start, memory gauges, models on disk and downloads.

    Args:
        models_folder: root of the published layout.
        preset: the machine profile asked for at start; "auto": the one that fits.
        fleet: the worker processes, which tell what they hold.
    """

    def __init__(self, models_folder: Path, preset: str = "auto", fleet: Fleet | Cluster | None = None) -> None:
        self.models_folder, self.preset, self._fleet = models_folder, preset, fleet
        self.downloads = Downloads(models_folder)
        self.device = devices.detect()

    @property
    def backend(self) -> str:
        """The device and the attention kernel in one phrase."""
        if self.device.kind != "cuda":
            return "CPU"
        kernel = attention_choice.in_words(self.device.name).partition(";")[0]
        return f"{self.device.name}, {kernel}" if kernel else self.device.name

    @property
    def attention(self) -> str:
        """The attention kernel that serves here, as the trials in workers have found, and why better ones do not."""
        if self.device.kind == "cuda":
            return attention_choice.in_words(self.device.name) or "Kernels are tried with the first video"
        return attention_choice.TITLES[attention_choice.OWN]

    @property
    def model(self) -> str:
        """The model that a new video would use."""
        return choose_model(choose_preset(self.preset, self.device, self.models_folder), self.models_folder)

    @property
    def first_run(self) -> bool:
        """Whether no published model is on the disk yet."""
        return not models_on_disk(self.models_folder)

    def gauges(self) -> dict[str, Any]:
        """Memory in use right now, bytes."""
        total = devices.ram_bytes()
        card = self._card_memory() if self.device.kind == "cuda" else None
        return {
            "ram_total": total,
            "ram_used": total - devices.free_ram_bytes(),
            "vram_total": card[1] if card else 0,
            "vram_used": card[1] - card[0] if card else 0,
            "backend": self.backend,
        }

    def _card_memory(self) -> tuple[int, int]:
        """(free, total) bytes of all cards in use, as workers last reported; without workers as found at start."""
        reported = [one for one in (self._fleet.report() if self._fleet else ()) if one["card_total"]]
        if not reported:
            return self.device.free_bytes or self.device.vram_bytes, self.device.vram_bytes
        return sum(one["card_free"] for one in reported), sum(one["card_total"] for one in reported)

    def cards(self) -> list[dict[str, Any]]:
        """Each worker's card, whether its process is there, and what it holds in words."""
        found = []
        for one in self._fleet.report() if self._fleet else ():
            used, total = one["card_total"] - one["card_free"], one["card_total"]
            held = [f"{one['memory'] / GIB:.1f} GB of RAM"] if one["memory"] else []
            held += [f"{used / GIB:.1f} of {total / GIB:.1f} GB on the card"] if total else []
            found.append({"card": one["card"], "started": bool(one["pid"]), "memory": ", ".join(held)})
        return found

    def workers(self, making: dict[str, str]) -> list[tuple[str, str]]:
        """A row about each worker: its card, its memory, and the title of what it makes (`making`, by card)."""
        rows = []
        for one in self.cards():
            card = one["card"]
            state = f"makes “{making[card]}”" if card in making else "ready" if one["started"] else "starts with a job"
            words = f"{state}, {one['memory']}" if one["memory"] else state
            rows.append((f"Worker on card {card}" if card else "Worker", words))
        return rows

    def report(self) -> dict[str, Any]:
        """The System tab: rows about this computer, advice, models."""
        gauges, device = self.gauges(), self.device
        card = "none found; the demo model works without one"
        if device.kind == "cuda":
            capability = ".".join(map(str, device.capability))
            card = f"{device.name}, {device.vram_gb:.1f} GB, compute capability {capability}"
        rows = [
            ("Graphics card", card),
            ("Memory", f"{gauges['ram_used'] / GIB:.1f} of {gauges['ram_total'] / GIB:.1f} GB in use"),
            ("Attention", self.attention),
            ("PyTorch", _torch_words()),
            ("System", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
            ("Machine profile", choose_preset(self.preset, device, self.models_folder).title),
        ]
        if gauges["vram_total"]:
            used = f"{gauges['vram_used'] / GIB:.1f} of {gauges['vram_total'] / GIB:.1f} GB in use"
            rows.insert(1, ("Card memory", used))
        existing = next(p for p in (self.models_folder, *self.models_folder.resolve().parents) if p.exists())
        return {
            "machine": rows,
            "advice": self.advice(),
            "models": self._models(),
            "models_folder": str(self.models_folder),
            "free_disk": shutil.disk_usage(existing).free,
        }

    def advice(self) -> list[str]:
        """What would make this machine work better, one sentence each."""
        found = []
        device = self.device
        if device.missing:
            found.append(f"{device.missing}.")
        elif device.kind == "cpu" and (idle := devices.idle_card()):
            found.append(f"{idle}.")
        elif device.kind == "cpu":
            found.append(
                "Without an NVIDIA card only the demo model is fast enough; the 4.5B model runs on cards from 6 GB up."
            )
        elif device.vram_gb < 5.5:
            found.append(f"{device.name} has {device.vram_gb:.1f} GB; the smallest profile needs 6 GB. The demo works.")
        elif device.capability < (7, 5):
            found.append(f"{device.name} is older than what PyTorch supports well (compute capability 7.5 and up).")
        return found

    def _models(self) -> list[dict[str, Any]]:
        present = set(models_on_disk(self.models_folder))
        detail = "Comes with the program: tiny pictures, runs anywhere"
        models = [{"name": "demo", "detail": detail, "present": True, "size": 0}]
        for name, family in MODELS.items():
            kind = "distilled, fast" if family.distilled else "base, slow and best"
            detail = f"{kind}{', FP8' if family.published_fp8 else ''}, about {download_gb(name):.0f} GB to download"
            models.append(
                {
                    "name": name,
                    "detail": detail,
                    "present": name in present,
                    "size": _folder_size(self.models_folder, family.folder) if name in present else 0,
                    "downloadable": True,
                    "download": self.downloads.status(name),
                }
            )
        return models

    def plan(self, request: GenerationRequest) -> dict[str, Any]:
        """A plan as {"sentence", "svg", "notes"}, or {"error"} with what would fit."""
        try:
            device = self.device if self.device.kind == "cuda" else None  # RAM comes and goes: it is looked at anew
            plan = planner.plan(request, request.preset, device, self._spec(request.model), here=True)
        except MagiLiteError as error:
            return {"error": sentence(error)}
        return described(plan, self._start_seconds())

    def _start_seconds(self) -> float:
        """How long a worker will take to start; 0 where one is there, or runs elsewhere."""
        workers = self._fleet.report() if self._fleet else []
        return learned.start() if workers and not any(one["pid"] for one in workers) else 0.0

    def plan_for(self, card: str, model: str, ram_gb: float | None, values: dict[str, Any]) -> dict[str, Any]:
        """The plan that another machine would get for the same video, as `plan` answers it.

        Args:
            card: a known card's name; "cpu": none.
            model: a published one; empty: what that machine would use.
            ram_gb: RAM of that machine; None: enough.
            values: of options that shall not be chosen by the machine's profile.

        Raises:
            InputError: no such card, or a value that is not legal.
        """
        if ram_gb is not None and not ram_gb > 0:
            raise InputError(f"A machine has no {ram_gb:g} GB of RAM; give a number above 0, such as 32.")
        device = cards.cpu_device() if card == "cpu" else cards.known_card(card)
        if ram_gb is not None:
            device = replace(device, ram_bytes=int(ram_gb * GIB))
        chosen = {"model": model} if model else {}
        try:
            request = build(machine=device, demo=False, models_folder=self.models_folder, **chosen, **values)
            plan = plan_request(request, device, free_window=True)
        except MagiLiteError as error:
            return {"error": sentence(error)}
        found = described(plan)
        words = f"{request.model}, {request.width} × {request.height} on {device.name}. "
        return found | {"sentence": words + found["sentence"]}

    @property
    def known_cards(self) -> list[dict[str, Any]]:
        """Cards that can be planned for, the smallest first."""
        found = sorted(cards.known_cards(), key=lambda card: (card.vram_gb, card.name))
        return [{"name": card.name, "gb": round(card.vram_gb, 1)} for card in found]

    def use_models_folder(self, folder: Path) -> None:
        """Look for models in another folder from now on.

        Raises:
            InputError: it is no folder, or a download is under way.
        """
        if not is_folder(folder):
            raise InputError(f"There is no folder {folder}; make it, or choose another one.")
        if any((self.downloads.status(name) or {}).get("state") == "running" for name in MODELS):
            raise InputError("A model is being downloaded; stop that first.")
        self.models_folder = folder.resolve()
        self.downloads = Downloads(self.models_folder)

    def _spec(self, model: str) -> ModelSpec | None:
        """What the planner takes for a model: files on disk where there are any, else the published numbers."""
        from magi_lite.weights.opening import open_model

        try:
            return open_model(model, self.models_folder).spec
        except MagiLiteError:
            return None

    def without_tokens(self, model: str) -> Path | None:
        """Where the special tokens of a model belong that is whole but for them; None: nothing or more is missing."""
        from magi_lite.weights.layout import SpecialTokensMissing
        from magi_lite.weights.opening import open_model

        try:
            open_model(model, self.models_folder)
        except SpecialTokensMissing as missing:
            return missing.root
        except MagiLiteError:
            pass
        return None

    @property
    def elsewhere(self) -> bool:
        """Whether videos are made on a cluster, whose nodes have the weights."""
        return isinstance(self._fleet, Cluster)

    def check_files(self, request: GenerationRequest) -> None:
        """Refuse a video whose model is not whole here; on a cluster the nodes have the files.

        Raises:
            MagiLiteError: names what is missing, damaged or of another model.
        """
        from magi_lite.weights.contents import check_contents
        from magi_lite.weights.opening import open_model

        if not self.elsewhere:
            check_contents(open_model(request.model, request.models_folder))

    def free_memory(self) -> str:
        """End the workers that have nothing to do, with all that they hold; says how much is free now."""
        before = devices.free_ram_bytes()
        if self._fleet:
            self._fleet.free()
        devices.free_memory()
        now = devices.free_ram_bytes()
        gained = max(0, now - before) >> 20
        return f"Done: {gained} MB of RAM came free, {now / GIB:.1f} GB are free now."


def described(plan: planner.Plan, start: float = 0.0) -> dict[str, Any]:
    """A plan as {"sentence", "svg", "notes"}; a worker takes `start` seconds before."""
    on_card = plan.execution.device == "cuda"
    need = plan.needed_vram_bytes if on_card else plan.peak_ram_bytes
    have = plan.device.vram_bytes if on_card else plan.device.ram_bytes or 0
    where = f"{need / GIB:.1f} of {have / GIB:.1f} GB of {'card memory' if on_card else 'RAM'}"
    begin = [f"Before the first picture a worker starts, which takes {_time(start)}."] if start else []
    words = f"Needs {where}; first picture after {_time(start + plan.time_to_first_chunk)}"
    return {
        "sentence": f"{words}, then {_time(plan.seconds_per_chunk)} for every second of video{_measured(plan)}.",
        "svg": svg(plan),
        "notes": [*plan.notes, *begin],
    }


def _measured(plan: planner.Plan) -> str:
    return ", measured here" if plan.measured != 1 else ""


def download_gb(name: str) -> float:
    """Size of a download in GB: transformer, text encoder (as published, float32), autoencoder."""
    from magi_lite.weights import hub

    sizes = getattr(hub, "APPROXIMATE_GB", None)
    if isinstance(sizes, dict) and name in sizes:
        return float(sizes[name])
    return 19.0 + {"4.5B": 9.0, "24B": 48.0}[name.split("-")[0]] / (2 if MODELS[name].published_fp8 else 1)


def _folder_size(root: Path, family: str) -> int:
    return sum(path.stat().st_size for path in root.glob(f"**/{family}/**/*") if path.is_file())


def _torch_words() -> str:
    torch = sys.modules.get("torch")
    if torch is None:
        return version("torch")
    return f"{torch.__version__}, CUDA {torch.version.cuda}" if torch.version.cuda else f"{torch.__version__}, CPU only"


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
