"""Memory limits of containers and services, as both versions of control groups write them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from magi_lite.machine import cgroups, devices


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "PROC", tmp_path / "proc")
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_version_2_takes_the_least_of_all_groups_above(tree: Path) -> None:
    write(tree / "proc" / "self", cgroup="0::/a.slice/b.service\n")
    write(tree / "cgroup" / "a.slice", memory__max="3000", memory__current="2500", memory__stat="inactive_file 700\n")
    write(
        tree / "cgroup" / "a.slice" / "b.service",
        memory__max="max\n", memory__current="2000", memory__events="low 0\noom 4\noom_kill 2\n",
    )  # fmt: skip
    assert cgroups.least() == (3000, 1200) and [group.killed for group in cgroups.groups()] == [2, 0]
    assert devices.ram_bytes() == 3000 and devices.free_ram_bytes() == 1200


def test_version_1_and_a_path_that_a_container_cannot_see(tree: Path) -> None:
    write(tree / "proc" / "7", cgroup="9:name=systemd:/\n4:memory:/docker/0af3\n3:cpu,cpuacct:/docker/0af3\n0::/\n")
    write(
        tree / "cgroup" / "memory",
        memory__limit_in_bytes="5000", memory__usage_in_bytes="4990", memory__stat="total_inactive_file 5\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    )  # fmt: skip
    assert cgroups.least(7) == (5000, 15) and [group.killed for group in cgroups.groups(7)] == [3]
    (tree / "cgroup" / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert cgroups.least(7) == (None, None)


def test_without_groups_the_machine_is_the_limit(tree: Path) -> None:
    assert tree and cgroups.groups() == [] and devices.ram_bytes() == psutil.virtual_memory().total
