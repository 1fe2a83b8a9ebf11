"""The README is true: its commands are ones that exist, its program runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from magi_lite.cli import build_parser
from tests.ui.conftest import ROOT, App

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m magi_lite ([^#\n]+)", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_exist(command: str) -> None:
    build_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)\s]+)\)", README))
def test_what_it_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_its_program_runs(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = (one for one in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "gradio_client" in one)
    Image.new("RGB", (48, 48), "teal").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    exec(program.replace("http://127.0.0.1:7860/", app.url).replace("http://127.0.0.1:7860", app.url), known)
    app_client, job = known["app"], known["job"]
    app_client.predict(job, api_name="/stop")
