"""One process of an adaptation that tests start several of: python -m
tests.adaptation.sharded_worker BASE OUT DTYPE SET...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch

from flashar_cli.adaptation import artifacts, run
from flashar_cli.adaptation.job import AdaptJob, load_job
from flashar_cli.adaptation.model import prepare_model
from flashar_cli.config.recipe import load_recipe
from flashar_cli.machine.processes import gather_objects
from flashar_cli.machine.world import current_world
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.shards import own
from flashar_cli.training import validation
from tests.training.test_loop import drawn_set

RECIPE = ("steps=4", "stage1_fraction=0.5", "optim.batch_size=4", "stage1.lr=3e-3", "stage2.lr=3e-3")
OTHERS = ("data.num_validation=8", "save_every=2", "branch.depth=2", "branch.layer=1")


def adapted(base: Path, out: Path, dtype: torch.dtype, settings: Sequence[str]) -> dict:
    """Adapts in four steps, and returns the validations, the losses of the steps, and for each process the bytes of the
    weights that it holds, and the most bytes that its tensors took before the first forward.
    """
    held, mapped = [], {path.stat().st_size for path in base.glob("*.safetensors")}

    def prepare(job: AdaptJob) -> FlasharModel:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            model = prepare_model(job)
        weights = sum(own(parameter).nbytes for parameter in model.parameters())
        held.extend(gather_objects([weights, peak_bytes(profiler, mapped)]))
        return model

    recipe = load_recipe(None, [*RECIPE, *OTHERS, *settings])
    job = load_job(base, "base", recipe, None, out, 0, torch.device("cpu"), dtype)
    losses: list[float] = []
    with (
        patch.object(run, "prepare_model", prepare),
        patch.object(validation, "MARGIN_BELOW_CHANCE", -10.0),
        patch.object(artifacts, "SHEET_IMAGES", 3),
        patch.object(artifacts, "BASE_SHEET_IMAGES", 3),
    ):
        validations = run.adapt(
            job,
            drawn_set(24, 4, 4),
            False,
            lambda kind, record: losses.append(record["total"]) if kind == "step" else None,
            lambda text: None,
        )
    return {"validations": validations, "losses": losses, "held": held}


def peak_bytes(profiler: torch.profiler.profile, mapped: set[int]) -> int:
    """The most memory that tensors took at a time, by PyTorch's record of every allocation. It has files mapped into
    memory too, which are left out by their sizes.
    """
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event for event in events if event.name() == "[memory]" and abs(event.nbytes()) not in mapped]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main() -> None:
    torch.set_num_threads(1)
    base, out, dtype, *settings = sys.argv[1:]
    found = adapted(Path(base), Path(out), getattr(torch, dtype), settings)
    if current_world().is_main:
        Path(f"{out}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
