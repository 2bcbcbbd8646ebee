"""VAR's sampler on the weights that are benched."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking.arms import Sampler
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.published import VAR
from flashar_cli.benchmarking.published.base import Upstream
from flashar_cli.benchmarking.published.importing import MISFITS, import_code, one_line, unchanged_process
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import ClassPrefix, MultiScaleVQConfig, NextScaleConfig, Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.grid import Grid
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.tokenizers import ScaleTokenizer
from flashar_cli.tokenizers.next_scale.var_upstream import STATISTICS

PACKAGES = ("models", "dist", "utils")
NEEDED = {"models.var": ("VAR", "sample_with_top_k_top_p_", "dist"), "models.vqvae": ("VQVAE",)}
PUBLISHED = MultiScaleVQConfig()  # of its levels upstream's constructor knows no others


class VARUpstream(Upstream):
    """VAR's sampler around the very tensors of our model. Those of another dtype than float32 it has as float32 copies,
    under autocast, as upstream's demo runs it.
    """

    def __init__(self, code: Path, var: ModuleType, vqvae: ModuleType) -> None:
        super().__init__(VAR, code)
        self.var, self.vqvae = var, vqvae

    @classmethod
    def of(cls, code: Path) -> VARUpstream:
        """Imports a clone's code. Raises FlasharError."""
        return cls(code, *import_code(code, PACKAGES, NEEDED))

    def obstacle(self, config: NextScaleConfig, grid: Grid) -> str | None:
        part, own = config.transformer, config.tokenizer
        assert isinstance(own, MultiScaleVQConfig), "of a VAR model"
        if (own.multipliers, own.num_res_blocks) != (PUBLISHED.multipliers, PUBLISHED.num_res_blocks):
            return f"image tokenizers of levels {PUBLISHED.multipliers}, this one has {own.multipliers}"
        if any(scale.height != scale.width for scale in config.scales(grid)):
            return f"square maps, here they end with {grid}"
        if part.ffn_dim % part.dim:
            return f"feed-forwards a whole number of times as wide as the model, here are {part.ffn_dim} and {part.dim}"
        return None

    def check_sampling(self, sampling: Sampling) -> None:
        if sampling.cfg_schedule != "linear" or sampling.cfg_scale == 1 or sampling.cfg_interval != (0.0, 1.0):
            raise FlasharError(
                "--upstream: VAR's sampler guides every image, the more the later the scale; use other "
                "--cfg-scale than 1, and no other schedule or interval"
            )
        if sampling.temperature not in (0.0, 1.0) or sampling.min_p > 0:
            raise FlasharError(
                f"the model samples with temperature {sampling.temperature:g} and min_p {sampling.min_p:g}, which "
                "VAR's sampler lacks; leave --upstream out"
            )

    def prepare(self, subject: BenchModel, batch: Batch) -> Sampler:
        self.check_sampling(batch.sampling)
        model: Any = self.model(subject, batch.grid)
        sampling, labels = batch.sampling, batch.conditions.tensors["labels"]
        greedy = sampling.temperature == 0
        dtype, kind = subject.model.dtype, labels.device.type
        settings = {
            "cfg": sampling.cfg_scale - 1,
            "top_k": 1 if greedy else sampling.top_k,
            "top_p": 0.0 if greedy or sampling.top_p == 1 else sampling.top_p,
        }
        # It returns pixels; its tokens and the latent are seen on their way.
        vae, draw = model.vae_proxy[0], self.var.sample_with_top_k_top_p_
        latents: list[Tensor] = []

        @torch.inference_mode(False)
        @torch.no_grad()
        def sample(mark: Callable[[], None]) -> Tensor:
            tokens: list[Tensor] = []

            def drawn(logits: Tensor, *given: object, **named: object) -> Tensor:
                mark()
                found: Tensor = draw(logits, *given, **named)
                tokens.append(found[:, :, 0])
                return found

            def keep(latent: Tensor) -> Tensor:
                latents[:] = [latent]
                return latent.new_zeros(1)

            self.var.__dict__["sample_with_top_k_top_p_"] = drawn
            vae.__dict__["fhat_to_img"] = keep
            try:
                with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                    warnings.simplefilter("ignore")
                    with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                        model.autoregressive_infer_cfg(B=len(labels), label_B=labels, g_seed=batch.seed, **settings)
            finally:
                self.var.__dict__["sample_with_top_k_top_p_"] = draw
                del vae.__dict__["fhat_to_img"]
            return torch.cat(tokens, dim=1)

        def to_pixels(tokens: Tensor) -> Tensor:
            with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                images: Tensor = vae.fhat_to_img(latents[0])
            return images

        return Sampler(sample, to_pixels if subject.makes_pixels else None, model.head, marks_steps=True)

    @torch.inference_mode(False)
    def build(self, model: NextScaleModel, tokenizer: ScaleTokenizer, grid: Grid) -> nn.Module:
        config, part = model.config, model.config.transformer
        own, sides = config.tokenizer, tuple(scale.height for scale in config.scales(grid))
        assert isinstance(own, MultiScaleVQConfig) and isinstance(config.prefix, ClassPrefix), "of a VAR model"
        family = get_family(VAR.family)
        try:
            with unchanged_process(), torch.device(model.device):
                self.var.dist.__dict__["__device"] = model.device
                vae = self.vqvae.VQVAE(
                    vocab_size=own.codebook_size,
                    z_channels=own.codebook_dim,
                    ch=own.channels,
                    quant_resi=own.residual_share,
                    share_quant_resi=own.num_residuals,
                    v_patch_nums=sides,
                )
                built: nn.Module = self.var.VAR(
                    vae,
                    num_classes=config.prefix.num_classes,
                    depth=part.num_layers,
                    embed_dim=part.dim,
                    num_heads=part.num_heads,
                    mlp_ratio=part.ffn_dim // part.dim,
                    norm_eps=part.norm_eps,
                    shared_aln=part.shared_modulation,
                    attn_l2_norm=part.cosine_attention,
                    patch_nums=sides,
                )
            state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
            built.load_state_dict(family.to_files(family.to_upstream(state, config), config), assign=True)
            parts = family.tokenizer_to_upstream(tokenizer.state_dict())
            # Statistics of training, whose number of rows is that of the scales it was trained on.
            vae.load_state_dict({**parts, STATISTICS: vae.state_dict()[STATISTICS]}, assign=True)
        except MISFITS as error:
            raise FlasharError(f"--upstream is of another layout than {VAR.clone}: {one_line(error)}") from None
        return built.eval()
