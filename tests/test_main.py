"""`python -m tests` itself: no test is left out or run twice, failures are not lost, and what is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import __main__ as command

PROBE = """
import pytest
def test_plain(): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.alone
def test_alone(): pass
@pytest.mark.thorough
def test_thorough(): pass
@pytest.mark.thorough
@pytest.mark.alone
def test_thorough_alone(): pass
"""


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--fast", ["plain"]),
        ("", ["alone", "plain", "slow"]),
        ("--all", ["alone", "plain", "slow", "thorough", "thorough_alone"]),
    ],
)
def test_each_test_is_run_once(tmp_path: Path, option: str, expected: list[str]) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE)
    options, _ = command.parse([option] if option else [])
    found: list[str] = []
    for _, selection in command.selections(options):
        arguments = [*selection, "--collect-only", "-p", "no:cacheprovider", str(tmp_path)]
        collect = [sys.executable, "-m", "pytest", "-c", str(command.ROOT / "pyproject.toml"), *arguments]
        done = subprocess.run(collect, cwd=command.ROOT, capture_output=True, text=True, check=False)
        found += [line.rpartition("test_")[2] for line in done.stdout.splitlines() if "::" in line]
    assert sorted(found) == expected


def test_what_is_not_ours_goes_to_pytest() -> None:
    options, passed_on = command.parse(["--fast", "tests/quant", "-k", "fp8", "--durations=5"])
    assert options.fast
    assert passed_on == ["tests/quant", "-k", "fp8", "--durations=5"]


def codes(monkeypatch: pytest.MonkeyPatch, *returned: int) -> bool:
    """Whether the step of pytest passes when its runs return these codes."""
    left = list(returned)

    def answer(arguments: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, left.pop(0))

    monkeypatch.setattr(command.subprocess, "run", answer)
    passed = command.pytest(command.parse([])[0], [])
    assert not left, "a run was left out"
    return passed


def test_pytest_passes_when_both_runs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert codes(monkeypatch, 0, 0)
    assert codes(monkeypatch, 0, 5) and codes(monkeypatch, 5, 0), "a selection may be empty in one of the two"
    assert not codes(monkeypatch, 5, 5), "no test was run"
    assert not codes(monkeypatch, 1, 0)
    assert not codes(monkeypatch, 0, 1)


@pytest.mark.parametrize("missing", ["", "No Chromium."])
@pytest.mark.parametrize("outcomes", [(True, True), (False, True), (True, False)])
def test_one_failure_fails_the_whole_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcomes: tuple[bool, bool], missing: str
) -> None:
    ran: list[str] = []

    def step(name: str, outcome: bool) -> bool:
        ran.append(name)
        return outcome

    names = ("first", "second")
    listed = [(name, lambda name=name, ok=ok: step(name, ok)) for name, ok in zip(names, outcomes, strict=True)]
    monkeypatch.setattr(command, "steps", lambda options, passed_on: listed)
    monkeypatch.setattr(command, "install", lambda with_browser: [missing] if missing else [])
    code = command.main([])
    out, err = capsys.readouterr()
    assert ran == ["first", "second"], "a step after a failed one is run all the same"
    assert (code == 0) == (all(outcomes) and not missing)
    assert missing in out
    for name, outcome in zip(names, outcomes, strict=True):
        assert (name in err) == (not outcome)


def test_what_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []
    monkeypatch.setattr(command, "run", lambda arguments, **_: not tried.append(arguments) and "pip" in arguments)
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    missing = command.install()
    assert len(missing) == 2 and "Node.js" in missing[0] and "Chromium" in missing[1]
    assert all(sentence.endswith(".") for sentence in missing)
    monkeypatch.setattr(command, "run", lambda *_, **__: False)
    assert "requirements-dev.txt" in command.install()[0]


def test_a_program_that_is_not_there_fails_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert not command.run(["no-such-program-of-ours"])
    assert "no-such-program-of-ours" in capsys.readouterr().err


@pytest.mark.parametrize("manager", command.MANAGERS, ids=lambda manager: manager.program)
def test_package_managers_are_asked_for_both(monkeypatch: pytest.MonkeyPatch, manager: command.Manager) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(command, "run", lambda arguments, **_: ran.append(arguments) or True)
    monkeypatch.setattr(command.shutil, "which", lambda name: name if name == manager.program else None)
    monkeypatch.setattr(command.os, "geteuid", lambda: 0, raising=False)
    for what, names in (("node", manager.node), ("browser", manager.browser)):
        command.install_with_manager(what)
        assert ran[-1][0] == manager.program and ran[-1][-len(names) :] == list(names)
