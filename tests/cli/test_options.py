"""Options that several commands share."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.cli.options import Dtype, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", (Dtype.bfloat16, Dtype.float16))
def test_a_dtype_without_instructions_is_said_to_be_slow(dtype, monkeypatch, capsys):
    capabilities = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "avx512_fp16": False, "f16c": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype(dtype, CPU) == getattr(torch, dtype.value)
    assert "no instructions" in capsys.readouterr().err
    capabilities |= {"amx_bf16": True, "avx512_fp16": True}
    resolve_dtype(dtype, CPU)
    resolve_dtype(dtype, CUDA)
    assert capsys.readouterr().err == ""


def test_no_dtype_is_the_one_that_a_device_computes_best():
    assert resolve_dtype(Dtype.auto, CPU) == torch.float32 and resolve_dtype(Dtype.auto, CUDA) == torch.bfloat16
