"""Before long work: do codes, labels and tokenizer belong to this base?"""

from __future__ import annotations

import math

import torch

from flashar_cli.data.codes import CodeSet
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.validation import validation_losses

NUM_IMAGES = 64
# A model that knows nothing of its codes scores ln V or worse; published models stay well below it.
MARGIN_BELOW_CHANCE = 0.2
# How far above the recorded loss is still the same data: nats per token.
MARGIN_ABOVE_RECORDED = 0.5


def check_base(model: FlasharModel, data: CodeSet, batch_size: int, dtype: torch.dtype) -> float:
    """The base's raster loss on 64 pictures, nats per token.

    Raises FlasharError where it is near ln V, or far above the loss that the config records.
    """
    loss = validation_losses(model, data.take(slice(0, NUM_IMAGES)), batch_size, dtype, raster_only=True)["raster"]
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
