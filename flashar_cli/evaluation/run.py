"""`flashar eval`: samples, figures and code lengths of arms, and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flashar_cli.api import ImageModel
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_tokens
from flashar_cli.data.tokens import TokenSet
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.static import StaticDecoder
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.arms import Arm, Ready
from flashar_cli.evaluation.code_length import CodeLength, code_lengths
from flashar_cli.evaluation.report import ArmReport, CodeLengthReport, FigureReport
from flashar_cli.evaluation.samples import Samples, check_samples, make_samples
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


def check(arms: Sequence[Arm], validation: Validation, out: Path, overwrite: bool) -> None:
    """Raises FlasharError where an arm can't do what was asked for, or nothing of it can be measured, and where there
    are samples of other settings, unless they are to be overwritten. Each arm is gone from memory before the next is
    loaded.
    """
    for arm in arms:
        _check(arm, arm.load(lambda reason: None), validation, _archive(arm, out), overwrite)


def _check(arm: Arm, ready: Ready, validation: Validation, archive: Path, overwrite: bool) -> None:
    if ready.job is None and not _has_code_lengths(arm, ready.loaded, validation):
        raise FlasharError(
            f"nothing of {arm.name} can be measured: only --reference FILE.npz would say how its samples should look, "
            "and nats per token take --data and a raster model under a decoder whose steps are always the same"
        )
    if ready.job is not None and not overwrite:
        check_samples(ready.job, archive)


def evaluate(
    arms: Sequence[Arm],
    validation: Validation,
    seed: int,
    out: Path,
    overwrite: bool,
    begin: Begin,
    note: Callable[[str], None],
) -> list[ArmReport]:
    """Makes the samples of every arm that was checked, with all processes, and measures them with the first, which
    alone gets reports.
    """
    reports = [_evaluate(arm, validation, seed, _archive(arm, out), overwrite, begin, note) for arm in arms]
    return [report for report in reports if report is not None]


def _evaluate(
    arm: Arm,
    validation: Validation,
    seed: int,
    archive: Path,
    overwrite: bool,
    begin: Begin,
    note: Callable[[str], None],
) -> ArmReport | None:
    ready = arm.load(note)
    samples = None if ready.job is None else make_samples(ready.job, archive, overwrite, begin, note)
    tokens = _held_out(arm, ready.loaded, validation, seed)
    if not current_world().is_main:
        return None
    note(f"measuring {arm.name}")
    return _measure(arm, ready, samples, tokens, validation)


def _archive(arm: Arm, out: Path) -> Path:
    return out / f"{arm.name}.npz"


def _measure(
    arm: Arm, ready: Ready, samples: Samples | None, tokens: TokenSet | None, validation: Validation
) -> ArmReport:
    figures, settings, num_images = [], {}, 0
    if arm.judge is not None and ready.job is not None and samples is not None:
        figures = arm.judge.figures(samples.images.batches(JUDGED_AT_ONCE), ready.loaded.config)
        settings, num_images = ready.job.settings, len(samples.images)
    lengths = [] if tokens is None else _code_lengths(ready.loaded, arm.decoder, tokens, validation.batch_size)
    return ArmReport(
        name=arm.name,
        model=arm.model,
        weights_sha256=ready.weights_sha256,
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


def _held_out(arm: Arm, model: ImageModel, validation: Validation, seed: int) -> TokenSet | None:
    """The tokens that code lengths are of; all processes share the encoding."""
    data, module = _data(arm, validation), model.model
    if not _has_code_lengths(arm, model, validation):
        return None
    assert data is not None and isinstance(module, FlasharModel)
    loaded = Loaded(module, model.tokenizer, model.text_tokenizer)
    return plan_tokens(loaded, data, validation.num_images, seed, validation.options).tokens(lambda count: None)


def _has_code_lengths(arm: Arm, model: ImageModel, validation: Validation) -> bool:
    """Not where nobody knows images for them, where the steps of a decoder depend on what is sampled, and of
    next-scale models.
    """
    known = _data(arm, validation) is not None
    return known and isinstance(model.model, FlasharModel) and isinstance(arm.decoder, StaticDecoder)


def _code_lengths(model: ImageModel, decoder: Decoder, tokens: TokenSet, batch_size: int) -> list[CodeLengthReport]:
    assert isinstance(model.model, FlasharModel) and isinstance(decoder, StaticDecoder)
    found = code_lengths(model.model, decoder, tokens, batch_size)
    return [_report(head, length) for head, length in found.items()]


def _report(head: str, length: CodeLength) -> CodeLengthReport:
    sides = ([None if math.isnan(each) else each for each in side] for side in (length.by_row, length.by_column))
    by_row, by_column = map(tuple, sides)
    return CodeLengthReport(head=head, total=length.total, by_row=by_row, by_column=by_column)
