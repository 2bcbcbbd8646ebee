"""Losses computed a few targets at a time against losses of all logits at once, values and gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flashar_cli.config import BranchConfig, RasterConfig, default_gate_dim
from flashar_cli.config.recipe import StageSettings
from flashar_cli.models.flashar import FlasharModel, Prediction
from flashar_cli.models.prefix import Conditions
from flashar_cli.training import losses
from flashar_cli.training.losses import Losses, losses_of
from tests.tiny_models import CAPTION_PREFIX, build_model, random_config

GRIDS = ((1, 5), (5, 1), (3, 5), (5, 3), (4, 4))
GATES = ("hidden", "logits", "scalar", "mean")
ALL_TERMS = StageSettings(
    backbone_lr_factor=0.0,
    vertical_weight=0.05,
    horizontal_weight=0.3,
    distill_weight=0.2,
    distill_temperature=1.7,
    gate_entropy_weight=0.1,
)


def gated_config(gate: str, height: int, width: int, captions: bool = False) -> RasterConfig:
    """40 tokens, so that logits are told from hidden states, which are 64 wide."""
    config = random_config(height, width, tokenizer=False)
    backbone = config.backbone.model_copy(update={"vocab_size": 40})
    branch = BranchConfig(layer=1, gate=gate, gate_dim=default_gate_dim(gate, 64, 40))  # type: ignore[arg-type]
    prefix = CAPTION_PREFIX if captions else config.prefix
    return config.model_copy(update={"backbone": backbone, "branch": branch, "prefix": prefix})


def random_model(config: RasterConfig) -> FlasharModel:
    """Large enough weights for gates and heads to differ from cell to cell."""
    model = build_model(config).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def example(config: RasterConfig, count: int = 3) -> tuple[Tensor, Conditions, Tensor, Tensor, Tensor]:
    """Tokens in diagonal order, conditions, dropped rows, blanked tokens, and the hidden states of a teacher."""
    torch.manual_seed(2)
    cells = config.order_grid.num_cells
    conditions = Conditions(labels=torch.arange(count))
    if config.prefix == CAPTION_PREFIX:
        mask = (torch.arange(CAPTION_PREFIX.length) >= torch.arange(count)[:, None]).float()
        conditions = Conditions(features=torch.randn(count, CAPTION_PREFIX.length, 16), mask=mask)
    blank = torch.rand(count, cells) < 0.2
    return (
        torch.randint(config.backbone.vocab_size, (count, cells)),
        conditions,
        torch.arange(count) == 1,
        blank,
        torch.randn(count, cells, 64),
    )


def plain_loss(prediction: Prediction, tokens_BN: Tensor, settings: StageSettings, teacher_BNV: Tensor) -> Losses:
    """As the paper and the settings' descriptions have it, image by image and cell by cell."""
    targets = prediction.targets
    across, below = targets.has_horizontal.tolist(), targets.has_vertical.tolist()
    assert prediction.vertical is not None and prediction.gate is not None
    parts: dict[str, list[Tensor]] = {name: [] for name in ("fused", "vertical", "horizontal", "distill", "gate")}
    for b in range(len(tokens_BN)):
        for k, token in enumerate(tokens_BN[b].tolist()):
            parts["fused"].append(-prediction.logits[b, k].log_softmax(-1)[token])
            if across[k]:
                parts["horizontal"].append(-prediction.horizontal[b, k].log_softmax(-1)[token])
            if below[k]:
                parts["vertical"].append(-prediction.vertical[b, k].log_softmax(-1)[token])
                heat = settings.distill_temperature
                wanted = (teacher_BNV[b, k] / heat).softmax(-1)
                got = (prediction.vertical[b, k] / heat).log_softmax(-1)
                parts["distill"].append(heat**2 * (wanted * (wanted.log() - got)).sum())
            if across[k] and below[k]:
                parts["gate"].append(prediction.gate[b, k, 0])
    fused, vertical, horizontal, distill = (torch.stack(parts[name]).mean() for name in list(parts)[:4])
    gates = torch.stack(parts["gate"])
    entropy = torch.distributions.Bernoulli(probs=gates).entropy().mean() / torch.tensor(2.0).log()
    total = fused + settings.vertical_weight * vertical + settings.horizontal_weight * horizontal
    total = total + settings.distill_weight * distill - settings.gate_entropy_weight * entropy
    return Losses(
        total, fused, vertical, horizontal, distill, entropy, gates.mean(), gates.std(correction=0), prediction.gate
    )


def gradients(model: FlasharModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(config: RasterConfig, settings: StageSettings = ALL_TERMS) -> None:
    model, order = random_model(config), config.order_grid.diagonal()
    tokens, conditions, drop, blank, teacher = example(config)
    forward = partial(model, tokens, conditions, order, drop, blank)
    with torch.no_grad():
        teacher_BNV = F.linear(teacher, model.backbone.head.weight)
    expected = plain_loss(forward(), tokens, settings, teacher_BNV)
    expected_gradients = gradients(model, 0.3 * expected.total)  # as in one micro-batch of several
    read = partial(losses_of, model, tokens_BN=tokens, settings=settings, teacher_BND=teacher)
    got = forward(read=read)
    for name, value, wanted in zip(Losses._fields, got, expected, strict=True):
        wanted = wanted[..., 0] if name == "gate" else wanted
        torch.testing.assert_close(value, wanted, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    got_gradients = gradients(model, 0.3 * got.total)
    assert got_gradients.keys() == expected_gradients.keys()
    for name, wanted in expected_gradients.items():
        torch.testing.assert_close(
            got_gradients[name], wanted, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "at_once", (1, 2, 7, 1024)
)  # 2: of three images two and one; 7: two cells of three, and a rest
@pytest.mark.parametrize("gate", GATES)
def test_every_gate_in_parts_of_every_size(monkeypatch, gate, at_once):
    monkeypatch.setattr(losses, "TARGETS_AT_ONCE", at_once)
    compare(gated_config(gate, 3, 5))


@pytest.mark.parametrize("shape", GRIDS)
def test_every_grid(monkeypatch, shape):
    monkeypatch.setattr(losses, "TARGETS_AT_ONCE", 7)
    compare(gated_config("hidden", *shape))


def test_wide_heads_have_fewer_targets_at_once_than_images(monkeypatch):
    """Logits of 131072 tokens are 0.5 MiB a target."""
    assert [losses.targets_at_once(size) for size in (40, 16384, 131072, 2**28)] == [1024, 1024, 512, 1]
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 2 * 40 + 39)
    compute, seen = losses.part_sums, []

    def part_sums(model, settings, h_BCD, v_BCD, tokens_BC, *rest):
        seen.append(tokens_BC.numel())
        return compute(model, settings, h_BCD, v_BCD, tokens_BC, *rest)

    monkeypatch.setattr(losses, "part_sums", part_sums)
    compare(gated_config("hidden", 3, 5))
    assert sum(seen) == 3 * 15 and set(seen) == {1, 2}


def test_captions_and_their_masks(monkeypatch):
    monkeypatch.setattr(losses, "TARGETS_AT_ONCE", 7)
    compare(gated_config("logits", 4, 4, captions=True))


def test_a_base_has_the_cross_entropy_alone(monkeypatch):
    monkeypatch.setattr(losses, "TARGETS_AT_ONCE", 7)
    config = random_config(3, 5, branch=False)
    model, order = random_model(config), config.order_grid.raster()
    tokens, conditions, *_ = example(config)
    expected = F.cross_entropy(model(tokens, conditions, order).logits.transpose(1, 2), tokens)
    expected_gradients = gradients(model, expected)
    got = model(tokens, conditions, order, read=partial(losses_of, model, tokens_BN=tokens, settings=StageSettings()))
    assert [name for name, value in zip(Losses._fields, got, strict=True) if value is not None] == ["total", "fused"]
    torch.testing.assert_close(got.total, expected)
    torch.testing.assert_close(gradients(model, got.total), expected_gradients)


def test_terms_without_weight_are_off_and_frozen_parts_have_no_gradient():
    config = gated_config("hidden", 3, 5)
    model, order = random_model(config), config.order_grid.diagonal()
    model.backbone.requires_grad_(False)
    tokens, conditions, *_ = example(config)
    got = model(tokens, conditions, order, read=partial(losses_of, model, tokens_BN=tokens, settings=StageSettings()))
    assert got.distill is None and got.gate_entropy is None
    names = gradients(model, got.total)
    assert names and not any(name.startswith("backbone.") for name in names)
    torch.testing.assert_close(got.total, got.fused + 0.05 * got.vertical)


class Watched(TorchDispatchMode):
    """Records the operations that run, and the most rows of V numbers that one of them returns."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.vocab_size, self.most_rows = vocab_size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("index", "index_put"):
            assert not any(isinstance(t, Tensor) and t.dtype == torch.bool for t in args[1]), "a boolean index"
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[-1:] == (self.vocab_size,):
                self.most_rows = max(self.most_rows, tensor.numel() // self.vocab_size)
        return result


@pytest.mark.parametrize("gate", GATES)
def test_nothing_waits_for_the_device_and_no_logits_of_all_cells_exist(monkeypatch, gate):
    monkeypatch.setattr(losses, "TARGETS_AT_ONCE", 7)
    config = gated_config(gate, 3, 5)
    model, order = random_model(config), config.order_grid.diagonal()
    tokens, conditions, drop, blank, teacher = example(config, 5)
    read = partial(losses_of, model, tokens_BN=tokens, settings=ALL_TERMS, teacher_BND=teacher)
    model(tokens, conditions, order, drop, blank, read)  # tables are made once
    with Watched(vocab_size=40) as watched:
        model(tokens, conditions, order, drop, blank, read).total.backward()
    waits = {"nonzero", "masked_select", "_local_scalar_dense", "item", "is_nonzero", "lift_fresh", "unique"}
    assert not watched.names & waits
    assert "_log_softmax" in watched.names
    # The weight of a head has D = 64 such rows; all logits have 5 * 15.
    assert watched.most_rows <= 64 < len(tokens) * order.grid.num_cells


def test_compiled_sums_are_the_same(monkeypatch):
    monkeypatch.setattr(losses, "TARGETS_AT_ONCE", 15)
    whole = torch.compile(losses.part_sums, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(losses, "_compiled_sums", lambda: whole)
    config = gated_config("hidden", 3, 5)
    model, order = random_model(config), config.order_grid.diagonal()
    tokens, conditions, drop, blank, teacher = example(config)
    found = []
    for compiled in (False, True):
        read = partial(losses_of, model, tokens_BN=tokens, settings=ALL_TERMS, teacher_BND=teacher, compiled=compiled)
        got = model(tokens, conditions, order, drop, blank, read)
        found.append((got.total.detach(), gradients(model, got.total)))
    torch.testing.assert_close(found[0], found[1])


def test_low_precision_adds_gradients_up_in_float32(monkeypatch):
    """Weights in bfloat16, as shards are gathered: parts of one cell must not round the sum at every cell."""
    config = gated_config("hidden", 4, 4)
    model, order = random_model(config).bfloat16(), config.order_grid.diagonal()
    tokens, conditions, *_ = example(config)
    found = []
    for at_once in (1024, 1):
        monkeypatch.setattr(losses, "TARGETS_AT_ONCE", at_once)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(
                tokens, conditions, order, read=partial(losses_of, model, tokens_BN=tokens, settings=StageSettings())
            )
        found.append(gradients(model, got.total)["branch.head.weight"].float())
    assert (found[0] - found[1]).norm() < 2**-8 * found[0].norm()
