"""A whole bench: checks what is asked for, refuses the impossible, and runs the parts in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from flashar_cli.benchmarking.agreement import Reference, agreements, references
from flashar_cli.benchmarking.arms import check_arms, default_arms, our_arms, refuse_impossible
from flashar_cli.benchmarking.estimate import expected_agreement_s, expected_s
from flashar_cli.benchmarking.plan import Plan, refuse_what_cannot_fit, sizes_that_fit
from flashar_cli.benchmarking.published.base import Upstream
from flashar_cli.benchmarking.published.loading import load_upstream
from flashar_cli.benchmarking.reports.document import Agreement, BenchReport
from flashar_cli.benchmarking.run import bench
from flashar_cli.benchmarking.subject import (
    BenchModel,
    PruningChoice,
    config_of,
    converted,
    grid_of_res,
    load_subject,
)
from flashar_cli.config import ModelConfig, NextScaleConfig
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.quantize import Scheme, check_scheme
from flashar_cli.errors import FlasharError
from flashar_cli.machine.rates import Rates


@dataclass
class Session:
    """A bench from the loaded model to the report: ``make_ready``, ``compare_arms``, then ``run``."""

    subject: BenchModel
    plan: Plan
    dtype: torch.dtype  # what is benched; until ``make_ready`` the model may still be the float32 reference
    quantize: Scheme | None
    compared: tuple[str, ...]
    sweeps: bool
    upstream: Upstream | None
    agreements: tuple[Agreement, ...] = ()
    _references: dict[str, Reference] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: str | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        res: tuple[int, ...] | None,
        batch_sizes: tuple[int, ...],
        arms: str | None,
        upstream: Path | None,
        repeats: int,
        warmup: int,
        cfg_scale: float | None,
        random_weights: bool,
        layers: int | None,
        no_pixels: bool,
        quantize: Scheme | None,
        agreement: bool,
        seed: int,
        choose_pruning: PruningChoice = lambda config: None,
    ) -> Session:
        """Loads the model; without a name the device's default with random weights. ``res`` are sides of images in
        pixels, by default the model's own; no ``batch_sizes`` are a sweep; ``arms`` is the text of ``--arms``.

        Raises FlasharError for what can't be had, as far as possible before anything is loaded.
        """
        is_random, sides = random_weights or model is None, res or ()
        name = model or ("llamagen-xl" if device.type == "cuda" else "llamagen-b")
        if arms is None:
            names = default_arms(_asked(config_of(name), choose_pruning))
        else:
            names = tuple(part.strip() for part in arms.split(","))
        names = check_arms(names, device, upstream is not None)
        if quantize is not None and upstream is not None:
            raise FlasharError(f"--quantize {quantize} changes the weights that --upstream runs on; bench them apart")
        if quantize is not None:
            check_scheme(quantize, device, dtype)
        theirs = None if upstream is None else load_upstream(upstream)
        compared = tuple(name for name, *_ in our_arms(names)) if agreement else ()
        if agreement and not compared:
            raise FlasharError("--agreement compares our own arms, and --arms names none; name one, e.g. flashar-eager")
        loaded_dtype = torch.float32 if compared else dtype
        subject = load_subject(name, sides, is_random, device, loaded_dtype, seed, layers, choose_pruning)
        if no_pixels:
            subject = replace(subject, wants_pixels=False)
        config = subject.model.config
        for _, decoder, _ in our_arms(names):
            choose_decoder(config, decoder)
        grids = tuple(grid_of_res(config, side) for side in sides) or (config.order_grid,)
        sampling = config.generation.changed(cfg_scale=cfg_scale)
        if theirs is not None:
            theirs.check_model(config, grids[0])
            theirs.check_sampling(sampling)
        plan = Plan(batch_sizes or (1,), repeats, warmup, sampling, seed, names, grids)
        return cls(subject, plan, dtype, quantize, compared, not batch_sizes, theirs)

    def references_s(self) -> float:
        """Expected seconds of the float32 references, which ``make_ready`` begins with where arms are compared."""
        arms = {decoder: name for name, decoder, _ in our_arms(self.compared)}
        return expected_agreement_s(self.subject, self.plan, arms.values())

    def make_ready(self) -> None:
        """Computes the references, casts and quantises the model, settles the batch sizes. Raises FlasharError."""
        self._references = references(self.subject, self.plan) if self.compared else {}
        self.subject = converted(self.subject, self.dtype, self.quantize)
        refuse_impossible(self.subject, self.plan.arms)
        if self.sweeps:
            sizes, end = sizes_that_fit(self.subject, self.plan)
            self.plan = replace(self.plan, batch_sizes=sizes, sweep_end=end)
        else:
            refuse_what_cannot_fit(self.subject, self.plan)

    def expected_s(self) -> float:
        """Expected seconds of all that follows ``make_ready``."""
        return expected_s(self.subject, self.plan) + expected_agreement_s(self.subject, self.plan, self.compared)

    def compare_arms(self) -> tuple[Agreement, ...]:
        """How far the arms are from float32, where that is asked for."""
        self.agreements = agreements(self.subject, self.plan, self._references) if self.compared else ()
        return self.agreements

    def run(self, rates: Rates, on_run: Callable[[], None], on_batch: Callable[[BenchReport], None]) -> BenchReport:
        """Measures; ``on_run`` and ``on_batch`` as in ``run.bench``."""
        return bench(self.subject, self.plan, rates, on_run, self.upstream, self.agreements, on_batch)


def _asked(config: ModelConfig, choose_pruning: PruningChoice) -> ModelConfig:
    """A config with what is asked of FastVAR, not checked yet."""
    pruning = choose_pruning(config) if isinstance(config, NextScaleConfig) else None
    return config if pruning is None else config.model_copy(update={"fastvar": pruning})
