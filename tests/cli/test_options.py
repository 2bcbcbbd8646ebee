"""Options that several commands share."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from flashar_cli.cli.options import Dtype, note_slow, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_a_dtype_without_instructions_is_said_to_be_slow(dtype, monkeypatch, capsys):
    capabilities = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "avx512_fp16": False, "f16c": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    note_slow(dtype, CPU)
    assert "no instructions" in capsys.readouterr().err
    capabilities |= {"amx_bf16": True, "avx512_fp16": True}
    note_slow(dtype, CPU)
    capabilities.clear()
    note_slow(dtype, CUDA)
    note_slow(torch.float32, CPU)
    assert capsys.readouterr().err == ""


def test_no_dtype_is_the_one_that_a_device_computes_best():
    assert resolve_dtype("auto", CPU) == torch.float32 and resolve_dtype("auto", CUDA) == torch.bfloat16
    assert all(resolve_dtype(name, CPU) == getattr(torch, name) for name in get_args(Dtype) if name != "auto")
