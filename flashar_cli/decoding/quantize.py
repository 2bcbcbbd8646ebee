"""Weight-only quantisation through torchao: 8 bits a weight in the linear layers that every decoding step reads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from flashar_cli.errors import FlasharError
from flashar_cli.models.base import TokenModel

Scheme = Literal["int8", "fp8"]
SCHEMES: tuple[Scheme, ...] = ("int8", "fp8")
# The first GPUs with float8 are Ada and Hopper. Older ones refuse compiled kernels that read it.
FP8_CAPABILITY = (8, 9)


def check_scheme(scheme: Scheme, device: torch.device, dtype: torch.dtype) -> None:
    """Raises FlasharError where models of this dtype can't be quantised on this device, before anything is loaded."""
    if scheme not in SCHEMES:
        raise FlasharError(f"--quantize is {scheme}; expected one of {', '.join(SCHEMES)}")
    # torchao multiplies by the integers and scales the sums afterwards, which exceed float16's range (65504) by then.
    if scheme == "int8" and dtype == torch.float16:
        raise FlasharError("--quantize int8 overflows float16; use --dtype bfloat16 or float32, or --quantize fp8")
    if scheme == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        name, needed = torch.cuda.get_device_name(device), ".".join(map(str, FP8_CAPABILITY))
        raise FlasharError(f"--quantize fp8 needs compute capability {needed}, which {name} lacks; use --quantize int8")
    _torchao()


@torch.no_grad()
def quantize_model(model: TokenModel, scheme: Scheme) -> None:
    """Makes the weights of a model's ``step_layers`` int8, or float8 e4m3, with one scale for each output.

    In place, and it cannot be undone. Products still have the model's dtype. All other weights stay as they are. Raises
    FlasharError as ``check_scheme``.
    """
    check_scheme(scheme, model.device, model.dtype)
    quantize_, configs = _torchao()
    chosen = {id(layer) for layer in model.step_layers}
    # Inductor's settings belong to the whole process, so torchao must not change them.
    config = configs[scheme](set_inductor_config=False, version=2)
    quantize_(model, config, filter_fn=lambda module, name: id(module) in chosen)


def is_quantized(module: nn.Module) -> bool:
    """Whether any linear layer of this module has quantised weights."""
    linears = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return any(type(layer.weight) is not nn.Parameter for layer in linears)


def _torchao() -> tuple[Callable[..., None], dict[Scheme, Callable[..., Any]]]:
    """torchao's ``quantize_`` and the configs of the schemes."""
    # torchao warns on stderr about CUDA libraries that it can't load. Weight-only layers use none of them.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise FlasharError(f"--quantize needs torchao ({error}); run `pip install flashar[quant]`") from None
    finally:
        logging.disable(before)
    return quantize_, {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
