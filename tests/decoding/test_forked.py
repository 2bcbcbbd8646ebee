"""When the branch on a second stream starts and what waits for it; what a GPU makes of that: ``test_graphs.py``."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.decoding.decoder import decode
from flashar_cli.decoding.forked import forked_branch
from flashar_cli.nn.sampling import SamplingParams, uniform_table
from tests.decoding.test_decoder import make_conditions, make_model


class Stream:
    """Does nothing, and says what it was asked to."""

    def __init__(self, name, log):
        self.name, self.log, self.device = name, log, torch.device("cpu")

    def record_event(self):
        self.log.append("fork")
        return "event"

    def wait_event(self, event):
        assert event == "event"
        self.log.append(f"{self.name} waits for the fork")

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class Cuda:
    def __init__(self, monkeypatch):
        self.log: list[str] = []
        self.now, self.side = Stream("main", self.log), Stream("side", self.log)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.side)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.now)
        monkeypatch.setattr(torch.cuda, "stream", self.on)

    def on(self, stream):
        self.next = stream
        return self

    def __enter__(self):
        self.before, self.now = self.now, self.next

    def __exit__(self, *error):
        self.now = self.before

    def says(self, module, name):
        module.register_forward_pre_hook(lambda *args: self.log.append(f"{name} on {self.now.name}"))


@pytest.mark.parametrize("layer", (0, 1, 2))
def test_the_branch_waits_for_its_layer_alone_and_the_heads_for_the_branch(monkeypatch, layer):
    model = make_model(3, 5, "hidden", layer=layer, depth=1)
    order, conditions, params = model.config.order_grid.diagonal(), make_conditions(2, False), SamplingParams()
    uniform = uniform_table(0, 0, 2, 15)
    expected: list[torch.Tensor] = []
    decode(model, conditions, order, params, uniform, lambda _, logits: expected.append(logits))

    cuda, seen = Cuda(monkeypatch), []
    blocks = [f"block {index} on main" for index in range(2)]
    for index, block in enumerate(model.backbone.blocks):
        cuda.says(block, f"block {index}")
    named = {"branch": model.branch.blocks[0], "branch norm": model.branch.norm, "branch head": model.branch.head}
    for name, module in {**named, "norm": model.backbone.norm, "head": model.backbone.head}.items():
        cuda.says(module, name)
    with forked_branch(model).active():
        decode(model, conditions, order, params, uniform, lambda _, logits: seen.append(logits))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, expected, strict=True))
    assert cuda.log == order.num_steps * [
        *blocks[:layer],
        "fork",
        *blocks[layer:],
        "norm on main",
        "side waits for the fork",
        "branch on side",
        "branch norm on side",
        "main waits for side",
        "head on main",
        "branch head on main",
    ]

    cuda.log.clear()
    decode(model, conditions, order, params, uniform)
    assert not any("side" in line for line in cuda.log), "the model is as it was"


def test_raster_forks_nothing(monkeypatch):
    model, cuda = make_model(3, 5, "hidden"), Cuda(monkeypatch)
    with forked_branch(model).active():
        raster = model.config.order_grid.raster()
        decode(model, make_conditions(2, False), raster, SamplingParams(), uniform_table(0, 0, 2, 15))
    assert cuda.log == []
