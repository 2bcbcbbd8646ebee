"""Training state on disk, from which a killed run is resumed. It never becomes part of a checkpoint.

It is written by torch.distributed.checkpoint, so that another number of processes can read it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from flashar_cli.config import Config, validated
from flashar_cli.config.recipe import Stage
from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file
from flashar_cli.inputs.reading import check_file, read_json
from flashar_cli.machine.processes import barrier
from flashar_cli.machine.world import current_world
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import is_adapter
from flashar_cli.training.ema import Ema

# Without a process group every call warns that it assumes a single process, although no_dist already says so.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

FOLDER = "state"
PROGRESS_FILE = "progress.json"
PREFIX, UNFINISHED = "saved-", ".unfinished-"


class Progress(Config):
    """The progress of a run: its settings, its stage, and the steps done in that stage."""

    settings: dict[str, Any]
    stage: int = Field(ge=0)
    step: int = Field(ge=0)
    has_optimizer: bool

    @property
    def name(self) -> str:
        """The name of the state's folder, after PREFIX or UNFINISHED."""
        return f"{self.stage:02d}-{self.step:08d}"


class TrainingState:
    """The last ``keep`` states of a run in ``directory / "state"``, each a folder with progress, model, optimizer and
    averages. ``settings`` identifies the run; the state of another run is refused, or ignored with ``discard_other``.
    Every process of the run has this object; ``asynchronous`` writes while training continues.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        discard_other: bool = False,
        keep: int = 2,
        asynchronous: bool = False,
    ) -> None:
        self.folder = directory / FOLDER
        self.settings, self.keep, self.asynchronous = settings, keep, asynchronous
        self.loaded: Progress | None = None
        self._pending: tuple[Future[Any], Path] | None = None
        self._discard = False  # at the first save, as other processes may still read what is there
        finished = self._finished()
        if not finished:
            return
        self.loaded = _read_progress(finished[-1])
        known = self.loaded.settings
        if known != settings and discard_other:
            self.loaded, self._discard = None, True
        elif known != settings:
            changed = [key for key in settings if settings[key] != known.get(key)]
            raise FlasharError(
                f"{self.folder} belongs to a run with other settings ({', '.join(changed)} differ); "
                "use the same command to resume, another --out, or --overwrite"
            )

    @property
    def last(self) -> Path | None:
        """The newest complete state of this run."""
        finished = [] if self._discard else self._finished()
        return finished[-1] if finished else None

    def is_behind(self, stage: int) -> bool:
        """Whether a stage and its validation are done: then the state was saved without an optimizer."""
        if self.loaded is None:
            return False
        return stage < self.loaded.stage or (stage == self.loaded.stage and not self.loaded.has_optimizer)

    def steps_done(self, stage: int) -> int:
        """Steps already done of a stage that ``is_behind`` denies."""
        return self.loaded.step if self.loaded is not None and self.loaded.stage == stage else 0

    def total_steps(self, stages: Sequence[Stage]) -> int:
        """Optimizer steps done in all stages together."""
        return sum(
            stage.steps if self.is_behind(index) else self.steps_done(index) for index, stage in enumerate(stages)
        )

    def load_model(self, model: FlasharModel, ema: Ema | None) -> bool:
        """Restores saved weights and averages; False where there are none."""
        if self.loaded is None:
            return False
        saved: dict[str, Any] = {"model": _learned(model)}
        if ema is not None:
            saved["ema"] = ema.averages
        self._read(saved)
        set_model_state_dict(model, {**get_model_state_dict(model), **saved["model"]})
        return True

    def load_optimizer(self, stage: int, model: FlasharModel, optimizer: torch.optim.Optimizer) -> None:
        """Restores the saved optimizer of this stage, where there is one."""
        if self.loaded is None or self.loaded.stage != stage or not self.loaded.has_optimizer:
            return
        saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        self._read(saved)
        set_optimizer_state_dict(model, optimizer, saved["optimizer"])

    def save(
        self, stage: int, step: int, model: FlasharModel, optimizer: torch.optim.Optimizer | None, ema: Ema | None
    ) -> None:
        """Writes a new state and then removes the oldest; all processes call it together. Raises FlasharError for
        errors of the disk.
        """
        self.finish()
        progress = Progress(settings=self.settings, stage=stage, step=step, has_optimizer=optimizer is not None)
        temporary, target = self.folder / (UNFINISHED + progress.name), self.folder / (PREFIX + progress.name)
        document: dict[str, Any] = {"model": _learned(model)}
        if optimizer is not None:
            document["optimizer"] = get_optimizer_state_dict(model, optimizer)
        if ema is not None:
            document["ema"] = ema.averages
        try:
            if current_world().is_main:
                shutil.rmtree(self.folder if self._discard else temporary, ignore_errors=True)
                with atomic_file(temporary / PROGRESS_FILE) as file:
                    file.write(progress.model_dump_json(indent=2).encode())
            self._discard = False
            barrier()
            single = not dist.is_initialized()
            if self.asynchronous:
                writing = dcp.async_save(document, checkpoint_id=temporary, no_dist=single)
                assert isinstance(writing, Future)
                self._pending = (writing, target)
                return
            dcp.save(document, checkpoint_id=temporary, no_dist=single)
            self._publish(temporary, target)
        except (CheckpointException, OSError, RuntimeError) as error:
            raise _not_written(self.folder, error) from None

    def poll(self) -> None:
        """Publishes a state whose asynchronous writing is done. Call this often while training continues."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Waits for a state that is still being written. Raises FlasharError for errors of the disk."""
        if self._pending is None:
            return
        (writing, target), self._pending = self._pending, None
        try:
            writing.result()
            self._publish(target.with_name(target.name.replace(PREFIX, UNFINISHED, 1)), target)
        except (CheckpointException, OSError, RuntimeError) as error:
            raise _not_written(self.folder, error) from None

    def _publish(self, temporary: Path, target: Path) -> None:
        if not current_world().is_main:
            return
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for old in self._finished()[: -self.keep]:
            shutil.rmtree(old)

    def _finished(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*")) if self.folder.is_dir() else []

    def _read(self, document: dict[str, Any]) -> None:
        assert self.last is not None
        try:
            for path in self.last.iterdir():
                check_file(path)
            dcp.load(document, checkpoint_id=self.last, no_dist=not dist.is_initialized())
        except (CheckpointException, OSError, RuntimeError, ValueError, KeyError) as error:
            reason = str(error) if isinstance(error, FlasharError) else type(error).__name__
            raise _unreadable(self.last, reason) from None


def _learned(model: FlasharModel) -> dict[str, Any]:
    """The tensors that a run changes: all; where the model has adapters, those and the branch."""
    state = get_model_state_dict(model)
    learned = {name: each for name, each in state.items() if is_adapter(name) or name.startswith("branch.")}
    return learned if any(is_adapter(name) for name in learned) else state


def _read_progress(state: Path) -> Progress:
    path = state / PROGRESS_FILE
    try:
        progress = validated(read_json(path), Progress, path.name, "the progress of a run")
    except FlasharError as error:
        raise _unreadable(state, str(error)) from None
    if state.name != PREFIX + progress.name:
        raise _unreadable(state, f"{path.name} says stage {progress.stage}, step {progress.step}")
    return progress


def _unreadable(state: Path, reason: str) -> FlasharError:
    return FlasharError(
        f"training state {state} cannot be read ({reason}); delete it to resume from the one before it, "
        f"or {state.parent} to start anew"
    )


def _not_written(folder: Path, error: BaseException) -> FlasharError:
    """The error with the disk's own reason, which torch.distributed.checkpoint wraps."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().split("\n")[0]
    return FlasharError(f"training state in {folder} could not be written: {reason}; the last one before it is whole")
