"""Where the training of low-rank adapters starts."""

from __future__ import annotations

import torch

from flashar_cli.config.recipe import LoraSettings
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import adapters
from flashar_cli.nn.shards import fill
from flashar_cli.training.randomness import adapter_start


def initialise_adapters(model: FlasharModel, lora: LoraSettings, seed: int) -> None:
    """Random A, the same for any number of processes, and B of zeros, so that the model computes what it did."""
    for number, adapter in enumerate(adapters(model).values()):
        values = adapter_start(number, lora.rank, adapter.a_RI.shape[1], seed)
        fill(adapter.a_RI, torch.from_numpy(values))
        fill(adapter.b_OR, torch.zeros(adapter.b_OR.shape))
