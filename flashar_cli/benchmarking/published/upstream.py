"""A published sampler on the weights that are benched.

Letters: B images, H rows, W columns, N = H*W tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking.arms import Sampler, pixels_of
from flashar_cli.benchmarking.environment import git
from flashar_cli.benchmarking.published import PUBLICATIONS
from flashar_cli.benchmarking.published.base import Publication
from flashar_cli.benchmarking.published.importing import (
    MISFITS,
    MODEL_FILE,
    SAMPLER_FILE,
    import_code,
    one_line,
    unchanged_process,
)
from flashar_cli.benchmarking.published.llamagen import LLAMAGEN
from flashar_cli.benchmarking.reports.document import UpstreamReport
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.decoding.decoder import choose_order, decode
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams


@dataclass
class Upstream:
    """The sampler of one clone, whose code lies in the folder ``code``. ``check`` and ``prepare`` build its model for
    the grid that the subject has then.
    """

    publication: Publication
    code: Path
    gpt: ModuleType
    sampler: ModuleType
    _built: dict[str, nn.Module] = field(default_factory=dict)

    def check_model(self, config: ModelConfig) -> None:
        """Raises FlasharError for a model that this sampler can't run."""
        own, grid, backbone = self.publication, config.order_grid, config.backbone
        if config.family != own.family:
            other = PUBLICATIONS.get(config.family)
            raise FlasharError(
                f"--upstream is {own.clone}, which runs {own.family} models; this one is of family {config.family}; "
                f"{'leave --upstream out' if other is None else f'give {other.clone}'}"
            )
        obstacle = own.obstacle(config)
        if obstacle is None and grid.height != grid.width:
            obstacle = f"square grids, this one is {grid}"
        if obstacle is None and backbone.num_kv_heads != backbone.num_heads:
            obstacle = f"as many key heads as query heads, here are {backbone.num_kv_heads} and {backbone.num_heads}"
        if obstacle is not None:
            raise FlasharError(f"--upstream, {own.clone}, runs {obstacle}; leave --upstream out")

    def check_params(self, params: SamplingParams) -> None:
        """Raises FlasharError for settings that upstream does not have."""
        if params.cfg_scale < 1:
            raise FlasharError(
                f"--cfg-scale is {params.cfg_scale:g}, but upstream's sampler guides from 1 on; use >= 1"
            )

    def prepare(self, subject: BenchModel, conditions: Conditions, params: SamplingParams, seed: int) -> Sampler:
        """The arm at one batch size. Raises FlasharError as ``check_params``."""
        self.check_params(params)
        model = self._model(subject.model)
        return Sampler(self._draw(model, subject.model.config, conditions, params, seed), pixels_of(subject), model)

    @torch.inference_mode(False)
    @torch.no_grad()
    def check(self, subject: BenchModel, conditions: Conditions, cfg_scale: float) -> UpstreamReport:
        """Decodes greedily with our decoder of the same order and with upstream's, and counts equal tokens."""
        own = self.publication
        greedy = SamplingParams(cfg_scale=cfg_scale, temperature=0.0)
        sampler = self.prepare(subject, conditions, greedy, seed=0)
        grid = subject.model.config.order_grid
        noise_BN = torch.zeros(len(conditions), grid.num_cells)
        ours = decode(subject.model, conditions, choose_order(subject.model, own.decoder), greedy, noise_BN)
        theirs = sampler.draw(lambda: None)
        return UpstreamReport(
            repository=own.repository,
            commit=self._commit(),
            files_sha256={
                name: hashlib.sha256((self.code / name).read_bytes()).hexdigest() for name in (MODEL_FILE, SAMPLER_FILE)
            },
            decoder=own.decoder,
            num_tokens=ours.numel(),
            num_equal_tokens=int((ours == theirs).sum()),
        )

    def _commit(self) -> str | None:
        tops = [self.code, self.code.parent] if self.code.name == self.publication.folder else [self.code]
        # Only the clone's own: a copy without .git may lie in a checkout of something else.
        return git(self.code, "rev-parse", "HEAD") if any((top / ".git").exists() for top in tops) else None

    def _model(self, model: FlasharModel) -> nn.Module:
        key = str(model.config.order_grid)
        if key not in self._built:
            self.check_model(model.config)
            self._built.clear()
            self._built[key] = _build(self.publication, self.gpt, model)
        return self._built[key]

    def _draw(
        self, model: nn.Module, config: ModelConfig, conditions: Conditions, params: SamplingParams, seed: int
    ) -> Callable[[Callable[[], None]], Tensor]:
        grid = config.order_grid
        settings: dict[str, Any] = {
            "cfg_scale": params.cfg_scale,
            "temperature": params.temperature or 1.0,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "sample_logits": params.temperature > 0,
        }
        condition = conditions.labels
        if conditions.features is not None and conditions.mask is not None:
            mask = conditions.mask.to(model.tok_embeddings.weight)  # type: ignore[union-attr,arg-type]
            condition = conditions.features.to(mask) * mask[..., None]
            settings["emb_masks"] = mask
        devices = [condition.device] if condition is not None and condition.is_cuda else []

        @torch.inference_mode(False)
        @torch.no_grad()
        def draw(mark: Callable[[], None]) -> Tensor:
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
                torch.manual_seed(seed)
                tokens = self.sampler.generate(model, condition, grid.num_cells, **settings)
            return torch.as_tensor(tokens).long().reshape(-1, grid.height, grid.width)

        return draw


def load_upstream(directory: Path) -> Upstream:
    """Imports the model and the sampler of a clone, or of its folder with the code, and tells from them whose they are.

    Raises FlasharError where it is no such clone, or needs what is not installed.
    """
    code = _find_code(directory).resolve()
    gpt, sampler = import_code(code)
    fields = inspect.signature(gpt.ModelArgs).parameters
    publication = next((one for one in PUBLICATIONS.values() if one.branch_setting in fields), LLAMAGEN)
    return Upstream(publication, code, gpt, sampler)


def _find_code(directory: Path) -> Path:
    for publication in PUBLICATIONS.values():
        folder = directory / publication.folder
        if all((folder / name).is_file() for name in (MODEL_FILE, SAMPLER_FILE)):
            return folder
    missing = next(name for name in (MODEL_FILE, SAMPLER_FILE) if not (directory / name).is_file())
    expected = " or ".join(publication.clone for publication in PUBLICATIONS.values())
    raise FlasharError(f"--upstream is {directory}, which has no {missing}; expected {expected}")


@torch.inference_mode(False)
def _build(publication: Publication, gpt: ModuleType, model: FlasharModel) -> nn.Module:
    """Upstream's model around the very tensors of ours."""
    config, backbone, prefix = model.config, model.config.backbone, model.config.prefix
    settings: dict[str, Any] = {
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
        "block_size": config.order_grid.num_cells,
        "cls_token_num": prefix.length,
        "model_type": "c2i" if isinstance(prefix, ClassPrefix) else "t2i",
        **({"num_classes": prefix.num_classes} if isinstance(prefix, ClassPrefix) else {}),
        **({} if isinstance(prefix, ClassPrefix) else {"caption_dim": prefix.feature_dim}),
    }
    if publication.branch_setting is not None:
        assert config.branch is not None, "refused by the publication's obstacle"
        settings[publication.branch_setting] = config.branch.depth
    family = get_family(publication.family)
    state = {
        family.to_upstream(name, backbone.num_layers): tensor
        for name, tensor in model.state_dict().items()
        if publication.branch_setting is not None or not name.startswith("branch.")
    }
    try:
        with unchanged_process(), torch.device(model.device):
            built: nn.Module = gpt.Transformer(gpt.ModelArgs(**settings))
        built.load_state_dict(state, assign=True)
    except MISFITS as error:
        raise FlasharError(f"--upstream is of another layout than {publication.clone}: {one_line(error)}") from None
    return built.eval()
