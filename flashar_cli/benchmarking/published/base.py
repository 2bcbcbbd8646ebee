"""What every published sampler offers as an arm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flashar_cli.benchmarking.arms import Sampler
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.published import PUBLICATIONS, Publication
from flashar_cli.benchmarking.reports.document import UpstreamReport
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import Sampling
from flashar_cli.decoding.decoders import get_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine.environment import git


class Upstream(ABC):
    """The sampler of one clone, whose code lies in ``code``, on the weights of our model."""

    publication: Publication

    def __init__(self, publication: Publication, code: Path) -> None:
        self.publication, self.code = publication, code
        self._built: dict[Grid, nn.Module] = {}  # of the latest grid

    @abstractmethod
    def obstacle(self, config: Any, grid: Grid) -> str | None:
        """What the sampler runs and a model of its family is not; None where it runs the model."""

    @abstractmethod
    def check_sampling(self, sampling: Sampling) -> None:
        """Raises FlasharError for settings that upstream does not have."""

    @abstractmethod
    def build(self, model: Any, tokenizer: Any, grid: Grid) -> nn.Module:
        """Upstream's model with the weights of ours. Raises FlasharError for a clone of another layout."""

    @abstractmethod
    def prepare(self, subject: BenchModel, batch: Batch) -> Sampler:
        """The arm at one batch size. Raises FlasharError as ``check_model`` and ``check_sampling``."""

    def check_model(self, config: Any, grid: Grid) -> None:
        """Raises FlasharError for a model that this sampler can't run."""
        own = self.publication
        if config.family != own.family:
            other = PUBLICATIONS.get(config.family)
            raise FlasharError(
                f"--upstream is {own.clone}, which runs {own.family} models; this one is of family {config.family}; "
                f"{'leave --upstream out' if other is None else f'give {other.clone}'}"
            )
        obstacle = self.obstacle(config, grid)
        if obstacle is not None:
            raise FlasharError(f"--upstream, {own.clone}, runs {obstacle}; leave --upstream out")

    def model(self, subject: BenchModel, grid: Grid) -> nn.Module:
        """Upstream's model for a grid; that of the latest one is kept."""
        if grid not in self._built:
            self.check_model(subject.model.config, grid)
            self._built.clear()
            self._built[grid] = self.build(subject.model, subject.tokenizer, grid)
        return self._built[grid]

    @torch.inference_mode(False)
    @torch.no_grad()
    def check(self, subject: BenchModel, batch: Batch) -> UpstreamReport:
        """Decodes greedily with our decoder of the same order and with upstream's, and counts equal tokens."""
        own = self.publication
        greedy = replace(batch, sampling=greedy_as(batch.sampling))
        theirs = self.prepare(subject, greedy).sample(lambda: None)
        engine, decoder = Engine(subject.model, subject.tokenizer), get_decoder(own.decoder)
        ours = engine.decode(decoder, batch.conditions, greedy.sampling, batch.uniform_BN, grid=batch.grid)
        return UpstreamReport(
            repository=own.repository,
            commit=self._commit(),
            files_sha256={name: sha256((self.code / name).read_bytes()).hexdigest() for name in own.files},
            decoder=own.decoder,
            num_tokens=ours.numel(),
            num_equal_tokens=int((ours == theirs).sum()),
        )

    def _commit(self) -> str | None:
        tops = [self.code, self.code.parent] if self.code.name == self.publication.folder else [self.code]
        # Only the clone's own: a copy without .git may lie in a checkout of something else.
        return git(self.code, "rev-parse", "HEAD") if any((top / ".git").exists() for top in tops) else None


def greedy_as(sampling: Sampling) -> Sampling:
    """Greedy sampling under the same guidance."""
    return Sampling(cfg_scale=sampling.cfg_scale, cfg_schedule=sampling.cfg_schedule, temperature=0.0)
