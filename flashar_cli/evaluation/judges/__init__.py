"""Judges of samples, each for models of its kind."""

from __future__ import annotations

from pathlib import Path

import torch

from flashar_cli.config import ModelConfig
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.inception import Inception
from flashar_cli.evaluation.judges.base import Judge
from flashar_cli.evaluation.judges.inception import InceptionJudge
from flashar_cli.evaluation.judges.scenes import ScenesJudge
from flashar_cli.evaluation.judges.shapes import ShapesJudge
from flashar_cli.evaluation.reference import read_reference

# Those that need nothing but what is installed.
JUDGES: tuple[Judge, ...] = (ShapesJudge(), ScenesJudge())


def choose_judge(config: ModelConfig, given: Judge | None) -> Judge | None:
    """The ``given`` judge, or the one that knows what a model draws; None where nobody does. Raises FlasharError where
    the given one does not know it.
    """
    if given is not None:
        if reason := _obstacle(given, config):
            raise FlasharError(reason)
        return given
    return next((judge for judge in JUDGES if _obstacle(judge, config) is None), None)


def _obstacle(judge: Judge, config: ModelConfig) -> str | None:
    if config.tokenizer is None:
        return "the model has no tokenizer, so there are no images to judge; convert it again with --tokenizer"
    return judge.obstacle(config)


def reference_judge(reference: Path, weights: Path | None, device: torch.device) -> Judge:
    """The judge of published figures; ``weights`` as ``Inception`` takes them. Raises FlasharError."""
    found = read_reference(reference)
    return InceptionJudge(Inception(weights, device), found)
