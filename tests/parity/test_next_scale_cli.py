"""Published next-scale models through the commands: convert, inspect, generate, and back to upstream's files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flashar_cli.config import BSQConfig
from flashar_cli.families import get_family
from flashar_cli.tokenizers import build_tokenizer
from tests.parity.fixtures import read_fixture
from tests.parity.next_scale import has_bits

LABELS = "greedy_cfg"


def write_upstream(fixture, folder):
    """Files in upstream's layout, with the constants that its checkpoints have."""
    state = fixture.upstream_state()
    if "vae_state_dict_shapes" in fixture.meta:
        tokenizer = fixture.tokenizer_state()
    else:  # FastVAR's has bits alone
        random = build_tokenizer(BSQConfig(num_bits=4, channels=32))
        tokenizer = get_family("infinity").tokenizer_to_upstream(random.state_dict())
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
    assert report["problems"] == []
    assert report["forwards"]["scale"] == len(report["config"]["schedules"]["longest"][0])
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
    grid, options = told["schedule"][-1], ["--cfg-schedule", ",".join(map(str, told["cfg_list"]))]
    made = run_cli(
        "generate", model, "--caption-features", tmp_path / "captions.safetensors", "--grid", f"{grid[1]}x{grid[2]}",
        "--temperature", 0, *options, "--tokens-out", tmp_path / "t.npz",
    )  # fmt: skip
    assert made.code == 0, made.err
    with np.load(tmp_path / "t.npz") as maps:
        for index, name in enumerate(maps):
            expected = fixture.tensors[f"{run}_bits_{index}"].numpy()
            assert np.array_equal(maps[name].reshape(expected.shape), expected)


@pytest.mark.parametrize("converted", ("fastvar_infinity_small",), indirect=True)
@pytest.mark.parametrize("pruned", (True, False), ids=("fastvar", "truncate"))
def test_greedy_bits_of_fastvar(converted, pruned, tmp_path, run_cli):
    fixture, model = converted
    meta = fixture.meta
    features = fixture.tensors["features"].split(meta["lens"])
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    mask = (torch.arange(max(meta["lens"])) < torch.tensor(meta["lens"])[:, None]).float()
    save_file({"caption_features": padded, "caption_mask": mask}, tmp_path / "captions.safetensors")
    settings = tmp_path / "released.toml"
    settings.write_text(
        "ratios = [[9, 0.4], [10, 0.5]]\nfirst_layer = 3\nlast_layer = 5\ncached_scale = 8\nnum_scales = 11\n"
    )
    made = run_cli(
        "generate", model, "--caption-features", tmp_path / "captions.safetensors", "--temperature", 0,
        "--cfg-schedule", ",".join(map(str, meta["cfg_list"])), "--fastvar", settings,
        "--decoder", "fastvar" if pruned else "truncate", "--grid", "64x64", "--tokens-out", tmp_path / "t.npz",
    )  # fmt: skip
    assert made.code == 0, made.err
    with np.load(tmp_path / "t.npz") as maps:
        assert len(maps) == 11
        for index, name in enumerate(maps):
            published = f"bits_{index}" if pruned else f"noprune_bits_{index}"
            expected = fixture.tensors.get(published, fixture.tensors[f"bits_{index}"]).numpy()
            assert np.array_equal(maps[name].reshape(expected.shape), expected)
