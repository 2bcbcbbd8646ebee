"""Trains a small image tokenizer on drawn shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from flashar_cli.config import AnyTokenizerConfig, VQConfig, validated
from flashar_cli.data.captioned_shapes import draw_captioned_batch
from flashar_cli.data.shapes import HELD_OUT_SEED, TRAINING_SEED, draw_batch
from flashar_cli.files.tensors import read_safetensors
from flashar_cli.inputs.reading import read_json
from flashar_cli.tokenizers import ScaleTokenizer, build_tokenizer
from flashar_cli.tokenizers.base import PixelNetwork
from flashar_cli.tokenizers.codebook import CodebookTokenizer, TrainingOutput
from flashar_cli.tokenizers.layers import AttentionBlock, ResBlock
from flashar_cli.tokenizers.next_scale.vector import MultiScaleVQ
from flashar_cli.tokenizers.pixels import from_uint8, psnr_db, to_uint8
from scripts.tiny.codebook_average import CodebookAverage
from scripts.tiny.scale_tokenizer import ScaleOutput, ScaleReport, ScaleTraining, evaluate_scale_tokenizer

# 64x64 images -> 16x16 codes. Both ends normalise 64 channels before their last convolution: with 32, GroupNorm(32)
# would normalise every channel by itself over the whole image and take its mean colour away.
TINY_CONFIG = VQConfig(
    codebook_size=256,
    codebook_dim=8,
    channels=32,
    encoder_multipliers=(1, 1, 2),
    decoder_multipliers=(2, 1, 1),
    num_res_blocks=1,
    latent_channels=32,
)


@dataclass(frozen=True)
class TokenizerTraining:
    """How a tokenizer is trained. Losses are means over pixels in [-1, 1] or over unit latents."""

    steps: int = 1500
    batch_size: int = 16
    continuous_steps: int = 60  # the decoder sees latents, not codes: latents spread out before codes settle on them
    blending_steps: int = 140  # then it sees more and more of the codes
    lr: float = 2e-3  # peak, AdamW
    warmup_steps: int = 30
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    absolute_weight: float = 0.1  # L1 beside the squared error
    commitment_weight: float = 0.1
    smoothness_weight: float = 0.005  # squared difference of neighbouring latents: fewer, more predictable codes
    codebook_decay: float = 0.95  # per step, of the running mean that each code is
    restart_every: int = 20  # steps
    restart_below: float = 0.2  # latents of a batch that chose a code, on average
    restart_until: float = 0.7  # of the steps
    merged_codes: int = 64  # codes left after training, the closest ones merged
    merging_images: int = 400
    seed: int = 0
    captioned: bool = False  # drawn in named colours, as captions say them
    bfloat16: bool = True  # autocast
    compiled: bool = True  # torch.compile: a minute at the start, then several times faster, mostly in GroupNorm


@dataclass(frozen=True)
class TokenizerReport:
    """Quality on held-out images."""

    num_images: int
    psnr_db: float
    codes_used: int
    code_entropy_nats: float  # of single codes
    code_entropy_given_left_nats: float  # of a code given its left neighbour, from bigram counts


def train_tokenizer(
    config: AnyTokenizerConfig, settings: TokenizerTraining, log: Callable[[str], None] = lambda line: None
) -> Any:
    """Trains on shapes of ``TRAINING_SEED``; on one machine the result follows from the arguments alone."""
    torch.manual_seed(settings.seed)
    model = build_tokenizer(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainee, codebook = _trainee(model)
    codebook.requires_grad_(False)
    _start_linear(model, codebook)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.lr,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
    )
    forward = torch.compile(trainee) if settings.compiled else trainee
    average = CodebookAverage(codebook, settings.codebook_decay, settings.seed, unit=trainee is model)
    for step, images in enumerate(_batches(settings)):
        optimizer.param_groups[0]["lr"] = settings.lr * _schedule(step, settings)
        strength = torch.tensor(_strength(step, settings))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            output = forward(images, strength)
        loss, error = _loss(output, images, settings, float(strength))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        tokens, encoded = output.encoded if isinstance(output, ScaleOutput) else ([output.tokens], [output.latent])
        average.update(tokens, encoded)
        if (step + 1) % settings.restart_every == 0:
            restarted = 0
            if step < settings.restart_until * settings.steps:
                restarted = average.restart_unused(encoded, settings.restart_below)
            used = torch.cat([each.flatten() for each in tokens]).unique().numel()
            log(
                f"step {step + 1}/{settings.steps} loss {loss.item():.4f} psnr_db {10 * math.log10(4 / error):.2f} "
                f"codes_in_batch {used} restarted {restarted}"
            )
    codebook.requires_grad_(True)
    return model.eval()


class TrainedTokenizer(BaseModel):
    """What is read of ``tokenizer.json``: the facts that its weights need."""

    config: Annotated[AnyTokenizerConfig, Field(discriminator="kind")]


def save_trained_tokenizer(
    directory: Path, tokenizer: PixelNetwork, facts: dict[str, Any], num_images: int = 1000, captioned: bool = False
) -> dict[str, Any]:
    """Writes ``tokenizer.safetensors`` (float16), and ``tokenizer.json`` with the config, ``facts`` and the quality of
    the rounded weights on ``num_images`` held-out images; returns what is in the latter.
    """
    state = half(tokenizer)
    rounded = float32_tokenizer(tokenizer.config, state)
    held_out: TokenizerReport | ScaleReport
    if isinstance(rounded, ScaleTokenizer):
        held_out = evaluate_scale_tokenizer(rounded, held_out_images(num_images, captioned))
    else:
        held_out = evaluate_tokenizer(rounded, num_images, captioned)
    document = {
        "config": tokenizer.config.model_dump(),
        **facts,
        "num_parameters": sum(tensor.numel() for tensor in state.values()),
        "held_out": asdict(held_out),
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / "tokenizer.safetensors")
    (directory / "tokenizer.json").write_text(json.dumps(document, indent=2) + "\n")
    return document


def load_trained_tokenizer(directory: Path) -> Any:
    """What ``save_trained_tokenizer`` wrote, in float32. Raises FlasharError where it is not whole."""
    path = directory / "tokenizer.json"
    config = validated(read_json(path), TrainedTokenizer, str(path), "a trained tokenizer's description").config
    return float32_tokenizer(config, read_safetensors(directory / "tokenizer.safetensors"))


def half(tokenizer: PixelNetwork) -> dict[str, Tensor]:
    """The weights in float16."""
    return {name: tensor.half().contiguous() for name, tensor in tokenizer.state_dict().items()}


def float32_tokenizer(config: AnyTokenizerConfig, state: dict[str, Tensor]) -> Any:
    """A tokenizer in float32 with the values of ``state``, of any dtype."""
    tokenizer = build_tokenizer(config).eval()
    tokenizer.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return tokenizer


def evaluate_tokenizer(
    model: CodebookTokenizer, num_images: int = 1000, captioned: bool = False, batch_size: int = 50
) -> TokenizerReport:
    """PSNR of uint8 reconstructions and code statistics on the first images of ``HELD_OUT_SEED``."""
    codes, total = [], 0.0
    with torch.no_grad():
        for images in held_out_images(num_images, captioned, batch_size):
            batch_codes = model.encode(images)
            seen = from_uint8(to_uint8(model.decode(batch_codes)))
            total += len(images) * 10 ** (-psnr_db(seen, images) / 10)
            codes.append(batch_codes)
    grids = torch.cat(codes)  # [num_images, H, W]
    size = model.config.codebook_size
    single = torch.bincount(grids.flatten(), minlength=size)
    left = grids[:, :, :-1].flatten()
    pairs = torch.bincount(left * size + grids[:, :, 1:].flatten(), minlength=size * size)
    return TokenizerReport(
        num_images=num_images,
        psnr_db=-10 * math.log10(total / num_images),
        codes_used=int((single > 0).sum()),
        code_entropy_nats=_entropy(single),
        code_entropy_given_left_nats=_entropy(pairs) - _entropy(torch.bincount(left, minlength=size)),
    )


def _batches(settings: TokenizerTraining) -> Iterator[Tensor]:
    """float [batch_size, 3, 64, 64]; every image is new."""
    for step in range(settings.steps):
        images = drawn(TRAINING_SEED, step * settings.batch_size, settings.batch_size, settings.captioned)
        yield images.contiguous(memory_format=torch.channels_last)


def held_out_images(num_images: int, captioned: bool, batch_size: int = 50) -> Iterator[Tensor]:
    """The first images of ``HELD_OUT_SEED``, so many at a time, as ``drawn``."""
    for start in range(0, num_images, batch_size):
        yield drawn(HELD_OUT_SEED, start, min(batch_size, num_images - start), captioned)


def drawn(seed: int, start: int, count: int, captioned: bool) -> Tensor:
    """Images start .. start+count-1 of a seed, float [count, 3, 64, 64] in [-1, 1]: those of captions or of classes."""
    return from_uint8((draw_captioned_batch if captioned else draw_batch)(seed, start, count)[0])


def _trainee(model: PixelNetwork) -> tuple[nn.Module, Tensor]:
    """The module whose forward is trained, and its codebook."""
    if isinstance(model, ScaleTokenizer):
        assert isinstance(model.quantizer, MultiScaleVQ), "bits have no codebook"
        return ScaleTraining(model), model.quantizer.embedding.weight
    assert isinstance(model, CodebookTokenizer), "tokenizers of one grid have a codebook"
    return model, model.quantize.embedding.weight


@torch.no_grad()
def _start_linear(model: nn.Module, codebook: Tensor) -> None:
    """Residual and attention blocks start as the identity; code vectors point in all directions, with length 1."""
    for module in model.modules():
        if isinstance(module, ResBlock):
            module.conv2.weight.zero_()
        elif isinstance(module, AttentionBlock):
            module.proj_out.weight.zero_()
    codebook.copy_(F.normalize(torch.nn.init.normal_(codebook), dim=1))


def _loss(output: TrainingOutput, images: Tensor, settings: TokenizerTraining, strength: float) -> tuple[Tensor, float]:
    """The training loss, and the squared error alone."""
    reconstruction = output.reconstruction.float()
    squared = F.mse_loss(reconstruction, images)
    loss = squared + settings.absolute_weight * F.l1_loss(reconstruction, images)
    loss = loss + strength * (output.codebook_loss + settings.commitment_weight * output.commitment_loss)
    if settings.smoothness_weight and strength:
        latent = output.latent
        across = (latent[..., 1:] - latent[..., :-1]).square().mean()
        down = (latent[..., 1:, :] - latent[..., :-1, :]).square().mean()
        loss = loss + strength * settings.smoothness_weight * (across + down)
    return loss, squared.item()


def _strength(step: int, settings: TokenizerTraining) -> float:
    """How much of the codes the decoder sees: 0, then rising to 1."""
    return min(1.0, max(0.0, (step - settings.continuous_steps) / settings.blending_steps))


def _schedule(step: int, settings: TokenizerTraining) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def _entropy(counts: Tensor) -> float:
    """Nats."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log()).sum())
