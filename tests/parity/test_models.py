"""Every published output, through convert, generate and the Python API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import flashar_cli
from flashar_cli.api import ImageModel
from tests.parity.fixtures import Fixture, read_fixture

SMALL = (
    "llamagen_c2i_small",
    "llamagen_t2i_small",
    "nar_c2i_small",
    "flashar_llamagen_small",
    "flashar_llamagen_two_layers",
    "flashar_llamagen_t2i_small",
    "flashar_llamagen_clamped",
)


@pytest.fixture(scope="module", params=(*SMALL, "llamagen_c2i_B_256"))
def converted(request, tmp_path_factory) -> tuple[str, Fixture, Path]:
    """A fixture imported by the command line."""
    from typer.testing import CliRunner

    from flashar_cli.cli.main import app

    fixture = read_fixture(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    torch.save({"model": {name: fixture.upstream(name) for name in fixture.upstream_names}}, folder / "upstream.pt")
    arguments = ["convert", str(folder / "upstream.pt"), "--out", str(folder / "model"), *fixture.convert_arguments]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (folder / "upstream.pt").unlink()
    return request.param, fixture, folder


@pytest.fixture(scope="module")
def loaded(converted) -> ImageModel:
    return flashar_cli.load(str(converted[2] / "model"))


def test_family_is_recognised(converted, loaded):
    assert loaded.config.family == converted[1].meta["family"]


def test_logits(converted, loaded):
    name, fixture, _ = converted
    grid = loaded.config.order_grid
    tokens = fixture.tensors["tokens"].reshape(-1, grid.height, grid.width)
    given = fixture.conditions.tensors
    captions = {"caption_features": given.get("features"), "caption_mask": given.get("mask")}
    logits = loaded.logits(tokens, given.get("labels"), **captions).flatten(1, 2)
    expected = fixture.tensors
    if name == "llamagen_c2i_B_256":
        torch.testing.assert_close(logits[..., expected["columns"]], expected["logits_columns"], atol=5e-4, rtol=0)
        torch.testing.assert_close(logits.logsumexp(-1), expected["logsumexp"], atol=5e-4, rtol=0)
        clear = expected["argmax_margin"] > 1e-3
        assert torch.equal(logits.argmax(-1)[clear], expected["argmax"][clear])
    else:
        published = expected["fused_logits" if "fused_logits" in expected else "logits"]
        torch.testing.assert_close(logits, published, atol=1e-4, rtol=0)


def test_gate(converted, loaded):
    _, fixture, _ = converted
    if "gate_interior" not in fixture.tensors:
        assert loaded.model.branch is None
        return
    order = loaded.config.order_grid.diagonal()
    tokens = fixture.tensors["tokens"].reshape(-1, *(order.grid.height, order.grid.width))
    with torch.no_grad():
        prediction = loaded.model(order.from_raster(tokens), fixture.conditions, order)
    gate = order.to_raster(prediction.gate, trailing=1)[:, 1:, 1:, 0]
    torch.testing.assert_close(gate, fixture.tensors["gate_interior"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", (1, 2))
def test_greedy_decode_by_command(converted, loaded, run_cli, tmp_path, scale):
    name, fixture, folder = converted
    if name == "llamagen_c2i_B_256" and scale == 1:
        # In one forward instead of 256: where each token is the likeliest after those before it, greedy decoding makes
        # them all. The guided decode below is of this size.
        published = fixture.tensors["greedy_cfg1"]
        logits = loaded.logits(published.reshape(-1, 16, 16), fixture.tensors["labels"]).flatten(1, 2)
        assert torch.equal(logits.argmax(-1), published) and fixture.tensors["greedy_cfg1_margin"].min() > 1e-3
        return
    condition = ["--labels", ",".join(map(str, fixture.tensors.get("labels", torch.zeros(0)).tolist()))]
    if "features" in fixture.conditions.tensors:
        from safetensors.torch import save_file

        captions = {key: fixture.tensors[key] for key in ("caption_features", "caption_mask")}
        save_file(captions, tmp_path / "captions.safetensors")
        condition = ["--caption-features", tmp_path / "captions.safetensors"]
    target = tmp_path / "tokens.npy"
    result = run_cli(
        *("generate", folder / "model", *condition, "--temperature", 0, "--top-k", 0, "--cfg-scale", scale),
        *("--tokens-out", target),
    )
    assert result.code == 0, result.err
    tokens = np.load(target)
    assert tokens.dtype == np.int64
    tokens = tokens.reshape(len(tokens), -1)
    published = fixture.tensors[f"greedy_cfg{scale}"].numpy()
    for row, (ours, theirs) in enumerate(zip(tokens, published, strict=True)):
        length = len(theirs)
        if name == "llamagen_c2i_B_256":
            near_ties = (fixture.tensors[f"greedy_cfg{scale}_margin"][row] < 1e-3).nonzero()
            length = int(near_ties[0]) if len(near_ties) else length
        assert np.array_equal(ours[:length], theirs[:length])
        assert length > 40


def test_round_trip_is_bit_exact(converted, run_cli, tmp_path):
    _, fixture, folder = converted
    assert run_cli("convert", folder / "model", "--to", "upstream", "--out", tmp_path / "back.pt").code == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True, mmap=True)["model"]
    assert sorted(back) == sorted(fixture.upstream_names)
    assert all(torch.equal(back[name], fixture.upstream(name)) for name in back)
