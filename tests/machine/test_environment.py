"""What a report says of machine and versions."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from flashar_cli.machine import environment

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("model name\t: X\nflags\t\t: fpu avx512_bf16 amx_tile amx_bf16\n", ("amx_bf16", "amx_tile", "avx512_bf16")),
        ("model name\t: X\nvmx flags\t: amx_tile\nflags\t\t: fpu avx2\n", ()),
        ("model name\t: X\nFeatures\t: fp asimd\n", None),
    ],
)
def test_cpu_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, features: tuple[str, ...] | None
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    found = environment.hardware(CPU)
    assert (found.cpu, found.cpu_features) == ("X", features)


def test_a_system_without_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "none")
    found = environment.hardware(CPU)
    assert found.cpu and found.cpu_features is None


def test_versions_come_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "triton":
            raise metadata.PackageNotFoundError(package)
        return f"{package} 1"

    imported = "torchao" in sys.modules
    monkeypatch.setattr(metadata, "version", version)
    found = environment.software()
    assert (found.torchao, found.triton) == ("torchao 1", None)
    assert ("torchao" in sys.modules) == imported


def test_sdpa_backends_are_those_switched_on() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(False)
        assert "cudnn" not in environment.sdpa_backends()
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert "cudnn" in environment.sdpa_backends()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
