"""Trains all probes in one pass over the training images, and measures them on the validation images.

Letters: B batch, H grid rows, W grid columns, K cells that have a neighbour, D model dim, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import RasterConfig
from flashar_cli.config.recipe import load_recipe, shipped_recipes
from flashar_cli.data.options import DATA_HELP
from flashar_cli.data.shapes import CLASS_NAMES
from flashar_cli.data.sources.shapes import SHAPES
from flashar_cli.data.tokens import TokenSet, split_validation
from flashar_cli.errors import FlasharError
from flashar_cli.machine.memory import require_memory
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.probing.report import recommend
from flashar_cli.probing.settings import DIRECTIONS, ProbeSettings
from flashar_cli.probing.states import hidden_grids
from flashar_cli.reporting.figures import require_matplotlib
from flashar_cli.training.memory import ADAM_BYTES_PER_WEIGHT

MUCH_BYTES = 16 * 2**30


def memory_bytes(config: RasterConfig, settings: ProbeSettings) -> int:
    """Memory of the probes and their optimizer: weights, gradients and moments in float32."""
    dim, vocab_size = config.backbone.dim, config.backbone.vocab_size
    weights = {"full": dim * vocab_size, "low-rank": settings.rank * (dim + vocab_size), "shared": dim * dim}
    return ADAM_BYTES_PER_WEIGHT * settings.num_probes * weights[settings.head]


def describe(config: RasterConfig, settings: ProbeSettings) -> dict[str, Any]:
    """The JSON of ``--dry-run``."""
    return {"memory_gib": round(memory_bytes(config, settings) / 2**30, 3), "layers": list(settings.layers)}


def default_data(config: RasterConfig, name: str) -> str:
    """The data for a model of drawn shapes where no --data is passed: by its classes, or by the recipe of its name.
    Raises FlasharError for other models.
    """
    if config.class_names == CLASS_NAMES or (name in shipped_recipes() and load_recipe(name).data.source):
        return SHAPES
    raise FlasharError("no --data was passed; expected " + DATA_HELP)


def memory_notes(config: RasterConfig, settings: ProbeSettings) -> list[str]:
    """Notes for the user about the memory that the probes will take."""
    needed, what = memory_bytes(config, settings), f"{settings.num_probes} {settings.head} probes"
    notes = [f"{what} take {needed / 2**30:.2f} GiB with their optimizer, beside the model"]
    if needed > MUCH_BYTES and settings.head == "full":
        notes.append("that is much; --head low-rank or --head shared takes a fraction of it, --layers M-N fewer probes")
    return notes


def check_room(config: RasterConfig, settings: ProbeSettings, device: torch.device) -> None:
    """Raises FlasharError where the memory is too small for the probes, or matplotlib is missing."""
    require_matplotlib()
    what = f"{settings.num_probes} {settings.head} probes (--layers, --head, --rank)"
    require_memory(what, memory_bytes(config, settings), device)


def run_probes(
    model: FlasharModel,
    data: TokenSet,
    settings: ProbeSettings,
    num_validation: int,
    dtype: torch.dtype,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """The content of ``probe.json``: per index m and direction the validation loss (nats per token) and top-1 accuracy,
    and the recommended m, the argmin of the lower neighbour's loss over m <= L - branch depth.
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
    probes = _Probes(model, settings, dtype, progress)
    probes.train_on(train)
    rows = probes.measure(validation)
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


class _Probes:
    """A probe for each layer and direction, on a frozen model. ``progress`` gets the number of images done."""

    def __init__(
        self, model: FlasharModel, settings: ProbeSettings, dtype: torch.dtype, progress: Callable[[int], None]
    ) -> None:
        self.model, self.settings, self.dtype, self.progress = model, settings, dtype, progress
        names = [f"{layer}-{way}" for layer in settings.layers for way in DIRECTIONS]
        self.heads = nn.ModuleDict({name: _build(model, settings) for name in names}).to(model.device)

    def train_on(self, data: TokenSet) -> None:
        """One pass of Adam under a cosine."""
        settings, size = self.settings, self.settings.batch_size
        optimizer = torch.optim.Adam(self.heads.parameters(), lr=settings.lr)
        num_steps = max(1, len(data) // size)
        for step in range(num_steps):
            rate = settings.lr * 0.5 * (1 + math.cos(math.pi * step / num_steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = data.take(slice(step * size, (step + 1) * size))
            for name, hidden_KD, targets_K in self._examples(batch):
                # The logits of one probe at a time, as V is large.
                F.cross_entropy(self.heads[name](hidden_KD), targets_K).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.progress(len(batch))

    @torch.inference_mode()
    def measure(self, data: TokenSet) -> list[dict[str, Any]]:
        """A row of the report for each layer; a direction in which no cell has a neighbour is left out."""
        sums = {name: [0.0, 0, 0] for name in self.heads}  # loss, hits, cells
        for start in range(0, len(data), self.settings.batch_size):
            batch = data.take(slice(start, start + self.settings.batch_size))
            for name, hidden_KD, targets_K in self._examples(batch):
                logits_KV, entry = self.heads[name](hidden_KD), sums[name]
                entry[0] += float(F.cross_entropy(logits_KV, targets_K, reduction="sum"))
                entry[1] += int((logits_KV.argmax(dim=-1) == targets_K).sum())
                entry[2] += len(targets_K)
            self.progress(len(batch))
        rows: list[dict[str, Any]] = []
        for layer in self.settings.layers:
            rows.append({"layer": layer})
            for way in DIRECTIONS:
                loss, hits, cells = sums[f"{layer}-{way}"]
                if cells:
                    rows[-1] |= {f"{way}_loss": loss / cells, f"{way}_top1": hits / cells}
        return rows

    def _examples(self, batch: TokenSet) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields (probe name, hidden [K, D], tokens [K]) for every probe: K cells with a neighbour there."""
        grid, device, dtype = self.model.config.order_grid, self.model.device, self.dtype
        order = self.model.config.raster(grid) if self.settings.mask == "raster" else grid.diagonal()
        tokens_BHW, conditions = batch.tensors(device)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            states = hidden_grids(self.model, tokens_BHW, conditions, order, self.settings.layers)
        for layer, hidden_BHWD in zip(self.settings.layers, states, strict=True):
            # Hidden states grow from block to block; normed, one learning rate fits all layers.
            hidden_BHWD = F.rms_norm(hidden_BHWD.float(), hidden_BHWD.shape[-1:])
            if grid.width > 1:
                yield f"{layer}-right", hidden_BHWD[:, :, :-1].flatten(0, 2), tokens_BHW[:, :, 1:].flatten()
            if grid.height > 1:
                yield f"{layer}-lower", hidden_BHWD[:, :-1].flatten(0, 2), tokens_BHW[:, 1:].flatten()


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
