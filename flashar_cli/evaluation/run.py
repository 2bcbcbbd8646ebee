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
from flashar_cli.data.tokens import TokenSet
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
        tokens = _held_out(arm, validation, seed)
        if current_world().is_main:
            note(f"measuring {arm.name}")
            reports.append(_measure(arm, samples, tokens, validation))
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


def _measure(arm: Arm, samples: Samples | None, tokens: TokenSet | None, validation: Validation) -> ArmReport:
    figures, settings, num_images = [], {}, 0
    if arm.judge is not None and arm.job is not None and samples is not None:
        figures = arm.judge.figures(samples.images.batches(JUDGED_AT_ONCE), arm.loaded.model.config)
        settings, num_images = arm.job.settings, len(samples.images)
    lengths = [] if tokens is None else _code_lengths(arm, tokens, validation.batch_size)
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
        validation=None if tokens is None else f"{len(tokens)} images of {_data(arm, validation)}",
    )


def _data(arm: Arm, validation: Validation) -> str | None:
    return validation.data or (arm.judge.data if arm.judge else None)


def _held_out(arm: Arm, validation: Validation, seed: int) -> TokenSet | None:
    """The tokens that code lengths are of; all processes share the encoding. None where nobody knows any, where the
    steps of a decoder depend on what is sampled, and of next-scale models.
    """
    model, data = arm.loaded.model, _data(arm, validation)
    if data is None or not isinstance(model, FlasharModel) or not isinstance(arm.decoder, StaticDecoder):
        return None
    loaded = Loaded(model, arm.loaded.tokenizer, arm.loaded.text_tokenizer)
    return plan_tokens(loaded, data, validation.num_images, seed, validation.options).tokens(lambda count: None)


def _code_lengths(arm: Arm, tokens: TokenSet, batch_size: int) -> list[CodeLengthReport]:
    assert isinstance(arm.loaded.model, FlasharModel) and isinstance(arm.decoder, StaticDecoder)
    found = code_lengths(arm.loaded.model, arm.decoder, tokens, batch_size)
    return [_report(head, length) for head, length in found.items()]


def _report(head: str, length: CodeLength) -> CodeLengthReport:
    sides = ([None if math.isnan(each) else each for each in side] for side in (length.by_row, length.by_column))
    by_row, by_column = map(tuple, sides)
    return CodeLengthReport(head=head, total=length.total, by_row=by_row, by_column=by_column)
