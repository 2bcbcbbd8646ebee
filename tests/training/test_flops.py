"""Training operations against a count by hand and against PyTorch's own counter."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flashar_cli.config import DiffusionConfig
from flashar_cli.config.recipe import LoraSettings, StageSettings
from flashar_cli.models.prefix import Conditions
from flashar_cli.training.flops import training_flops
from flashar_cli.training.losses import losses_of
from tests.tiny_models import build_model, emu_like_config, random_config

STAGE1 = StageSettings(backbone_lr_factor=0.0)
STAGE1_DISTILLING = StageSettings(backbone_lr_factor=0.0, distill_weight=0.2)
STAGE2 = StageSettings(backbone_lr_factor=0.2)


def test_by_hand() -> None:
    """D 64, 4 query and 2 key and value heads of 16, ffn 48, V 32, a class prefix, 3x5 cells: 15 positions, 15
    targets.
    """
    block_weights = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 48 + 2 * 64
    block = 2 * block_weights * 15 + 2 * (2 * 15 * 15 * 64)
    head = 2 * (64 * 32 + 64) * 15
    gate = 2 * (128 * 64 + 64 + 1) * 15
    backbone, branch = 2 * block + head, block + head + gate
    config = random_config(3, 5)
    assert training_flops(config, STAGE2) == 3 * (backbone + branch)
    assert training_flops(config, STAGE1) == backbone + 3 * branch
    assert training_flops(config, STAGE1_DISTILLING) == 2 * backbone + 3 * branch
    assert training_flops(random_config(3, 5, branch=False), STAGE2) == 3 * backbone


def test_line_ends_and_a_branch_apart_by_hand() -> None:
    """As above, with heads of 24, gains of queries and keys, prompts of 9 tokens, 2 line ends and a branch of 2."""
    block_weights = 64 * (96 + 48 + 48) + 96 * 64 + 3 * 64 * 48 + 2 * 64 + 2 * 24

    def block(num_positions: int) -> int:
        return 2 * block_weights * num_positions + 2 * (2 * num_positions * num_positions * 4 * 24)

    head = 2 * (64 * 32 + 64) * 15
    gate = 2 * (128 * 64 + 64 + 1 + 64 + 1) * 15
    config = emu_like_config(3, 5, depth=2)
    added = 2 * block(14) + head + gate
    assert training_flops(config, STAGE2) == 3 * (2 * block(9 + 14) + head + added)
    raster = 2 * block(9 + 14 + 2) + head
    assert training_flops(config, STAGE1_DISTILLING) == 2 * block(9 + 14) + head + 3 * added + raster


def test_adapters_need_no_gradients_of_the_frozen_weights() -> None:
    """Rank 4 on ``wo`` [64, 64] and ``w2`` [64, 48] of two blocks: 4 * (128 + 112) weights each, trained in full."""
    config, lora = random_config(3, 5), LoraSettings(rank=4, targets=("wo", "w2"))
    frozen, trained = training_flops(config, STAGE1), training_flops(config, STAGE2)
    base = (trained - frozen) // 2
    adapters = 2 * 2 * 4 * (128 + 112) * 15
    assert training_flops(config, STAGE2, lora) == frozen + base + 3 * adapters
    assert training_flops(config, STAGE1, lora) == frozen


def test_block_diffusion_sees_the_image_twice_but_for_its_last_block() -> None:
    """The numbers of the first test; blocks of 4 in 3x5 cells leave 3 for the last: 1 + 12 + 15 positions."""
    block_weights = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 48 + 2 * 64
    block = 2 * block_weights * 28 + 2 * (2 * 28 * 28 * 64)
    config = random_config(3, 5, branch=False).model_copy(update={"diffusion": DiffusionConfig(block=4)})
    assert training_flops(config, STAGE2) == 3 * (2 * block + 2 * (64 * 32 + 64) * 15)


@pytest.mark.parametrize("branch", (True, False))
def test_near_the_counter_of_pytorch(branch: bool) -> None:
    """It sees real products: no gains of norms, and the first backward lacks the gradient of its input."""
    config = random_config(4, 4, branch=branch)
    model = build_model(config)
    model.set_attention("eager")
    order = config.order_grid.diagonal() if branch else config.order_grid.raster()
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        read = partial(losses_of, model, tokens_BN=tokens, settings=StageSettings())
        model(tokens, Conditions(labels=torch.zeros(2, dtype=torch.int64)), order, read=read).total.backward()
    assert counter.get_total_flops() == pytest.approx(2 * training_flops(config, STAGE2), rel=0.05)
