"""A published sampler on the weights that are benched."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking.arms import Sampler
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.published import LLAMAGEN, PUBLICATIONS, Publication
from flashar_cli.benchmarking.published.importing import FILES, MISFITS, import_code, one_line, unchanged_process
from flashar_cli.benchmarking.reports.document import UpstreamReport
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.decoding.decoders import DECODERS
from flashar_cli.decoding.engine import Engine
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.grid import Grid
from flashar_cli.machine.environment import git
from flashar_cli.models.flashar import FlasharModel


@dataclass
class Upstream:
    """The sampler of one clone, whose code lies in ``code``, around the very tensors of our model."""

    publication: Publication
    code: Path
    gpt: ModuleType
    sampler: ModuleType
    _built: dict[Grid, nn.Module] = field(default_factory=dict)  # of the latest grid

    def check_model(self, config: RasterConfig, grid: Grid) -> None:
        """Raises FlasharError for a model that this sampler can't run."""
        own = self.publication
        if config.family != own.family:
            other = PUBLICATIONS.get(config.family)
            raise FlasharError(
                f"--upstream is {own.clone}, which runs {own.family} models; this one is of family {config.family}; "
                f"{'leave --upstream out' if other is None else f'give {other.clone}'}"
            )
        obstacle = own.obstacle(config, grid)
        if obstacle is not None:
            raise FlasharError(f"--upstream, {own.clone}, runs {obstacle}; leave --upstream out")

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises FlasharError for settings that upstream does not have."""
        if sampling.cfg_scale < 1:
            raise FlasharError(f"--cfg-scale is {sampling.cfg_scale:g}, but upstream guides from 1 on; use >= 1")
        if sampling.min_p > 0:
            raise FlasharError(
                f"the model samples with min_p {sampling.min_p:g}, which upstream's sampler lacks; leave --upstream out"
            )

    def prepare(self, subject: BenchModel, batch: Batch) -> Sampler:
        """The arm at one batch size. Raises FlasharError as ``check_model`` and ``check_sampling``."""
        self.check_sampling(batch.sampling)
        model = self._model(subject.model, batch.grid)
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
        to_pixels = None if subject.tokenizer is None else subject.tokenizer.decode_unchecked
        return Sampler(sample, to_pixels, model)

    @torch.inference_mode(False)
    @torch.no_grad()
    def check(self, subject: BenchModel, batch: Batch) -> UpstreamReport:
        """Decodes greedily with our decoder of the same order and with upstream's, and counts equal tokens."""
        own = self.publication
        greedy = replace(batch, sampling=Sampling(cfg_scale=batch.sampling.cfg_scale, temperature=0.0))
        theirs = self.prepare(subject, greedy).sample(lambda: None)
        engine, decoder = Engine(subject.model), DECODERS[own.decoder]
        ours = engine.decode(decoder, batch.conditions, greedy.sampling, batch.uniform_BN, grid=batch.grid)
        return UpstreamReport(
            repository=own.repository,
            commit=self._commit(),
            files_sha256={name: sha256((self.code / name).read_bytes()).hexdigest() for name in FILES},
            decoder=own.decoder,
            num_tokens=ours.numel(),
            num_equal_tokens=int((ours == theirs).sum()),
        )

    def _commit(self) -> str | None:
        tops = [self.code, self.code.parent] if self.code.name == self.publication.folder else [self.code]
        # Only the clone's own: a copy without .git may lie in a checkout of something else.
        return git(self.code, "rev-parse", "HEAD") if any((top / ".git").exists() for top in tops) else None

    def _model(self, model: FlasharModel, grid: Grid) -> nn.Module:
        if grid not in self._built:
            self.check_model(model.config, grid)
            self._built.clear()
            self._built[grid] = _build(self.publication, self.gpt, model, grid)
        return self._built[grid]


def load_upstream(directory: Path) -> Upstream:
    """Imports the model and the sampler of a clone, or of its folder with the code. Raises FlasharError."""
    code = _find_code(directory).resolve()
    gpt, sampler = import_code(code)
    fields = inspect.signature(gpt.ModelArgs).parameters
    publication = next((one for one in PUBLICATIONS.values() if one.branch_arg in fields), LLAMAGEN)
    return Upstream(publication, code, gpt, sampler)


def _find_code(directory: Path) -> Path:
    for publication in PUBLICATIONS.values():
        folder = directory / publication.folder
        if all((folder / name).is_file() for name in FILES):
            return folder
    missing = next(name for name in FILES if not (directory / name).is_file())
    expected = " or ".join(publication.clone for publication in PUBLICATIONS.values())
    raise FlasharError(f"--upstream is {directory}, which has no {missing}; expected {expected}")


@torch.inference_mode(False)
def _build(publication: Publication, gpt: ModuleType, model: FlasharModel, grid: Grid) -> nn.Module:
    """Upstream's model around the very tensors of ours, those of a branch left out where it has none."""
    settings, state = publication.model_args(model.config, grid), model.state_dict()
    if publication.branch_arg is None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("branch.")}
    try:
        with unchanged_process(), torch.device(model.device):
            built: nn.Module = gpt.Transformer(gpt.ModelArgs(**settings))
        built.load_state_dict(get_family(publication.family).to_upstream(state, model.config), assign=True)
    except MISFITS as error:
        raise FlasharError(f"--upstream is of another layout than {publication.clone}: {one_line(error)}") from None
    return built.eval()
