"""What a machine has left, and what it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.machine import memory as machine
from flashar_cli.machine.memory import free_bytes, free_disk_bytes, gib, require_disk, require_memory


def test_free_memory_is_what_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  4000 kB\nMemFree: 1000 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", info)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 3000 * 1024
    for name, text in {"max": "2000000", "current": "900000", "stat": "anon 5\ninactive_file 100000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_bytes() == 1_200_000, "a container's own limit, whose cached files give way"
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() == 3000 * 1024
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert free_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def test_free_disk_of_a_folder_to_come(tmp_path: Path) -> None:
    there = shutil.disk_usage(tmp_path).free
    assert abs(free_disk_bytes(tmp_path / "a" / "b" / "c.npy") - there) < 2**30


def test_what_has_no_room_is_named_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda device=None: 3 * 2**30)
    require_memory("a batch", 3 * 2**30)
    with pytest.raises(FlasharError, match=r"a batch needs 3\.5 GiB; 3\.0 GiB of memory are free on this machine"):
        require_memory("a batch", 3.5 * 2**30)
    with pytest.raises(FlasharError, match=r"needs 9\.3e\+20 GiB; .* of disk for .*out are free"):
        require_disk("writing it", 10**30, tmp_path / "out")
    assert gib(10**13) == "9313.2 GiB"
