"""Validation losses of a model under each of its decoders."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from flashar_cli.config.recipe import StageSettings
from flashar_cli.data.tokens import TokenSet
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.decoders import decoders_of
from flashar_cli.decoding.diffusion import DiffusionDecoder
from flashar_cli.decoding.static import RASTER, StaticDecoder
from flashar_cli.errors import FlasharError
from flashar_cli.machine.processes import sum_over_processes
from flashar_cli.machine.world import World, current_world
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.targets import Targets
from flashar_cli.training.losses import NOT_COUNTED, Losses, gate_statistics, losses_of
from flashar_cli.training.randomness import is_drawn, unknown_cells

CHECKED_IMAGES = 64
VALIDATION_SEED = 0  # of what is unknown in the images of block diffusion
# A model of other tokens has a loss of ln V or more; published models have far less.
MARGIN_BELOW_CHANCE = 0.2
# Nats per token above the recorded loss that are accepted as the same data.
MARGIN_ABOVE_RECORDED = 0.5


@torch.no_grad()
def validation_losses(
    model: FlasharModel,
    data: TokenSet,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    decoders: Iterable[Decoder] | None = None,
) -> dict[str, float]:
    """Nats per token on all images of ``data`` under each of the ``decoders`` (None: all that the model has). With one
    head this is the decoder's name, ``raster``; with two ``fused``, ``horizontal`` and ``vertical`` (each over the
    cells it predicts), and ``gate_mean``, ``gate_std``, ``gate_entropy_bits`` and ``gate_corner``; of block diffusion
    ``diffusion``, over the cells of each image that a pattern of its own leaves unknown. Several processes share the
    batches; all get the result.
    """
    model.eval()
    world = current_world() if dist.is_initialized() else World()
    sums: dict[str, float] = {}
    for rows, weight in _turns(len(data), batch_size, world):
        for decoder in decoders or decoders_of(model.config):
            for name, value in _batch_losses(model, data, rows, decoder, dtype).items():
                sums[name] = sums.get(name, 0.0) + weight * value
    means = dict(zip(sums, sum_over_processes([value / len(data) for value in sums.values()]), strict=True))
    if "diffusion" in means:  # images differ in how many cells are unknown
        means["diffusion"] /= means.pop("num_unknown")
    return means


def check_base(model: FlasharModel, data: TokenSet, batch_size: int, dtype: torch.dtype) -> float:
    """The base's raster loss on 64 images, nats per token.

    Raises FlasharError where it is near ln V, or far above the loss that the config records.
    """
    loss = validation_losses(model, data.take(slice(0, CHECKED_IMAGES)), batch_size, dtype, [RASTER])[RASTER.name]
    chance = math.log(model.config.backbone.vocab_size)
    recorded = model.config.raster_loss
    fix = "check that --data was encoded with this model's tokenizer and that its labels are this model's classes"
    if not loss < chance - MARGIN_BELOW_CHANCE:
        raise FlasharError(
            f"the base's raster loss here is {loss:.2f} nats per token, no better than chance ({chance:.2f}); {fix}"
        )
    if recorded is not None and loss > recorded + MARGIN_ABOVE_RECORDED:
        raise FlasharError(
            f"the base's raster loss here is {loss:.2f} nats per token, its config records {recorded:.2f}; {fix}"
        )
    return loss


def _turns(total: int, batch_size: int, world: World) -> list[tuple[slice, int]]:
    """The batches of this process, each with its number of images. Sharded models need every process in every forward,
    so a process without a batch left repeats the first one, which counts 0 images.
    """
    batches = [slice(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
    rounds = -(-len(batches) // world.size)
    indices = [turn * world.size + world.rank for turn in range(rounds)]
    return [
        (batches[index], batches[index].stop - batches[index].start) if index < len(batches) else (batches[0], 0)
        for index in indices
    ]


def _batch_losses(
    model: FlasharModel, data: TokenSet, rows: slice, decoder: Decoder, dtype: torch.dtype
) -> dict[str, float]:
    """Of a decoder whose cells depend on the tokens that it samples: those of what it was trained for, if anything."""
    tokens_BHW, conditions = data.take(rows).tensors(model.device)
    if isinstance(decoder, DiffusionDecoder):
        return _diffusion_losses(model, tokens_BHW.flatten(1), conditions, rows, dtype)
    if not isinstance(decoder, StaticDecoder):
        return {}
    order = decoder.order(model.config, model.config.order_grid)
    tokens_BN = order.from_raster(tokens_BHW)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        losses, targets = model(tokens_BN, conditions, order, read=partial(_read, model, tokens_BN))
    if losses.gate is None or losses.horizontal is None or losses.vertical is None:
        return {decoder.name: float(losses.fused)}
    mean, deviation, entropy = gate_statistics(losses.gate, targets)
    return {
        "fused": float(losses.fused),
        "horizontal": float(losses.horizontal),
        "vertical": float(losses.vertical),
        "gate_mean": float(mean),
        "gate_std": float(deviation),
        "gate_entropy_bits": float(entropy),
        "gate_corner": float(losses.gate[:, 0].mean()),
    }


def _diffusion_losses(
    model: FlasharModel, tokens_BN: Tensor, conditions: Conditions, rows: slice, dtype: torch.dtype
) -> dict[str, float]:
    """Nats and number of the cells to draw, for each image on average."""
    assert model.diffusion is not None
    block, raster = model.diffusion.config.block, model.config.raster(model.config.order_grid)
    places = np.arange(rows.start, rows.stop)
    unknown = unknown_cells(tokens_BN.shape[1], block, VALIDATION_SEED, np.zeros_like(places), places)
    unknown_BN = torch.from_numpy(unknown).to(model.device)
    drawn_BN = torch.from_numpy(is_drawn(unknown, block)).to(model.device)
    targets_BN = tokens_BN.masked_fill(~drawn_BN, NOT_COUNTED)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        read = partial(_read, model, targets_BN)
        losses, _ = model(tokens_BN, conditions, raster, read=read, unknown_BN=unknown_BN)
    num_unknown = float((targets_BN != NOT_COUNTED).sum()) / len(tokens_BN)
    return {"diffusion": float(losses.fused) * num_unknown, "num_unknown": num_unknown}


def _read(model: FlasharModel, tokens_BN: Tensor, hidden: HiddenStates, targets: Targets) -> tuple[Losses, Targets]:
    return losses_of(model, hidden, targets, tokens_BN, StageSettings()), targets
