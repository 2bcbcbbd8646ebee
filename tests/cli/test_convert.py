"""`flashar convert`: what it derives, what it refuses, and that nothing is left behind when it refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashar_cli.tokenizers.vq import VQTokenizer
from tests.parity.upstream_files import upstream_state
from tests.tiny_models import TINY_VQ

SHAPE = ("--num-heads", 4, "--grid", "3x5")


def write(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("wrapper", (None, "model", "module", "state_dict"))
def test_wrappers_and_formats(run_cli, tmp_path, wrapper):
    state = upstream_state()
    document = {wrapper: state, "steps": 7, "args": argparse.Namespace(lr=1.0)} if wrapper else state
    source = write(tmp_path / "weights.pt", document)
    result = run_cli("convert", source, "--out", tmp_path / "model", *SHAPE, "--json")
    assert result.code == 0, result.err
    config = json.loads(result.out)["config"]
    assert config["family"] == "llamagen"
    assert config["grid"] == {"height": 3, "width": 5}
    assert config["backbone"]["ffn_dim"] == 40 and config["backbone"]["num_layers"] == 3
    save_file(state, tmp_path / "weights.safetensors")
    assert run_cli("convert", tmp_path / "weights.safetensors", "--out", tmp_path / "again", *SHAPE).code == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("family", "settings", "options", "branch"),
    (
        ("nar", {"depth": 2}, ("--branch-depth", 2), {"layer": 3, "depth": 2, "gate": "mean", "gate_dim": None}),
        ("llamagen-flashar", {}, ("--branch-layer", 2), {"layer": 2, "depth": 1, "gate": "logits", "gate_dim": 32}),
        (
            "llamagen-flashar",
            {"gate": "scalar", "depth": 3},
            ("--branch-layer", 0, "--branch-depth", 3),
            {"layer": 0, "depth": 3, "gate": "scalar", "gate_dim": None},
        ),
        (
            "llamagen-flashar",
            {"gate": "mean"},
            ("--family", "llamagen-flashar", "--branch-layer", 1),
            {"layer": 1, "depth": 1, "gate": "mean", "gate_dim": None},
        ),
    ),
)
def test_branches_and_the_way_back(run_cli, tmp_path, family, settings, options, branch):
    state = upstream_state(family, **settings)
    source = write(tmp_path / "weights.pt", state)
    result = run_cli("convert", source, "--out", tmp_path / "model", *SHAPE, *options, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["config"]["branch"] == branch
    assert run_cli("convert", tmp_path / "model", "--to", "upstream", "--out", tmp_path / "back.safetensors").code == 0
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    tokens = tmp_path / "tokens.npy"
    assert run_cli("generate", tmp_path / "model", "--labels", "0-2", "--tokens-out", tokens).code == 0


def test_freqs_cis_tells_heads_and_grid(run_cli, tmp_path):
    state = upstream_state() | {"freqs_cis": torch.zeros(1 + 16, 4, 2)}
    result = run_cli("convert", write(tmp_path / "w.pt", state), "--out", tmp_path / "model", "--json")
    assert result.code == 0, result.err
    config = json.loads(result.out)["config"]
    assert config["backbone"]["num_heads"] == 4 and config["grid"] == {"height": 4, "width": 4}
    refused = run_cli("convert", tmp_path / "w.pt", "--out", tmp_path / "other", "--grid", "3x5")
    assert refused.code == 2 and "freqs_cis" in refused.err


def test_tokenizer_travels_both_ways(run_cli, tmp_path):
    torch.manual_seed(0)
    vq = VQTokenizer(TINY_VQ).state_dict()
    write(tmp_path / "vq.pt", {"model": {**vq, "quantize.codebook_used": torch.zeros(65536)}})
    source = write(tmp_path / "w.pt", upstream_state(vocab_size=32))
    arguments = ("--tokenizer", tmp_path / "vq.pt", *SHAPE)
    assert run_cli("convert", source, "--out", tmp_path / "model", *arguments).code == 0
    assert run_cli("convert", tmp_path / "model", "--to", "upstream", "--out", tmp_path / "back").code == 0
    back = torch.load(tmp_path / "back" / "vq.pt", weights_only=True)["model"]
    assert back.pop("quantize.codebook_used").shape == (65536,)
    assert back.keys() == vq.keys() and all(torch.equal(back[name], vq[name]) for name in vq)


class Attack:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (print, ("this ran",))


def broken_files(folder: Path) -> dict[str, Path]:
    good = upstream_state()
    files = {
        "empty": folder / "empty.pt",
        "truncated": folder / "truncated.pt",
        "foreign": folder / "foreign.pt",
        "code": folder / "code.pt",
        "text": folder / "text.safetensors",
    }
    files["empty"].write_bytes(b"")
    write(files["truncated"], good)
    files["truncated"].write_bytes(files["truncated"].read_bytes()[:4000])
    write(files["foreign"], {"conv1.weight": torch.zeros(3)})
    write(files["code"], {"model": Attack()})
    files["text"].write_text("not tensors")
    files["numbers"] = write(folder / "numbers.pt", {"a": 1})
    files["absent"] = folder / "absent.pt"
    files["missing"] = write(folder / "missing.pt", {k: v for k, v in good.items() if k != "layers.1.ffn_norm.weight"})
    files["extra"] = write(folder / "extra.pt", {**good, "layers.0.attention.bias": torch.zeros(3)})
    files["misshaped"] = write(folder / "misshaped.pt", {**good, "output.weight": torch.zeros(48, 31)})
    files["nan"] = write(folder / "nan.pt", {**good, "norm.weight": torch.full((32,), torch.nan)})
    files["integer"] = write(folder / "integer.pt", {**good, "norm.weight": torch.ones(32, dtype=torch.int64)})
    return files


@pytest.mark.parametrize(
    ("name", "words"),
    (
        ("empty", "truncated or foreign"),
        ("truncated", "truncated or foreign"),
        ("foreign", "not a LlamaGen-like model"),
        ("code", "wants to call print"),
        ("text", "truncated or foreign"),
        ("numbers", "holds no tensors"),
        ("absent", "is not a file"),
        ("missing", "missing layers.1.ffn_norm.weight"),
        ("extra", "unexpected layers.0.attention.bias"),
        ("misshaped", "output.weight is [48, 31], expected [48, 32]"),
        ("nan", "norm.weight has NaN"),
        ("integer", "norm.weight is int64, expected one of float32"),
    ),
)
def test_bad_files_are_refused_in_one_line(run_cli, tmp_path, name, words):
    source = broken_files(tmp_path)[name]
    before = set(tmp_path.iterdir())
    result = run_cli("convert", source, "--out", tmp_path / "model", *SHAPE)
    assert result.code == 2
    assert words in result.err and result.err.count("\n") == 1
    assert "this ran" not in result.out + result.err
    assert set(tmp_path.iterdir()) == before


def test_every_problem_is_listed_at_once(run_cli, tmp_path):
    state = upstream_state()
    del state["layers.1.ffn_norm.weight"]
    state["layers.9x"] = state["output.weight"] = torch.zeros(48, 31)
    result = run_cli("convert", write(tmp_path / "w.pt", state), "--out", tmp_path / "model", *SHAPE)
    assert all(words in result.err for words in ("missing layers.1", "unexpected layers.9x", "output.weight is"))


@pytest.mark.parametrize(
    ("family", "options", "words"),
    (
        ("llamagen", ("--family", "nar"), "is llamagen by its keys"),
        ("nar", ("--family", "llamagen"), "is nar by its keys"),
        ("llamagen-flashar", ("--family", "nar"), "is llamagen-flashar by its keys"),
        ("llamagen-flashar", (), "--branch-layer"),
        ("llamagen-flashar", ("--branch-layer", 9), "--branch-layer"),
        ("llamagen", ("--branch-layer", 1), "has no branch"),
        ("nar", ("--branch-layer", 1), "follows the last block"),
        ("nar", ("--branch-depth", 4), "--branch-depth is 4"),
        ("llamagen", ("--num-heads", 5), "--num-heads is 5"),
        ("llamagen", ("--num-heads", 16), "multiple of 4"),
        ("llamagen", ("--grid", "3by5"), "is not a grid"),
        ("llamagen", ("--res", 100), "--res is 100"),
    ),
)
def test_contradictions_are_refused(run_cli, tmp_path, family, options, words):
    source = write(tmp_path / "w.pt", upstream_state(family))
    shape = [*SHAPE[:2]] if options[:1] in (("--grid",), ("--res",)) else [*SHAPE]
    result = run_cli("convert", source, "--out", tmp_path / "model", *shape, *options)
    assert result.code == 2 and words in result.err, result.err
    assert not (tmp_path / "model").exists()


def test_what_shapes_do_not_tell_is_asked_for(run_cli, tmp_path):
    source = write(tmp_path / "w.pt", upstream_state())
    assert "--num-heads" in run_cli("convert", source, "--out", tmp_path / "m", "--grid", "4x4").err
    assert "--grid HxW or --res" in run_cli("convert", source, "--out", tmp_path / "m", "--num-heads", 4).err


def test_a_full_output_directory_is_kept(run_cli, tmp_path):
    source = write(tmp_path / "w.pt", upstream_state())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    result = run_cli("convert", source, "--out", tmp_path / "model", *SHAPE)
    assert result.code == 2 and "mine.txt in it is no part of a checkpoint" in result.err
    assert run_cli("convert", source, "--out", tmp_path / "model", *SHAPE, "--overwrite").code == 2
    assert (tmp_path / "model" / "mine.txt").read_text() == "mine"
    (tmp_path / "model" / "mine.txt").unlink()
    assert run_cli("convert", source, "--out", tmp_path / "model", *SHAPE).code == 0
    result = run_cli("convert", source, "--out", tmp_path / "model", *SHAPE)
    assert result.code == 2 and "pass --overwrite" in result.err
    assert run_cli("convert", source, "--out", tmp_path / "model", *SHAPE, "--overwrite").code == 0
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_disk_that_is_full_leaves_nothing(run_cli, tmp_path, monkeypatch):
    from flashar_cli.files import streaming

    def no_space(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming, "save_file", no_space)
    source = write(tmp_path / "w.pt", upstream_state())
    result = run_cli("convert", source, "--out", tmp_path / "model", *SHAPE)
    assert result.code == 2 and "No space left" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]
