"""The samplers of LlamaGen and NAR, which share a layout, on the weights that are benched."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking.arms import Sampler
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.published import LLAMAGEN, NAR, Publication
from flashar_cli.benchmarking.published.base import Upstream
from flashar_cli.benchmarking.published.importing import MISFITS, import_code, one_line, unchanged_process
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel

PACKAGES = ("autoregressive", "utils")
# What is called of each module.
NEEDED = {
    "autoregressive.models.gpt": ("ModelArgs", "Transformer"),
    "autoregressive.models.generate": ("generate",),
}
# LlamaGen's names of its prefixes and of their fields.
MODEL_TYPES = {"class": "c2i", "caption": "t2i"}
PREFIX_ARGS = {"num_classes": "num_classes", "feature_dim": "caption_dim"}


@dataclass(frozen=True)
class Layout:
    """What else there is to know of a publication in this layout."""

    obstacle: Callable[[RasterConfig, Grid], str | None]  # what it runs and the model is not; None where it runs it
    model_args: Callable[[RasterConfig, Grid], dict[str, Any]]  # upstream's ModelArgs
    branch_arg: str | None = None  # counts the branch's blocks in ModelArgs; None: upstream's model has no branch


def _llamagen_obstacle(config: RasterConfig, grid: Grid) -> str | None:
    backbone, prefix = config.backbone, config.prefix
    if grid.height != grid.width:
        return f"square grids, this one is {grid}"
    if prefix.kind not in MODEL_TYPES:
        return f"models of {' or '.join(MODEL_TYPES)} prefixes, this one's is {prefix.kind}"
    if backbone.num_kv_heads != backbone.num_heads:
        return f"as many key heads as query heads, here are {backbone.num_kv_heads} and {backbone.num_heads}"
    return None


def _llamagen_args(config: RasterConfig, grid: Grid) -> dict[str, Any]:
    backbone, prefix = config.backbone, config.prefix
    facts = prefix.model_dump()
    return {
        "dim": backbone.dim,
        "n_layer": backbone.num_layers,
        "n_head": backbone.num_heads,
        "n_kv_head": backbone.num_kv_heads,
        # Upstream derives the width from these: any width below ffn_dim, rounded up to a multiple of it.
        "multiple_of": backbone.ffn_dim,
        "ffn_dim_multiplier": backbone.ffn_dim / math.floor(8 * backbone.dim / 3) / 2,
        "rope_base": backbone.rope_base,
        "norm_eps": backbone.norm_eps,
        "vocab_size": backbone.vocab_size,
        "block_size": grid.num_cells,
        "cls_token_num": prefix.longest,
        "model_type": MODEL_TYPES[prefix.kind],
        **{theirs: facts[ours] for ours, theirs in PREFIX_ARGS.items() if ours in facts},
    }


def _nar_obstacle(config: RasterConfig, grid: Grid) -> str | None:
    # Upstream's branch follows the last block, and both heads count the same.
    branch, num_layers = config.branch, config.backbone.num_layers
    if branch is not None and branch.gate == "mean" and branch.layer == num_layers:
        return _llamagen_obstacle(config, grid)
    got = "none" if branch is None else f"gate {branch.gate} at layer {branch.layer}"
    return f"a branch with gate mean at layer {num_layers}, this model's is {got}"


def _nar_args(config: RasterConfig, grid: Grid) -> dict[str, Any]:
    assert config.branch is not None, "refused by the obstacle"
    return {**_llamagen_args(config, grid), "medusa_attention_num": config.branch.depth}


LAYOUTS = {
    LLAMAGEN: Layout(_llamagen_obstacle, _llamagen_args),
    NAR: Layout(_nar_obstacle, _nar_args, "medusa_attention_num"),
}


class AutoregressiveUpstream(Upstream):
    """LlamaGen's sampler or NAR's, around the very tensors of our model."""

    def __init__(self, publication: Publication, code: Path, gpt: ModuleType, sampler: ModuleType) -> None:
        super().__init__(publication, code)
        self.layout, self.gpt, self.sampler = LAYOUTS[publication], gpt, sampler

    @classmethod
    def of(cls, code: Path) -> AutoregressiveUpstream:
        """Imports a clone's code, without the sampler's progress bar. Raises FlasharError."""
        gpt, sampler = import_code(code, PACKAGES, NEEDED)
        if hasattr(sampler, "tqdm"):
            sampler.__dict__["tqdm"] = lambda iterable, *_, **__: iterable
        fields = inspect.signature(gpt.ModelArgs).parameters
        publication = next((one for one, layout in LAYOUTS.items() if layout.branch_arg in fields), LLAMAGEN)
        return cls(publication, code, gpt, sampler)

    def obstacle(self, config: RasterConfig, grid: Grid) -> str | None:
        return self.layout.obstacle(config, grid)

    def check_sampling(self, sampling: Sampling) -> None:
        if sampling.cfg_scale < 1:
            raise FlasharError(f"--cfg-scale is {sampling.cfg_scale:g}, but upstream guides from 1 on; use >= 1")
        if sampling.cfg_schedule != "constant" or sampling.cfg_interval != (0.0, 1.0):
            raise FlasharError(
                "--upstream: LlamaGen's and NAR's samplers guide every token alike; use no --cfg-schedule and no "
                "--cfg-interval"
            )
        if sampling.min_p > 0:
            raise FlasharError(
                f"the model samples with min_p {sampling.min_p:g}, which upstream's sampler lacks; leave --upstream out"
            )

    def prepare(self, subject: BenchModel, batch: Batch) -> Sampler:
        self.check_sampling(batch.sampling)
        model = self.model(subject, batch.grid)
        grid, sampling, given = batch.grid, batch.sampling, batch.conditions.tensors
        settings: dict[str, Any] = {
            "cfg_scale": sampling.cfg_scale,
            "temperature": sampling.temperature or 1.0,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "sample_logits": sampling.temperature > 0,
        }
        if "features" in given:
            settings["emb_masks"] = mask = given["mask"].to(subject.model.dtype)
            condition = given["features"].to(mask) * mask[..., None]
        else:
            condition = given["labels"]
        devices = [condition.device] if condition.is_cuda else []

        @torch.inference_mode(False)
        @torch.no_grad()
        def sample(mark: Callable[[], None]) -> Tensor:
            def after_prefix(*_: object) -> None:
                handle.remove()
                mark()

            handle = model.register_forward_hook(after_prefix)
            with (
                torch.random.fork_rng(devices=devices),
                warnings.catch_warnings(),
                contextlib.redirect_stdout(sys.stderr),
            ):
                # It calls what PyTorch has deprecated, at every step.
                warnings.simplefilter("ignore")
                torch.manual_seed(batch.seed)
                tokens = self.sampler.generate(model, condition, grid.num_cells, **settings)
            return torch.as_tensor(tokens).long().reshape(-1, grid.height, grid.width)

        # Token decode as the published samplers have it: float32, eager, no check of the tokens.
        to_pixels = subject.tokenizer.decode_unchecked if subject.makes_pixels else None
        return Sampler(sample, to_pixels, model)

    @torch.inference_mode(False)
    def build(self, model: FlasharModel, tokenizer: object, grid: Grid) -> nn.Module:
        """The parts of a branch are left out where upstream has none."""
        settings, state = self.layout.model_args(model.config, grid), model.state_dict()
        if self.layout.branch_arg is None:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("branch.")}
        try:
            with unchanged_process(), torch.device(model.device):
                built: nn.Module = self.gpt.Transformer(self.gpt.ModelArgs(**settings))
            family = get_family(self.publication.family)
            built.load_state_dict(family.to_upstream(state, model.config), assign=True)
        except MISFITS as error:
            raise FlasharError(
                f"--upstream is of another layout than {self.publication.clone}: {one_line(error)}"
            ) from None
        return built.eval()
