"""Linear probes on a frozen backbone: how early the lower neighbour can be read off the hidden states.

Letters: B batch, H grid rows, W grid columns, D model dim, V codebook size, L backbone blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from flashar_cli import bounds
from flashar_cli.bounds import number_range
from flashar_cli.config import Config, ModelConfig, validated
from flashar_cli.data.codes import CodeSet, split_validation
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_files
from flashar_cli.grid import Order
from flashar_cli.kinds import json_object
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.transformer import run_blocks
from flashar_cli.reading import read_json
from flashar_cli.reporting.curves import probe_figure
from flashar_cli.reporting.figures import to_png
from flashar_cli.text import shown
from flashar_cli.training.memory import ADAM_BYTES_PER_WEIGHT

DIRECTIONS = ("right", "lower")
HEADS = ("full", "low-rank", "shared")
REPORT = json_object("a probe's report", "recommended_layer", "layers")


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are trained. ``head``: ``full`` is Linear(D -> V), ``low-rank`` Linear(D -> rank -> V), ``shared``
    Linear(D -> D) before the backbone's frozen output head.
    """

    layers: tuple[int, ...]
    mask: str = "raster"
    head: str = "full"
    rank: int = 64
    batch_size: int = 16
    lr: float = 3e-3
    branch_depth: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, got, allowed in (("mask", self.mask, ("raster", "diagonal")), ("head", self.head, HEADS)):
            if got not in allowed:
                raise FlasharError(f"--{name} is {got}; expected one of {', '.join(allowed)}")
        bounds.WIDTH.check("--rank", self.rank)
        bounds.LEARNING_RATE.check("--lr", self.lr)


class ProbedLayer(Config):
    """Validation loss (nats per token) and top-1 accuracy before one block; None for a direction without cells."""

    layer: int = Field(ge=0)
    right_loss: float | None = Field(None, ge=0)
    lower_loss: float = Field(ge=0)
    right_top1: float | None = Field(None, ge=0, le=1)
    lower_top1: float | None = Field(None, ge=0, le=1)


class ProbeReport(Config):
    """The content of ``probe.json``."""

    model: str | None = None
    model_sha256: str
    recommended_layer: int = Field(ge=0)
    branch_depth: int | None = Field(None, ge=1)
    mask: str
    head: str
    num_train: int = Field(ge=0)
    num_validation: int | None = Field(None, ge=0)
    seed: int | None = None
    data_fingerprint: str | None = None
    layers: tuple[ProbedLayer, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_layers(self) -> ProbeReport:
        layers = [row.layer for row in self.layers]
        if len(set(layers)) < len(layers) or self.recommended_layer not in layers:
            raise ValueError(f"recommended_layer {self.recommended_layer} is not one of the different layers {layers}")
        return self

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self.model_dump(mode="json", exclude_unset=True)


def parse_layers(text: str | None, num_layers: int) -> tuple[int, ...]:
    """``'0,4-6,12'``; None: all indices 0..L. Raises FlasharError for an index beyond L."""
    if text is None:
        return tuple(range(num_layers + 1))
    layers: set[int] = set()
    for part in text.split(","):
        ends = number_range(part)
        if ends is None or not ends[0] <= ends[1] <= num_layers:
            raise FlasharError(f"--layers: {shown(part)} is not an index or range within 0-{num_layers}")
        layers.update(range(ends[0], ends[1] + 1))
    return tuple(sorted(layers))


def memory_bytes(config: ModelConfig, settings: ProbeSettings) -> int:
    """What the probes and their optimizer take, weights, gradients and moments in float32."""
    dim, vocab_size = config.backbone.dim, config.backbone.vocab_size
    weights = {"full": dim * vocab_size, "low-rank": settings.rank * (dim + vocab_size), "shared": dim * dim}
    return ADAM_BYTES_PER_WEIGHT * len(DIRECTIONS) * len(settings.layers) * weights[settings.head]


def run_probes(
    model: FlasharModel,
    data: CodeSet,
    settings: ProbeSettings,
    num_validation: int,
    dtype: torch.dtype,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """One pass over the training pictures trains every probe, one over the validation pictures measures them.

    Returns the content of ``probe.json``: per index m and direction the validation loss (nats per token) and top-1
    accuracy, and the recommended m, the argmin of the lower neighbour's loss over m <= L - branch depth.
    """
    last_layer = model.config.backbone.num_layers - settings.branch_depth
    if model.config.order_grid.height < 2 or not any(layer <= last_layer for layer in settings.layers):
        raise FlasharError(
            f"no layer can be recommended: a grid of {model.config.order_grid} tokens, layers {settings.layers}; "
            f"expected at least two rows and a layer of 0..{last_layer}"
        )
    train, validation = split_validation(data, num_validation)
    model.requires_grad_(False)
    model.eval()
    torch.manual_seed(settings.seed)
    probes = nn.ModuleDict(
        {f"{layer}-{way}": _build(model, settings) for layer in settings.layers for way in DIRECTIONS}
    ).to(model.device)
    optimizer = torch.optim.Adam(probes.parameters(), lr=settings.lr)
    num_steps = max(1, len(train) // settings.batch_size)
    for step in range(num_steps):
        rate = settings.lr * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = train.take(slice(step * settings.batch_size, (step + 1) * settings.batch_size))
        for name, hidden, targets in _examples(model, batch, settings, dtype):
            # One probe's logits live at a time: V is large.
            F.cross_entropy(probes[name](hidden), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress(len(batch))

    sums = {name: [0.0, 0, 0] for name in probes}
    with torch.inference_mode():
        for start in range(0, len(validation), settings.batch_size):
            batch = validation.take(slice(start, start + settings.batch_size))
            for name, hidden, targets in _examples(model, batch, settings, dtype):
                logits = probes[name](hidden)
                entry = sums[name]
                entry[0] += float(F.cross_entropy(logits, targets, reduction="sum"))
                entry[1] += int((logits.argmax(dim=-1) == targets).sum())
                entry[2] += len(targets)
            progress(len(batch))
    rows = [
        {"layer": layer}
        | {
            f"{way}_{what}": sums[f"{layer}-{way}"][index] / sums[f"{layer}-{way}"][2]
            for way in DIRECTIONS
            for index, what in enumerate(("loss", "top1"))
            if sums[f"{layer}-{way}"][2]
        }
        for layer in settings.layers
    ]
    return {
        "recommended_layer": recommend(rows, last_layer),
        "branch_depth": settings.branch_depth,
        "mask": settings.mask,
        "head": settings.head,
        "num_train": len(train),
        "num_validation": len(validation),
        "seed": settings.seed,
        "data_fingerprint": data.fingerprint(),
        "layers": rows,
    }


def recommend(rows: Sequence[dict[str, float]], last_layer: int) -> int:
    """The index with the lowest loss of the lower neighbour among those from which the branch adds no serial depth."""
    allowed = [row for row in rows if row["layer"] <= last_layer]
    if not allowed:
        raise FlasharError(
            f"no probed layer is among 0..{last_layer}, where a branch of this depth may start; probe those"
        )
    return int(min(allowed, key=lambda row: row["lower_loss"])["layer"])


def write_report(report: dict[str, Any], path: Path, plot_path: Path) -> None:
    """Writes ``probe.json``, and validation loss over index m for both neighbours as a PNG; both or neither.

    Raises FlasharError for losses that are no numbers.
    """
    wanted = "finite; train the probes with a lower --lr"
    document = validated(report, ProbeReport, "the result of the probes", wanted).document()
    with atomic_files(path, plot_path) as (file, plot):
        file.write((json.dumps(document, indent=2) + "\n").encode())
        plot.write(to_png(probe_figure(document)))


def read_probe(path: Path) -> dict[str, Any]:
    """The content of a ``probe.json``. Raises FlasharError where it is not one."""
    where = f"--probe {path}"
    what = "a probe.json; write one with `flashar probe`"
    return validated(read_json(path, where), ProbeReport, where, what).document()


def read_recommendation(path: Path, config: ModelConfig, model_sha256: str, branch_depth: int) -> int:
    """What a ``probe.json`` recommends for a branch of this depth.

    Raises FlasharError where it is not one, or is of another model.
    """
    report = read_probe(path)
    if report["model_sha256"] != model_sha256:
        raise FlasharError(
            f"--probe {path} is of other weights ({report['model_sha256'][:12]}) "
            f"than this model's ({model_sha256[:12]})"
        )
    return recommend(report["layers"], config.backbone.num_layers - branch_depth)


class _SharedHead(nn.Module):
    """Linear(D -> D), starting at the identity, before the backbone's frozen norm and head."""

    def __init__(self, model: FlasharModel) -> None:
        super().__init__()
        dim = model.config.backbone.dim
        self.linear = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.linear.weight)
        self._frozen = (model.backbone.norm, model.backbone.head)  # a tuple: not this module's parameters

    def forward(self, hidden: Tensor) -> Tensor:
        norm, head = self._frozen
        return head(norm(self.linear(hidden))).float()


def _build(model: FlasharModel, settings: ProbeSettings) -> nn.Module:
    dim, vocab_size = model.config.backbone.dim, model.config.backbone.vocab_size
    if settings.head == "shared":
        return _SharedHead(model)
    if settings.head == "low-rank":
        return nn.Sequential(nn.Linear(dim, settings.rank, bias=False), nn.Linear(settings.rank, vocab_size))
    probe = nn.Linear(dim, vocab_size)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    return probe


def _examples(model: FlasharModel, batch: CodeSet, settings: ProbeSettings, dtype: torch.dtype) -> Any:
    """Yields (probe name, hidden [K, D], codes [K]) for every probe: K cells with a neighbour on that side."""
    grid = model.config.order_grid
    order = grid.raster() if settings.mask == "raster" else grid.diagonal()
    codes_BHW, conditions = batch.tensors(model.device)
    with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        states = _hidden_grids(model, codes_BHW, conditions, order, settings.layers)
    for layer, hidden_BHWD in zip(settings.layers, states, strict=True):
        # Hidden states grow from block to block; without their scale, one learning rate fits all.
        hidden_BHWD = F.rms_norm(hidden_BHWD.float(), hidden_BHWD.shape[-1:])
        if grid.width > 1:
            yield f"{layer}-right", hidden_BHWD[:, :, :-1].flatten(0, 2), codes_BHW[:, :, 1:].flatten()
        if grid.height > 1:
            yield f"{layer}-lower", hidden_BHWD[:, :-1].flatten(0, 2), codes_BHW[:, 1:].flatten()


def _hidden_grids(
    model: FlasharModel, codes_BHW: Tensor, conditions: Any, order: Order, layers: Sequence[int]
) -> list[Tensor]:
    """Hidden states [B, H, W, D] before each of these blocks; the last cell, which predicts nothing, is zero."""
    drop = torch.zeros(len(codes_BHW), dtype=torch.bool, device=codes_BHW.device)
    x_BSD, valid_BP = model.embed(order.from_raster(codes_BHW), conditions, drop)
    length, prefix = x_BSD.shape[1], model.config.prefix.length
    mask = model.attention_mask(order, valid_BP, length)
    states = run_blocks(model.backbone.blocks, x_BSD, model.rope(order)[:length], mask, None, 0)
    return [order.to_raster(F.pad(states[layer][:, prefix:], (0, 0, 0, 1)), trailing=1) for layer in layers]
