"""Low-rank adapters on linear layers of the backbone's blocks (arXiv 2106.09685), made by the `peft` library.

An adapter of ``W`` [out, in] is ``A`` [R, in] and ``B`` [out, R]; the layer computes ``W x + scale * B A x``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from flashar_cli.config.recipe import LoraSettings
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"  # peft's own, of a model's only adapters


class Adapter(NamedTuple):
    """What is added to a linear layer's weights: ``scale * B A``."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    def added_to(self, weight_OI: Tensor) -> Tensor:
        """The merged weights, computed in float32, in the dtype of ``weight_OI``."""
        product = self.b_OR.float() @ self.a_RI.float()
        return (weight_OI.float() + self.scale * product).to(weight_OI.dtype)


def peft_config(lora: LoraSettings) -> LoraConfig:
    """These settings as peft has them. Raises FlasharError where peft is not installed."""
    with _quiet():
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise FlasharError(f"lora.rank needs peft ({error}); run `pip install flashar[lora]`") from None
        # peft has whole numbers for alpha, but only ever divides it by the rank.
        alpha: Any = lora.alpha
        return LoraConfig(
            r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none"
        )


def add_adapters(model: FlasharModel, lora: LoraSettings) -> None:
    """Puts float32 adapters into a model and freezes its prefix and backbone; the branch is trained. They have no data
    yet: those of a model on a device hold anything. Raises FlasharError where peft is not installed.
    """
    config = peft_config(lora)
    with _quiet():
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, model.backbone, NAME, low_cpu_mem_usage=True)
    model.prefix.requires_grad_(False)
    for layer in _layers(model).values():
        for part in (layer.lora_A, layer.lora_B):
            part.to_empty(device=model.device).float()
        # Under autocast inputs have the right dtype, and a float32 copy of them would be kept for the backward.
        layer.cast_input_dtype_enabled = False


def enable_adapters(model: FlasharModel, enabled: bool) -> None:
    """Whether adapters take part in a forward and are trained; without adapters nothing changes."""
    for layer in _layers(model).values():
        layer.enable_adapters(enabled)


def adapters(model: FlasharModel) -> dict[str, Adapter]:
    """The adapters by the name of their layer, as ``backbone.blocks.0.attention.wo``."""
    return {
        name: Adapter(layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME])
        for name, layer in _layers(model).items()
    }


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name, in a model without adapters, of a tensor that is not of an adapter."""
    return name.replace(".base_layer.", ".")


def _layers(model: FlasharModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def _quiet() -> Iterator[None]:
    """peft imports torchao where it is installed, which warns of CUDA libraries that it cannot load."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
