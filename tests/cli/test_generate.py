"""`flashar generate`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import flashar_cli


def test_images_tokens_and_npz(run_cli, write_tiny_checkpoint, tmp_path):
    model = write_tiny_checkpoint()
    out, npz, tokens_file = tmp_path / "out", tmp_path / "samples.npz", tmp_path / "tokens.npy"
    arguments = ("--labels", "0-2", "--num-images", 5, "--batch-size", 2, "--seed", 3)
    result = run_cli("generate", model, *arguments, "--out", out, "--npz", npz, "--tokens-out", tokens_file, "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert summary["decoder"] == "flashar" and summary["forwards_per_image"] == 7 and summary["num_images"] == 5
    tokens = np.load(tokens_file)
    assert tokens.shape == (5, 4, 4) and tokens.dtype == np.int64 and tokens.min() >= 0 and tokens.max() < 32
    assert np.array_equal(tokens, np.load(out / "tokens.npy"))
    images = np.load(npz)["arr_0"]
    assert images.shape == (5, 16, 16, 3) and images.dtype == np.uint8
    pngs = sorted(out.glob("0*.png"))
    assert len(pngs) == 5 and (out / "contact-sheet.png").exists()
    with Image.open(pngs[4]) as image:
        settings = json.loads(image.text["flashar"])
        assert np.array_equal(np.asarray(image), images[4])
    assert settings["seed"] == 3 and settings["image"] == 4 and settings["shows"] == "class 1"
    assert settings["cfg_scale"] == 1.5 and settings["top_k"] == 8  # the checkpoint's defaults


def test_same_seed_same_tokens_whatever_the_batch(run_cli, write_tiny_checkpoint, tmp_path):
    model, files = write_tiny_checkpoint(), []
    for batch_size in (1, 3):
        files.append(tmp_path / f"{batch_size}.npy")
        arguments = ("--num-images", 6, "--batch-size", batch_size, "--tokens-out", files[-1])
        assert run_cli("generate", model, *arguments, "--decoder", "raster").code == 0
    assert np.array_equal(*(np.load(path) for path in files))


def test_optimisations_write_the_same_tokens(run_cli, write_tiny_checkpoint, tmp_path):
    model = write_tiny_checkpoint()
    arguments = ("--labels", "0-2", "--batch-size", 2, "--json")
    assert run_cli("generate", model, *arguments, "--tokens-out", tmp_path / "plain.npy").code == 0
    graph = ("--optimisation", "graph", "--device", "cpu", "--dtype", "float32", "--warm")
    result = run_cli("generate", model, *arguments, *graph, "--tokens-out", tmp_path / "graph.npy")
    assert result.code == 0 and json.loads(result.out)["optimisation"] == "eager"
    assert "need a CUDA device; decoding eagerly" in result.err and result.err.count("\n") == 1
    assert np.array_equal(np.load(tmp_path / "plain.npy"), np.load(tmp_path / "graph.npy"))
    refused = run_cli("generate", model, "--optimisation", "fast")
    assert refused.code == 2


@pytest.mark.parametrize("scheme", ("int8", "fp8"))
def test_quantised_images(run_cli, write_tiny_checkpoint, tmp_path, scheme):
    pytest.importorskip("torchao")
    out = tmp_path / "out"
    arguments = ("--labels", "0-2", "--optimisation", "packed", "--quantize", scheme)
    result = run_cli("generate", write_tiny_checkpoint(), *arguments, "--device", "cpu", "--out", out, "--json")
    assert result.code == 0, result.err
    assert result.err.count("\n") == 1 and "not quantised; decoding eagerly" in result.err
    assert json.loads(result.out)["quantize"] == scheme
    with Image.open(out / "00001.png") as image:
        assert json.loads(image.text["flashar"])["quantize"] == scheme


@pytest.mark.parametrize("torchao_is_there", (True, False))
def test_what_cannot_be_quantised_is_one_line(run_cli, write_tiny_checkpoint, tmp_path, monkeypatch, torchao_is_there):
    arguments = ("--quantize", "int8", "--device", "cpu", "--dtype", "float16", "--out", tmp_path / "out")
    words = "int8 overflows float16"
    if not torchao_is_there:
        monkeypatch.setitem(sys.modules, "torchao", None)
        monkeypatch.setitem(sys.modules, "torchao.quantization", None)
        arguments, words = (*arguments, "--dtype", "float32"), "pip install flashar[quant]"
    result = run_cli("generate", write_tiny_checkpoint(), *arguments)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err
    assert not (tmp_path / "out").exists()


def test_tokens_alone_need_no_tokenizer(run_cli, write_tiny_checkpoint, tmp_path):
    model = write_tiny_checkpoint(tokenizer=False)
    refused = run_cli("generate", model, "--labels", 1, "--out", tmp_path / "out")
    assert refused.code == 2 and "no tokenizer" in refused.err and not (tmp_path / "out").exists()
    assert run_cli("generate", model, "--labels", 1, "--out", tmp_path / "out", "--no-images").code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokens.npy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--labels", "10"), "label 10 is out of range; expected 0..9"),
        (("--labels", "8-12"), "label range '8-12'"),
        (("--labels", "star"), "no table of class names"),
        (("--temperature", -1), "--temperature is -1"),
        (("--temperature", "nan"), "--temperature is nan"),
        (("--temperature", "inf"), "--temperature is inf"),
        (("--seed", -1), "--seed"),
        (("--tokens-out", "model.txt/t.npy"), "is a file; expected a directory"),
        (("--top-k", -1), "--top-k is -1"),
        (("--top-p", 0), "--top-p is 0"),
        (("--cfg-scale", -2), "--cfg-scale is -2"),
        (("--cfg-interval", "0.5:0.2"), "--cfg-interval"),
        (("--cfg-interval", "half"), "--cfg-interval is half"),
        (("--num-images", 0), "--num-images is 0; expected a whole number from 1"),
        (("--num-images", 2**31), "GiB of disk for"),
        (("--num-images", 10**11), "--num-images is 100000000000; expected"),
        (("--batch-size", 2**20, "--num-images", 2**20), "a batch of 1048576 images (--batch-size) needs"),
        (("--threads", 10**9), "--threads is 1000000000; expected"),
        (("--temperature", "1e-46"), "--temperature is 1e-46"),
        (("--labels", "0-99999999999"), "is not within 0-9"),
        (("--prompt", "a cat"), "class-conditional"),
        (("--device", "tpu"), "--device is tpu"),
        (("--device", "cuda:99"), "CUDA devices"),
        (("--no-images", "--npz", "x.npz"), "--npz holds images"),
    ),
)
def test_bad_options_write_nothing(run_cli, write_tiny_checkpoint, tmp_path, monkeypatch, arguments, words):
    model = write_tiny_checkpoint()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.txt").write_text("a file, not a folder")
    before = set(tmp_path.iterdir())
    result = run_cli("generate", model, *arguments)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err
    assert set(tmp_path.iterdir()) == before


def test_flashar_of_a_base_is_refused(run_cli, write_tiny_checkpoint, tmp_path):
    result = run_cli("generate", write_tiny_checkpoint(branch=False), "--decoder", "flashar", "--out", tmp_path / "o")
    assert result.code == 2 and "no vertical branch" in result.err


@pytest.mark.parametrize("damage", ("missing", "extra", "misshaped", "nan", "truncated", "config", "foreign-config"))
def test_damaged_checkpoints(run_cli, write_tiny_checkpoint, tmp_path, damage):
    model = write_tiny_checkpoint()
    weights, config = model / "model.safetensors", model / "config.json"
    state = load_file(weights)
    if damage == "missing":
        del state["branch.gate.mlp.fc1.weight"]
    elif damage == "extra":
        state["more"] = torch.zeros(1)
    elif damage == "misshaped":
        state["backbone.norm.weight"] = torch.zeros(3)
    elif damage == "nan":
        state["backbone.norm.weight"][0] = torch.nan
    save_file(state, weights)
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        config.write_text(config.read_text().replace('"num_layers"', '"num_layer"'))
    elif damage == "foreign-config":
        config.write_text('{"model_type": "llama"}')
    for command in (("generate", model, "--tokens-out", tmp_path / "t.npy"), ("inspect", model)):
        result = run_cli(*command)
        assert result.code == 2 and result.err.count("\n") == 1, (result.out, result.err)
    assert not (tmp_path / "t.npy").exists()


def test_unknown_models(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path))
    assert "did you mean llamagen-tiny?" in run_cli("generate", "llamagen-tyny", "--labels", 1).err
    result = run_cli("generate", "llamagen-b", "--labels", 1, "--tokens-out", tmp_path / "t.npy")
    assert result.code == 2 and "c2i_B_256.pt" in result.err and "llamagen-tiny" in result.err
    assert run_cli("generate").code == 2


def test_prompts_of_a_file_in_any_batches_on_any_grid(run_cli, prompt_checkpoint, tmp_path):
    prompts = ["a red star", "a blue ring and a green heart for the helpful assistant", "", "stars"]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    words = [part for prompt in prompts for part in ("--prompt", prompt)]
    made = []
    for k, shown in enumerate((("--prompts-file", tmp_path / "p.jsonl"), words)):
        out = tmp_path / f"{k}"
        arguments = ("--grid", "4x3", "--batch-size", 3 - k, "--out", out, "--samples-per-prompt", 2, "--json")
        result = run_cli("generate", prompt_checkpoint, *shown, *arguments)
        assert result.code == 0, result.err
        assert json.loads(result.out)["grid"] == "4x3" and json.loads(result.out)["num_images"] == 8
        made.append(np.load(out / "tokens.npy"))
    assert made[0].shape == (8, 4, 3) and np.array_equal(*made)
    with Image.open(tmp_path / "0" / "00005.png") as image:
        settings = json.loads(image.text["flashar"])
        assert image.size == (12, 16) and settings["shows"] == "" and settings["grid"] == "4x3"
    # Each image is that of its prompt alone, whose prefix is not padded.
    model = flashar_cli.load(str(prompt_checkpoint))
    alone = model.generate(prompts=[prompts[0], prompts[0]], grid=(4, 3), batch_size=1).tokens
    assert np.array_equal(alone, made[0][:2])


def test_negative_prompts_change_guidance_alone(run_cli, prompt_checkpoint, tmp_path):
    def tokens(*more: object) -> np.ndarray:
        path = tmp_path / "t.npy"
        result = run_cli(
            "generate", prompt_checkpoint, "--prompt", "a red star", "--tokens-out", path, "--overwrite", *more
        )
        assert result.code == 0, result.err
        return np.load(path)

    guided = ("--num-images", 3, "--temperature", 1, "--top-k", 0, "--cfg-scale", 4)
    plain, negative = tokens(*guided), tokens(*guided, "--negative-prompt", "a blue ring")
    assert not np.array_equal(plain, negative)
    assert np.array_equal(
        tokens(*guided, "--cfg-scale", 1), tokens(*guided, "--cfg-scale", 1, "--negative-prompt", "a")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (
            ("--prompt", "a", "--grid", "1x200"),
            "a grid of 1x200 after 1 prefix tokens takes 202 positions; this model knows 128",
        ),
        (("--prompt", "a red star", "--grid", "10x11"), "a grid of 10x11 after 13 prefix tokens takes 133 positions"),
        (("--prompt", "a", "--grid", "0x3"), "--grid"),
        (("--prompt", "a" * 64), "tokens; this model takes 1 to 64; shorten it"),
        (("--prompt", "a", "--prompts-file", "p.txt"), "--prompt and --prompts-file all say what images show"),
        (("--prompts-file", "p.txt", "--prompt-tokens", "p.json"), "expected either --prompt or --prompt-tokens FILE"),
        (("--prompts-file", "missing.txt"), "--prompts-file missing.txt does not exist; expected a file"),
        (("--prompt-tokens", "p.json", "--negative-prompt", "a"), "--negative-prompt: the file of --prompt-tokens"),
        (("--prompt-tokens", "p.json", "--samples-per-prompt", 2), "--samples-per-prompt is for --prompt"),
        (("--labels", 1), "made for prompts; pass --prompt or --prompt-tokens, not --labels"),
        (("--negative-prompt", "a"), "expected either --prompt or --prompt-tokens FILE"),
    ),
)
def test_bad_prompts_write_nothing_before_weights_are_read(
    run_cli, prompt_checkpoint, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red star\n")
    (tmp_path / "p.json").write_text('{"cond": [[1, 2]]}')
    (prompt_checkpoint / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("generate", prompt_checkpoint, *arguments)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_grid_of_a_model_with_one_grid_is_refused(run_cli, write_tiny_checkpoint, tmp_path):
    model, path = write_tiny_checkpoint(), tmp_path / "t.npy"
    result = run_cli("generate", model, "--labels", 1, "--grid", "4x5", "--tokens-out", path)
    assert result.code == 2 and "the grid is 4x5, but this model makes images of 4x4 tokens alone" in result.err
    assert run_cli("generate", model, "--labels", 1, "--grid", "4x4", "--tokens-out", path).code == 0
