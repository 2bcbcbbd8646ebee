"""What the commands do with a next-scale model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flashar_cli.config import Pruning
from flashar_cli.data.images import read_png
from tests.tiny_models import infinity_like_config, var_like_config

PRUNING = Pruning(ratios=((4, 0.5),), first_layer=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ("adapt", "probe", "encode"))
def test_there_is_nothing_to_adapt(run_cli, write_scale_checkpoint, tmp_path, command):
    model = write_scale_checkpoint(var_like_config())
    done = run_cli(command, model, "--data", "shapes:8", "--out", tmp_path / "out")
    line = f"error: {command} is for raster models, whose tokens follow one another; a next-scale model of family var"
    assert done.code == 2 and done.err.startswith(line) and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ("var", "infinity"))
def test_images_are_those_of_their_tokens(run_cli, write_scale_checkpoint, tmp_path, name):
    """Three images in batches of two are made again from the maps beside them."""
    import flashar_cli

    config = {"var": var_like_config(), "infinity": infinity_like_config()}[name]
    model, shown = write_scale_checkpoint(config), ["--labels", "1,2,3"]
    if name == "infinity":
        shown = ["--caption-features", write_captions(tmp_path / "c.safetensors")]
    options = ("--batch-size", 2, "--seed", 5, "--npz", tmp_path / "adm.npz", "--out", tmp_path / "out")
    done = run_cli("generate", model, *shown, *options)
    assert done.code == 0, done.err
    images = np.stack([read_png(tmp_path / "out" / f"{index:05d}.png") for index in range(3)])
    with np.load(tmp_path / "adm.npz") as adm:
        assert np.array_equal(adm["arr_0"], images)
    with np.load(tmp_path / "out" / "tokens.npz") as maps:
        scales = config.scales(config.order_grid)
        assert [maps[each].shape[1:3] for each in maps] == [(scale.height, scale.width) for scale in scales]
        tokens = np.concatenate([maps[each].reshape(3, -1, *config.token_shape) for each in maps], axis=1)
    import torch

    again = flashar_cli.load(str(model)).images(torch.from_numpy(tokens))
    assert np.abs(again.astype(int) - images).max() <= 1


def write_captions(path):
    import torch
    from safetensors.torch import save_file

    features = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([4, 6, 1])[:, None]).float()
    save_file({"caption_features": features, "caption_mask": mask}, path)
    return path


def test_what_is_left_out_is_written_down(run_cli, write_scale_checkpoint, tmp_path):
    """A run with other settings does not go on where this one was."""
    from PIL import Image

    model = write_scale_checkpoint(var_like_config().with_fastvar(PRUNING))
    out = tmp_path / "out"
    done = run_cli("generate", model, "--labels", 1, "--decoder", "fastvar", "--out", out, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["decoder"] == "fastvar" and told["fastvar"]["ratios"] == [[4, 0.5]]
    with Image.open(out / "00000.png") as image:
        assert "0.5" in json.dumps(image.info)
    done = run_cli("generate", model, "--labels", 1, "--fastvar-scales", 3, "--out", tmp_path / "other", "--json")
    told = json.loads(done.out)
    assert (told["decoder"], told["forwards_per_image"], told["fastvar"]["num_scales"]) == ("fastvar", 3, 3)
    done = run_cli("generate", model, "--labels", 1, "--out", tmp_path / "all", "--json")
    assert json.loads(done.out)["decoder"] == "scale" and "fastvar" not in json.loads(done.out)


@pytest.mark.parametrize(
    ("options", "words"),
    (
        (("--decoder", "scale", "--fastvar-scales", 3), "--decoder is scale, which leaves nothing out"),
        (("--decoder", "flashar"), "--decoder flashar takes one token after the other; this model predicts whole maps"),
        (("--decoder", "fastvar"), "pass --fastvar"),
        (("--decoder", "truncate"), "pass --fastvar-scales"),
        (("--decoder", "truncate", "--fastvar-ratios", "4:0.5"), "pass --fastvar-scales"),
        (("--fastvar-ratios", "9:0.5"), "scale 9 is to be pruned; this model has scales 0 to 4"),
        (("--fastvar-ratios", "4:0.5", "--fastvar-cached-scale", 4), "expected scales after cached_scale 4"),
        (("--fastvar", "no-such"), "--fastvar is no-such; expected a file FILE.toml, or one of"),
        (("--fastvar", "no-such.toml"), "no-such.toml"),
        (("--grid", "4x4"), "for which this model has no schedule; expected one of 3x5"),
        (("--cfg-schedule", "1,2"), "--cfg-schedule has 2 scales; expected 5"),
        (("--cfg-schedule", "steep"), "expected constant, linear, or a scale for each step"),
        (("--tokens-out", "tokens.npy"), "the tokens of this model go into a file FILE.npz"),
        (("--prompt", "a star"), "this model is class-conditional"),
    ),
)
def test_bad_input_is_one_line(run_cli, write_scale_checkpoint, tmp_path, options, words):
    model = write_scale_checkpoint(var_like_config())
    shown = () if "--prompt" in options else ("--labels", 1)
    done = run_cli("generate", model, *shown, *options)
    assert done.code == 2 and words in done.err.splitlines()[-1], done.err
    assert [path.name for path in tmp_path.iterdir()] == ["scales"]


def test_captions_of_another_width_are_one_line(run_cli, write_scale_checkpoint, tmp_path):
    other = infinity_like_config()
    wide = other.model_copy(update={"prefix": other.prefix.model_copy(update={"feature_dim": 24})})
    model = write_scale_checkpoint(wide)
    done = run_cli("generate", model, "--caption-features", write_captions(tmp_path / "c.safetensors"))
    assert done.code == 2 and "24" in done.err and done.err.count("\n") == 1, done.err


def test_a_config_whose_schedule_does_not_fit_its_weights_is_one_line(run_cli, write_scale_checkpoint):
    model = write_scale_checkpoint(var_like_config())
    document = json.loads((model / "config.json").read_text())
    document["schedules"]["longest"][0][-2] = [2, 5]
    (model / "config.json").write_text(json.dumps(document))
    done = run_cli("generate", model, "--labels", 1, "--no-images")
    assert done.code == 2 and "positions" in done.err and done.err.count("\n") == 1, done.err
