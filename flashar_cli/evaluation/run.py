"""`flashar eval`: samples, figures and code lengths of arms, and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_tokens
from flashar_cli.decoding.static import StaticDecoder
from flashar_cli.evaluation.arms import Arm
from flashar_cli.evaluation.code_length import CodeLength, code_lengths
from flashar_cli.evaluation.report import ArmReport, CodeLengthReport, EvalReport, FigureReport
from flashar_cli.evaluation.samples import Samples, check_samples, make_samples
from flashar_cli.machine.environment import hardware, software
from flashar_cli.machine.world import current_world
from flashar_cli.models.flashar import FlasharModel

JUDGED_AT_ONCE = 50
Begin = Callable[[int], Callable[[int], None]]


@dataclass(frozen=True)
class Validation:
    """The images that code lengths are of, found as `flashar adapt` finds its data. ``data`` None: those that the judge
    of a model knows, if any.
    """

    data: str | None
    num_images: int
    batch_size: int
    options: EncodeOptions


def evaluate(
    arms: Sequence[Arm],
    validation: Validation,
    seed: int,
    out: Path,
    overwrite: bool,
    command: Sequence[str],
    begin: Begin,
    note: Callable[[str], None],
) -> EvalReport | None:
    """Makes the samples of every arm, with all processes, and measures them with the first, which gets the report.

    Raises FlasharError where there are samples of other settings, unless they are to be overwritten.
    """
    reports = []
    if current_world().is_main and not overwrite:
        for arm in arms:
            if arm.job is not None:
                check_samples(arm.job, _archive(arm, out))
    for arm in arms:
        samples = None if arm.job is None else make_samples(arm.job, _archive(arm, out), overwrite, begin, note)
        if current_world().is_main:
            note(f"measuring {arm.name}")
            reports.append(_measure(arm, samples, validation, seed))
    if not reports:
        return None
    return EvalReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(command),
        seed=seed,
        hardware=hardware(arms[0].loaded.model.device),
        software=software(),
        arms=tuple(reports),
    )


def _archive(arm: Arm, out: Path) -> Path:
    return out / f"{arm.name}.npz"


def _measure(arm: Arm, samples: Samples | None, validation: Validation, seed: int) -> ArmReport:
    figures, settings, num_images = [], {}, 0
    if arm.judge is not None and arm.job is not None and samples is not None:
        figures = arm.judge.figures(samples.images.batches(JUDGED_AT_ONCE))
        settings, num_images = arm.job.settings, len(samples.images)
    data = validation.data or (arm.judge.data if arm.judge else None)
    lengths = [] if data is None else _code_lengths(arm, data, validation, seed)
    return ArmReport(
        name=arm.name,
        model=arm.model,
        weights_sha256=arm.weights_sha256,
        decoder=arm.decoder.name,
        settings=settings,
        judge=None if arm.judge is None else arm.judge.name,
        num_images=num_images,
        samples_sha256=None if samples is None else samples.sha256,
        figures=tuple(FigureReport(**asdict(figure)) for figure in figures),
        code_lengths=tuple(lengths),
        validation=f"{validation.num_images} images of {data}" if lengths else None,
    )


def _code_lengths(arm: Arm, data: str, validation: Validation, seed: int) -> list[CodeLengthReport]:
    """None where the steps of a decoder depend on what is sampled, and of next-scale models."""
    model, decoder = arm.loaded.model, arm.decoder
    if not isinstance(model, FlasharModel) or not isinstance(decoder, StaticDecoder):
        return []
    loaded = Loaded(model, arm.loaded.tokenizer, arm.loaded.text_tokenizer)
    tokens = plan_tokens(loaded, data, validation.num_images, seed, validation.options).tokens(lambda count: None)
    found = code_lengths(model, decoder, tokens, validation.batch_size)
    return [_report(head, length) for head, length in found.items()]


def _report(head: str, length: CodeLength) -> CodeLengthReport:
    sides = ([None if math.isnan(each) else each for each in side] for side in (length.by_row, length.by_column))
    by_row, by_column = map(tuple, sides)
    return CodeLengthReport(head=head, total=length.total, by_row=by_row, by_column=by_column)
