"""The installed package: what a wheel holds, that it works where there is no checkout, and that its lists agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import magi_lite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def required(file: str) -> list[str]:
    """Requirements of a file, without comments and the files it includes, quoted as pyproject.toml quotes them."""
    lines = (line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [line.replace('"', "'") for line in lines if line and not line.startswith(("#", "-r"))]


def test_the_lists_of_requirements_agree() -> None:
    assert PROJECT["dependencies"] == required("requirements.txt")
    assert PROJECT["optional-dependencies"]["dev"] == required("requirements-dev.txt")


def test_the_triton_for_windows_is_that_of_the_torch_that_is_named() -> None:
    from quant.gate import CUDA_TORCH, TRITON_OF_TORCH, triton_for

    wanted = triton_for(CUDA_TORCH, windows=True)
    assert f"{wanted}; platform_system == 'Windows'" in PROJECT["optional-dependencies"]["cuda"]
    assert f'pip install "{wanted}" -r requirements.txt' in (ROOT / "README.md").read_text(encoding="utf-8")
    (torch,) = (name for name in PROJECT["dependencies"] if name.startswith("torch>"))
    oldest, behind = (tuple(int(number) for number in found) for found in re.findall(r"(\d+)\.(\d+)", torch))
    assert set(TRITON_OF_TORCH) == {(2, minor) for minor in range(oldest[1], behind[1])}
    assert oldest <= CUDA_TORCH < behind


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(folder)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_all_that_runs_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    expected = {name for name in tracked if name.startswith(("magi_lite/", "quant/"))}
    expected |= {f"magi_lite/{name}" for name in tracked if name.startswith("presets/")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert not expected - held
    assert {Path(name).parts[0] for name in held} == {"magi_lite", "quant"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True)
    return folder


def run(installed: Path, folder: Path, *command: str) -> str:
    """What a command prints that is run in `folder`, where `installed` is the only magi_lite there is."""
    environment = os.environ | {"PYTHONPATH": str(installed), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (program,) = (installed / "bin").glob("magi-lite*")
    assert run(installed, tmp_path, str(program), "--version").split()[-1] == magi_lite.__version__
    assert "GB" in run(installed, tmp_path, str(program), "plan", "--gpu", "RTX 4090", "--preset", "12gb")
    small = ("--size", "64x64", "--seconds", "1", "--window", "1")
    out = run(installed, tmp_path, str(program), "generate", "--prompt", "a red ball", *small, "--out", "ball.mp4")
    assert "ball.mp4" in out and (tmp_path / "ball.mp4").stat().st_size > 1000
    assert [path.name for path in tmp_path.glob("outputs/*/video.mp4")]


def test_its_page_is_complete(installed: Path, tmp_path: Path) -> None:
    code = "from magi_lite.ui import examples, page; print(page.__file__, len(page.look()), len(examples.load()))"
    file, looks, examples = run(installed, tmp_path, sys.executable, "-c", code).split()
    assert file.startswith(str(installed))
    assert int(looks) > 1 and int(examples) > 1


def test_one_version() -> None:
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", magi_lite.__version__)
