"""What every test shares: one thread (the models are tiny: more only wait for each other), no network, one browser."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests import browsers

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
TESTS = Path(__file__).parent
SLOW = tuple(
    TESTS / place
    for place in (
        "pipeline",
        "training",
        "bad_input/test_home.py",
        "workers/test_cards.py",
        "workers/test_cluster.py",
        "workers/test_deaths.py",
        "cli/test_render.py",
        "cli/test_resume.py",
        "cli/test_runs.py",
        "plan/test_roofline.py",
        "plan/test_truth.py",
        "project/test_crash.py",
        "project/test_encoders.py",
        "sampling/test_goldens.py",
        "video/test_export.py",
        "test_library.py",
        "test_package.py",
        "ui/test_memory.py",
        "ui/test_server.py",
    )
)
"""Whole videos are made and exported here, models trained, processes started and killed, full-size passes counted, a
wheel built and installed. What is left takes some three minutes of one processor core."""
FROZEN = pytest.StashKey[int]()
"""How many modules were there when their objects were taken out of garbage collection."""
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in a browser are marked `alone`: browser, app and worker keep two processor cores busy by themselves.

    `slow` are those of the places where nearly every test takes seconds (`SLOW`). Files with such tests come first, so
    that several processes have short ones left to share at the end.
    """
    for item in items:
        if {"browser", "app"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("alone")
        if any(place in item.path.parents or place == item.path for place in SLOW):
            item.add_marker("slow")
    first = {item.path for item in items if item.get_closest_marker("slow") and not item.get_closest_marker("alone")}
    items.sort(key=lambda item: item.path not in first)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What stays to the end is not looked at again: every run collects garbage, half a second for all libraries."""
    modules = item.config.stash.get(FROZEN, 0)
    if len(sys.modules) > modules + 20:  # the first test, or the one before imported something large
        gc.collect()
        gc.freeze()
        item.config.stash[FROZEN] = len(sys.modules)


def pytest_sessionfinish() -> None:
    """Libraries that count at the end what was not let go find nothing."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_measured_speeds(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of tests promise what is computed, and runs of tests teach this machine's plans nothing."""
    monkeypatch.setattr("magi_lite.machine.findings.FILE", tmp_path_factory.getbasetemp() / "none" / "findings.json")
    monkeypatch.setattr("magi_lite.planner.learned.FILE", tmp_path_factory.getbasetemp() / "none" / "speeds.json")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder in the published layout with random weights; not to be written to."""
    from magi_lite.weights.demo import make_untrained

    root = tmp_path_factory.mktemp("model") / "tiny"
    make_untrained(root)
    return root


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of it whose files may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; a machine without one fails the tests instead of passing them unseen."""
    path = browsers.find()
    assert path, "No Chromium was found; install it, or run `python -m tests`, which does."
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()
