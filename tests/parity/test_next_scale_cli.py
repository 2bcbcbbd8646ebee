"""Published next-scale models through the commands: convert, inspect, generate, and back to upstream's files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.parity.fixtures import read_fixture
from tests.parity.next_scale import has_bits

LABELS = "greedy_cfg"


def write_upstream(fixture, folder):
    """Files in upstream's layout, with the constants that its checkpoints have."""
    state, tokenizer = fixture.upstream_state(), fixture.tokenizer_state()
    constants = {
        name.replace("v_bias", "zero_k_bias"): torch.zeros_like(state[name])
        for name in state
        if name.endswith("v_bias")
    }
    model, images = folder / "model.pth", folder / "vae.pth"
    torch.save({**state, **constants}, model)
    torch.save(tokenizer, images)
    return model, images


@pytest.fixture
def converted(request, tmp_path, run_cli):
    fixture = read_fixture(request.param)
    model, images = write_upstream(fixture, tmp_path)
    options = []
    if not has_bits(fixture):
        options = ["--scales", ",".join(map(str, fixture.meta["config"]["patch_nums"]))]
    result = run_cli("convert", model, "--tokenizer", images, "--out", tmp_path / "model", *options)
    assert result.code == 0, result.err
    return fixture, tmp_path / "model"


@pytest.mark.parametrize("converted", ("var_small", "var_shared_aln_small"), indirect=True)
@pytest.mark.parametrize("cfg", ("1.5", "4"))
def test_greedy_tokens_of_var(converted, cfg, tmp_path, run_cli):
    fixture, model = converted
    labels = ",".join(map(str, fixture.tensors["labels"].tolist()))
    scale = str(1 + float(cfg))
    made = run_cli(
        "generate",
        model,
        "--labels",
        labels,
        "--temperature",
        0,
        "--cfg-scale",
        scale,
        "--tokens-out",
        tmp_path / "t.npz",
    )
    assert made.code == 0, made.err
    sides, expected = fixture.meta["config"]["patch_nums"], fixture.tensors[f"greedy_cfg{cfg}"]
    with np.load(tmp_path / "t.npz") as maps:
        assert list(maps) == [f"scale_{index}" for index in range(len(sides))]
        for name, part in zip(maps, expected.split([side * side for side in sides], dim=1), strict=True):
            assert np.array_equal(maps[name].reshape(len(part), -1), part.numpy())


@pytest.mark.parametrize("converted", ("var_small", "infinity_small", "infinity_patchify_small"), indirect=True)
def test_inspect_and_the_way_back(converted, tmp_path, run_cli):
    _, model = converted
    report = json.loads(run_cli("inspect", model, "--json").out)
    assert report["problems"] == [] and report["forwards"] == {
        "scale": len(report["config"]["schedules"]["longest"][0])
    }
    assert run_cli("convert", model, "--to", "upstream", "--out", tmp_path / "back.pth").code == 0


@pytest.mark.parametrize(
    ("converted", "run"),
    [
        (name, run)
        for name, runs in (
            ("infinity_small", ("square", "ramp", "tall")),
            ("infinity_patchify_small", ("square", "wide")),
        )
        for run in runs
    ],
    indirect=["converted"],
)
def test_greedy_bits_of_infinity(converted, run, tmp_path, run_cli):
    fixture, model = converted
    told = fixture.meta["runs"][run]
    lens, features = told["lens"], fixture.tensors[f"{run}_features"].split(told["lens"])
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    mask = (torch.arange(max(lens)) < torch.tensor(lens)[:, None]).float()
    save_file({"caption_features": padded, "caption_mask": mask}, tmp_path / "captions.safetensors")
    grid, schedule = told["schedule"][-1], ",".join(map(str, told["cfg_list"]))
    options = ["--cfg-schedule", schedule]
    made = run_cli(
        "generate", model, "--caption-features", tmp_path / "captions.safetensors", "--grid", f"{grid[1]}x{grid[2]}",
        "--temperature", 0, *options, "--tokens-out", tmp_path / "t.npz",
    )  # fmt: skip
    assert made.code == 0, made.err
    with np.load(tmp_path / "t.npz") as maps:
        for index, name in enumerate(maps):
            expected = fixture.tensors[f"{run}_bits_{index}"].numpy()
            assert np.array_equal(maps[name].reshape(expected.shape), expected)
