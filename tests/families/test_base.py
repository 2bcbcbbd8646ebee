"""What a family must be able to say, shown by one that is unlike LlamaGen: a directory in several files, separate
queries, keys and values with biases, MLPs before and after the blocks, and the image tokenizer among the weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flashar_cli import families
from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.checkpoints.convert import convert, export
from flashar_cli.config import BackboneConfig, BranchConfig, Sampling, TextPrefix, TokenizerConfig
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, Family, HubFiles, Preset, RasterFacts
from flashar_cli.families.keys import Joined, KeyTable, qkv_rows
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.tiny_models import TINY_VQ
from tests.tokenizers.test_text import write_tokenizer
from tests.tokenizers.text.vocabularies import SIZE, write_vocabulary

BACKBONE = BackboneConfig(
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=24,
    vocab_size=32,
    rope="1d",
    attention_bias=True,
    embedding_dim=4,
    head_hidden_dim=16,
)
PRESET = Preset(
    name="toy-s",
    facts=RasterFacts(
        family="toy",
        backbone=BACKBONE,
        prefix=TextPrefix(vocab_size=11),
        grid=Grid(3, 5),
        tokenizer=TINY_VQ,
        generation=Sampling(cfg_scale=5.0),
    ),
    weights=HubFiles("someone/toy", ("*.json", "*.safetensors")),
)


class Toy(Family):
    """Every entry of its ``config.json`` but the type is a fact."""

    name = "toy"
    title = "toy model"
    hallmark = "config.json of a toy"
    sign = "its config.json"
    presets = (PRESET,)
    text_tokenizer = ("tokenizer.json",)
    dropped = ("seen.*", "*.lm_head.weight")
    keys = KeyTable(
        (
            Joined(tuple(f"m.layers.{{}}.attn.{part}.*" for part in "qkv"), qkv_rows),
            "backbone.blocks.{}.attention.wqkv.*",
        ),
        ("m.layers.{}.attn.o.weight", "backbone.blocks.{}.attention.wo.weight"),
        ("m.layers.{}.mlp.*", "backbone.blocks.{}.feed_forward.*"),
        ("m.layers.{}.*", "backbone.blocks.{}.*"),
        ("m.extra.{}.norms.*", "branch.blocks.{}.*"),
        ("m.text.weight", "prefix.embedding.weight"),
        ("m.table.weight", "backbone.embedding.weight"),
        ("m.aligner.*", "backbone.embedding.*"),
        ("m.head.*", "backbone.head.*"),
        ("m.norm.weight", "backbone.norm.weight"),
        ("vq.enc.level.{}.block.{}.*", "tokenizer.encoder.conv_blocks.{}.res.{}.*"),
        ("vq.*", "tokenizer.*"),
    )

    def recognises(self, source: Source) -> bool:
        return source.document("config.json").get("type") == "toy"

    def read(self, source: Source, options: ConvertOptions, tokenizer: TokenizerConfig | None) -> RasterFacts:
        facts = {name: value for name, value in source.document("config.json").items() if name != "type"}
        return RasterFacts(
            family="toy",
            backbone=BackboneConfig(**facts),
            prefix=PRESET.facts.prefix,
            grid=PRESET.facts.grid,
            tokenizer=TINY_VQ,
            generation=PRESET.facts.generation,
        )


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "toy", Toy())
    monkeypatch.setitem(families.PRESETS, "toy-s", PRESET)


def upstream_state() -> dict[str, torch.Tensor]:
    """As the toy's authors would save it; written out, so that it owes nothing to the table."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    state = {"m.text.weight": weight(11, 32), "m.table.weight": weight(32, 4), "m.norm.weight": weight(32)}
    for name, shape in {"aligner.fc1": (32, 4), "aligner.fc2": (32, 32), "head.fc1": (16, 32)}.items():
        state |= {f"m.{name}.weight": weight(*shape), f"m.{name}.bias": weight(shape[0])}
    state |= {"m.head.fc2.weight": weight(32, 16), "m.head.fc2.bias": weight(32)}
    for layer in range(2):
        block = f"m.layers.{layer}"
        for part, rows in {"q": 32, "k": 16, "v": 16}.items():
            state |= {f"{block}.attn.{part}.weight": weight(rows, 32), f"{block}.attn.{part}.bias": weight(rows)}
        state |= {f"{block}.attn.o.weight": weight(32, 32), f"{block}.mlp.w2.weight": weight(32, 24)}
        state |= {f"{block}.mlp.{part}.weight": weight(24, 32) for part in ("w1", "w3")}
        state |= {f"{block}.{part}_norm.weight": weight(32) for part in ("attention", "ffn")}
    torch.manual_seed(0)
    for name, tensor in VQTokenizer(TINY_VQ).state_dict().items():
        theirs = re.sub(r"^encoder\.conv_blocks\.(\d)\.res\.", r"enc.level.\1.block.", name)
        state[f"vq.{theirs}"] = tensor
    return state


USELESS = {"seen.tower.weight": torch.zeros(3), "m.lm_head.weight": torch.zeros(11, 32, dtype=torch.int64)}


def write(folder: Path, state: dict[str, torch.Tensor], num_files: int = 2, **facts: object) -> Path:
    """A directory in Hugging Face's layout."""
    folder.mkdir()
    backbone = BACKBONE.model_dump(exclude={"vocab_size"}) | {"vocab_size": 32}
    (folder / "config.json").write_text(json.dumps({"type": "toy", **backbone, **facts}))
    write_tokenizer(folder / "tokenizer.json")
    names = sorted(state)
    if num_files == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    files = {name: f"part-{number % num_files}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name].contiguous() for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize("num_files", (1, 3))
def test_both_ways_are_exact(tmp_path, num_files):
    state = upstream_state()
    new = convert(write(tmp_path / "toy", state | USELESS, num_files), ConvertOptions(), None)
    assert new.config.family == "toy" and new.config.backbone == BACKBONE and new.tokenizer_state is not None
    for kind in ("weight", "bias"):
        joined = torch.cat([state[f"m.layers.1.attn.{part}.{kind}"] for part in "qkv"])
        assert torch.equal(new.model_state[f"backbone.blocks.1.attention.wqkv.{kind}"].read(), joined)
    model, vq = FlasharModel(new.config), VQTokenizer(TINY_VQ)
    model.load_state_dict({name: tensor.read() for name, tensor in new.model_state.items()})
    vq.load_state_dict({name: tensor.read() for name, tensor in new.tokenizer_state.items()})
    back, apart = export(checkpoint.Loaded(model, vq))
    assert apart is None and back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    without, _ = export(checkpoint.Loaded(model, None))
    assert without.keys() == {name for name in state if name.startswith("m.")}


def test_a_checkpoint_can_link_to_files_that_have_the_tokenizer_too(tmp_path, run_cli):
    new = convert(write(tmp_path / "toy", upstream_state() | USELESS, 3), ConvertOptions(), None)
    new.save(tmp_path / "copy")
    assert new.link(tmp_path / "links") == "hard"
    copy, links = (checkpoint.load(tmp_path / name, torch.device("cpu")) for name in ("copy", "links"))
    assert links.tokenizer is not None and copy.tokenizer is not None and links.text_tokenizer is not None
    for ours, theirs in ((copy.model, links.model), (copy.tokenizer, links.tokenizer)):
        found, expected = theirs.state_dict(), ours.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert not (tmp_path / "links" / "tokenizer.safetensors").exists()
    assert checkpoint.problems(tmp_path / "links") == [] and run_cli("inspect", tmp_path / "links").code == 0
    assert checkpoint.stored_dtype(tmp_path / "links") == torch.float32


def test_every_problem_is_told_in_the_words_of_the_files(tmp_path):
    state = upstream_state()
    del state["m.layers.0.attn.k.bias"], state["vq.enc.level.0.block.0.conv1.weight"]
    state |= {"m.layers.0.attn.q.weight": torch.zeros(31, 32), "m.layers.7.strange": torch.zeros(1)}
    with pytest.raises(FlasharError) as error:
        convert(write(tmp_path / "toy", state), ConvertOptions(), None)
    for words in (
        "is not a complete toy with 2 blocks",
        "missing m.layers.0.attn.k.bias",
        "missing vq.enc.level.0.block.0.conv1.weight",
        "m.layers.0.attn.q.weight is [31, 32], expected [32, 32]",
        "unexpected m.layers.7.strange",
    ):
        assert words in str(error.value)


def test_parts_of_one_tensor_have_one_dtype(tmp_path):
    state = upstream_state()
    state["m.layers.0.attn.k.weight"] = state["m.layers.0.attn.k.weight"].half()
    with pytest.raises(FlasharError, match=r"m\.layers\.0\.attn\.q\.weight, .*differ in dtype"):
        convert(write(tmp_path / "toy", state), ConvertOptions(), None)


def test_a_part_without_a_place_upstream_is_refused():
    config = PRESET.config().model_copy(update={"branch": BranchConfig(layer=1, gate="mean")})
    state = FlasharModel(config).state_dict()
    table = Toy().to_upstream({name: state[name] for name in state if "attention_norm" in name}, config)
    assert "m.extra.0.norms.attention_norm.weight" in table  # blocks of the branch under a name of their own
    with pytest.raises(FlasharError, match=r"'branch\.norm\.weight' has no name in the upstream layout of family toy"):
        Toy().to_upstream(state, config)


def test_options_that_the_files_answer_are_refused(tmp_path):
    folder = write(tmp_path / "toy", upstream_state())
    for options in (ConvertOptions(num_heads=4), ConvertOptions(grid=Grid(3, 5), rope_base=5.0)):
        with pytest.raises(FlasharError, match="tells that or has no such thing"):
            convert(folder, options, None)
    vq = tmp_path / "vq.pt"
    torch.save(VQTokenizer(TINY_VQ).state_dict(), vq)
    with pytest.raises(FlasharError, match="family toy has its tokenizer with it"):
        convert(folder, ConvertOptions(), vq)
    with pytest.raises(FlasharError, match="these options is no model"):
        convert(write(tmp_path / "odd", upstream_state(), num_heads=3), ConvertOptions(), None)


def test_the_files_tell_the_family(tmp_path):
    toy = write(tmp_path / "toy", upstream_state(), 1)
    with pytest.raises(FlasharError, match=r"is toy by its keys \(its config\.json\), got --family nar"):
        convert(toy, ConvertOptions(family="nar"), None)
    with pytest.raises(FlasharError, match="unknown family 'other'"):
        convert(toy, ConvertOptions(family="other"), None)
    (toy / "config.json").write_text('{"type": "else"}')
    with pytest.raises(FlasharError, match="is not a LlamaGen-like model .*nor a toy model: .*, or config.json of"):
        convert(toy, ConvertOptions(), None)


def test_a_text_tokenizer_travels_in_the_checkpoint(run_cli, tmp_path):
    folder = write(tmp_path / "toy", upstream_state())
    for overwrite in ((), ("--overwrite",)):  # the second finds the text tokenizer in what it replaces
        result = run_cli("convert", folder, "--out", tmp_path / "model", *overwrite)
        assert result.code == 0, result.err
        assert (tmp_path / "model" / "text_tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer.json" in run_cli("convert", folder, "--out", tmp_path / "other").err
    (folder / "tokenizer.json").unlink()
    assert run_cli("convert", folder, "--out", tmp_path / "other").code == 0
    assert not (tmp_path / "other" / "text_tokenizer.json").exists()


def test_a_text_tokenizer_of_two_files(run_cli, tmp_path, monkeypatch):
    """In files of other names than a checkpoint's; a wrong one is refused at once, and none is no error."""
    monkeypatch.setattr(Toy, "text_tokenizer", ("emu3.tiktoken", "emu3_vision_tokens.txt"))
    facts = replace(PRESET.facts, prefix=TextPrefix(vocab_size=SIZE))
    monkeypatch.setitem(globals(), "PRESET", replace(PRESET, facts=facts))
    folder = write(tmp_path / "toy", upstream_state() | {"m.text.weight": torch.zeros(SIZE, 32)})
    files = write_vocabulary(folder)
    for overwrite in ((), ("--overwrite",)):
        result = run_cli("convert", folder, "--out", tmp_path / "model", *overwrite)
        assert result.code == 0, result.err
    for path, name in zip(files, ("text_tokenizer.tiktoken", "text_tokenizer_special.txt"), strict=True):
        assert (tmp_path / "model" / name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "model" / "text_tokenizer.json").exists()
    content = files[0].read_bytes()
    files[0].write_bytes(content.replace(b" 270\n", b" 271\n"))
    assert "its rank 270" in run_cli("convert", folder, "--out", tmp_path / "other").err
    files[0].write_bytes(content)
    files[1].unlink()
    assert "lacks emu3_vision_tokens.txt" in run_cli("convert", folder, "--out", tmp_path / "other").err
    assert not (tmp_path / "other").exists()
    files[0].unlink()
    assert run_cli("convert", folder, "--out", tmp_path / "other").code == 0
    assert not list((tmp_path / "other").glob("text_tokenizer*"))


def test_a_preset_of_many_files_is_a_snapshot(monkeypatch, tmp_path):
    asked = []

    def download(repo: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((repo, allow_patterns))
        return str(write(tmp_path / "snapshot", upstream_state()))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(hub, "hub_unreachable", lambda: False)
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    config = checkpoint.load(hub.resolve("toy-s"), torch.device("cpu")).config
    assert asked == [("someone/toy", ["*.json", "*.safetensors"])]
    assert (tmp_path / "home" / "toy-s" / "text_tokenizer.json").exists()
    kept = {"backbone", "prefix", "grid", "tokenizer", "generation"}
    assert config.model_dump(include=kept) == PRESET.config().model_dump(include=kept)
    assert str(PRESET.weights) == "someone/toy" and str(HubFiles("a/b", ("c.pt",))) == "a/b/c.pt"
