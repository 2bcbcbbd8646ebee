"""Turns a trained VQ tokenizer into an IBQ tokenizer that gives the same tokens and images.

Encoder and decoder of an IBQ tokenizer have the same widths, those of a VQ tokenizer need not. A map of twice as many
channels holds every channel twice, side by side, so the groups of a GroupNorm keep their mean and variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flashar_cli.config import IBQConfig, VQConfig
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.layers import AttentionBlock, ResBlock
from flashar_cli.tokenizers.vq import VQTokenizer


def widened_config(config: VQConfig) -> IBQConfig:
    """The narrowest IBQ config with levels at least as wide as those of the encoder and of the decoder."""
    levels = zip(config.encoder_multipliers, config.decoder_multipliers, strict=True)
    return IBQConfig(
        codebook_size=config.codebook_size,
        codebook_dim=config.codebook_dim,
        channels=config.channels,
        multipliers=tuple(math.lcm(*pair) for pair in levels),
        num_res_blocks=config.num_res_blocks,
        attention_levels=(len(config.encoder_multipliers) - 1,),
        latent_channels=config.latent_channels,
    )


@torch.no_grad()
def widened(tokenizer: VQTokenizer) -> IBQTokenizer:
    """An IBQ tokenizer in float32 with the tokens and images of ``tokenizer``; its codebook vectors have length 1."""
    wide = IBQTokenizer(widened_config(tokenizer.config)).eval()
    for part, narrow in ((wide.encoder, tokenizer.encoder), (wide.decoder, tokenizer.decoder)):
        _widen(part, narrow)
    wide.quant_conv.load_state_dict(tokenizer.quant_conv.state_dict())
    wide.post_quant_conv.load_state_dict(tokenizer.post_quant_conv.state_dict())
    wide.quantize.embedding.weight.copy_(tokenizer.quantize.codebook())
    return wide


def _widen(wide: nn.Module, narrow: nn.Module) -> None:
    for name, module in wide.named_modules():
        if isinstance(module, ResBlock) and module.nin_shortcut is not None:
            other = narrow.get_submodule(name)
            assert isinstance(other, ResBlock)
            if other.nin_shortcut is None:
                width = other.conv1.in_channels
                module.nin_shortcut.weight.copy_(
                    _repeated(torch.eye(width)[..., None, None], module.nin_shortcut.weight)
                )
                module.nin_shortcut.bias.zero_()
    for name, tensor in narrow.named_parameters():
        target = wide.get_parameter(name)
        target.copy_(_repeated(tensor, target))
    for name, module in wide.named_modules():
        if isinstance(module, AttentionBlock):
            # n channels for one make dot products n times as large, and the root that divides them sqrt(n) times.
            times = module.q.in_channels / narrow.get_submodule(name).q.in_channels
            for parameter in module.q.parameters():
                parameter.div_(math.sqrt(times))


def _repeated(tensor: Tensor, target: Tensor) -> Tensor:
    """[O, I, ...] or [O] -> the shape of ``target``: each output is repeated, each input is spread over its copies."""
    tensor = tensor.repeat_interleave(target.shape[0] // tensor.shape[0], dim=0)
    if tensor.ndim > 1:
        times = target.shape[1] // tensor.shape[1]
        tensor = tensor.repeat_interleave(times, dim=1) / times
    assert tensor.shape == target.shape
    return tensor
