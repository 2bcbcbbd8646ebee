"""Training state on disk: what a killed run resumes from. It never becomes part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.pickles import save_pickle
from flashar_cli.training.stages import Stage

FILE_NAME = "training-state.pt"


class TrainingState:
    """One file in ``directory``: stage, steps done in it, model and optimizer. ``settings`` identifies the run; state
    of another run is refused, or ignored with ``discard_other``.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], discard_other: bool = False) -> None:
        self.path = directory / FILE_NAME
        self.settings = settings
        self.loaded: dict[str, Any] | None = None
        if self.path.exists():
            try:
                self.loaded = torch.load(self.path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many types for a damaged file; all mean the same here
                raise FlasharError(
                    f"training state {self.path} cannot be read ({type(error).__name__}); delete it to start anew"
                ) from None
            if self.loaded["settings"] != settings and discard_other:
                self.loaded = None
            elif self.loaded["settings"] != settings:
                changed = [k for k in settings if settings[k] != self.loaded["settings"].get(k)]
                raise FlasharError(
                    f"{self.path} belongs to a run with other settings ({', '.join(changed)} differ); "
                    "use the same command to resume, another --out, or --overwrite"
                )

    def load_model(self, model: FlasharModel) -> int | None:
        """Puts saved weights into the model; returns the stage index, None where nothing was saved."""
        if self.loaded is None:
            return None
        model.load_state_dict(self.loaded["model"])
        return self.loaded["stage"]

    def steps_done(self, stage: int) -> int:
        """Steps already done of a stage; a large number for stages that lie behind."""
        if self.loaded is None or stage > self.loaded["stage"]:
            return 0
        return self.loaded["step"] if stage == self.loaded["stage"] else 2**62

    def total_steps(self, stages: Sequence[Stage]) -> int:
        """Optimizer steps done in all stages together."""
        return sum(min(stage.steps, self.steps_done(index)) for index, stage in enumerate(stages))

    def load_optimizer(self, stage: int, optimizer: torch.optim.Optimizer) -> None:
        """Puts the saved optimizer of this stage back, where there is one."""
        if self.loaded is not None and self.loaded["stage"] == stage and self.loaded["optimizer"] is not None:
            optimizer.load_state_dict(self.loaded["optimizer"])

    def save(self, stage: int, step: int, model: FlasharModel, optimizer: torch.optim.Optimizer | None) -> None:
        """Replaces the file atomically."""
        document = {
            "settings": self.settings,
            "stage": stage,
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        with atomic_file(self.path) as file:
            save_pickle(document, file)
