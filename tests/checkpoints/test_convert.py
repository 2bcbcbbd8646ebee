"""Upstream files in several shards, copied and linked: what a checkpoint has of them, and what is refused when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashar_cli import families
from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.convert import Converted, convert
from flashar_cli.config import BackboneConfig, TextPrefix, TokenizerConfig, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.families.base import ConvertOptions, Family, RasterFacts
from flashar_cli.families.keys import Joined, KeyTable, Rows, qkv_rows, text_rows, visual_rows
from flashar_cli.families.source import Source
from flashar_cli.files import shards
from flashar_cli.grid import Grid
from flashar_cli.inputs.reading import files_sha256
from flashar_cli.tokenizers import ibq_upstream
from tests.parity.upstream_files import upstream_state
from tests.tokenizers.test_ibq import SMALL, published_state
from tests.upstream_shards import values_of, write_shards

CPU = torch.device("cpu")
LAYERS, DIM, FFN, TEXT, VISUAL = 2, 32, 24, 11, 21


class Vocabulary(Family):
    """Text and visual tokens in one table and one head, as in Emu3.5; separate queries, keys and values."""

    name = "vocabulary"
    title = "vocabulary model"
    hallmark = "embed.weight"
    sign = "embed.weight"
    tokenizer_title = "a tokenizer in a file of its own"
    dropped = ("seen.*",)
    keys = KeyTable(
        (Rows("embed.weight", text_rows), "prefix.embedding.weight"),
        (Rows("embed.weight", visual_rows), "backbone.embedding.weight"),
        (Rows("head.weight", visual_rows), "backbone.head.weight"),
        (Joined(("h.{}.q.*", "h.{}.k.*", "h.{}.v.*"), qkv_rows), "backbone.blocks.{}.attention.wqkv.*"),
        ("h.{}.o.*", "backbone.blocks.{}.attention.wo.*"),
        ("h.{}.*", "backbone.blocks.{}.*"),
        ("norm.weight", "backbone.norm.weight"),
    )

    def recognises(self, source: Source) -> bool:
        return "embed.weight" in source.state

    def read(self, source: Source, options: ConvertOptions, tokenizer: TokenizerConfig | None) -> RasterFacts:
        heads = {"num_heads": 4, "num_kv_heads": 2}
        return RasterFacts(
            family=self.name,
            backbone=BackboneConfig(dim=DIM, num_layers=LAYERS, **heads, ffn_dim=FFN, vocab_size=VISUAL, rope="1d"),
            prefix=TextPrefix(vocab_size=TEXT),
            grid=Grid(3, 5),
            tokenizer=tokenizer,
        )


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "vocabulary", Vocabulary())


def shapes() -> dict[str, tuple[int, ...]]:
    """Upstream's tensors in an order that tears queries, keys and values into several files."""
    found: dict[str, tuple[int, ...]] = {"embed.weight": (TEXT + VISUAL, DIM)}
    found |= {f"h.{layer}.{part}.weight": (32 if part == "q" else 16, DIM) for part in "qkv" for layer in range(LAYERS)}
    for layer in range(LAYERS):
        found |= {f"h.{layer}.o.weight": (DIM, DIM), f"h.{layer}.feed_forward.w2.weight": (DIM, FFN)}
        found |= {f"h.{layer}.feed_forward.{part}.weight": (FFN, DIM) for part in ("w1", "w3")}
        found |= {f"h.{layer}.{part}_norm.weight": (DIM,) for part in ("attention", "ffn")}
    return found | {"seen.tower": (3, 7), "norm.weight": (DIM,), "head.weight": (TEXT + VISUAL, DIM)}


def dtypes() -> dict[str, torch.dtype]:
    """As published: most in bfloat16, norms wider."""
    return {name: torch.float32 if "norm" in name else torch.bfloat16 for name in shapes()}


def expected_state() -> dict[str, torch.Tensor]:
    """Our tensors, written out, so that they owe nothing to the table."""
    theirs = {name: values_of(name, shape, dtypes()[name]) for name, shape in shapes().items()}
    ours = {
        "prefix.embedding.weight": theirs["embed.weight"][:TEXT],
        "backbone.embedding.weight": theirs["embed.weight"][TEXT:],
        "backbone.head.weight": theirs["head.weight"][TEXT:],
        "backbone.norm.weight": theirs["norm.weight"],
    }
    for layer in range(LAYERS):
        block = f"backbone.blocks.{layer}"
        ours[f"{block}.attention.wqkv.weight"] = torch.cat([theirs[f"h.{layer}.{part}.weight"] for part in "qkv"])
        ours[f"{block}.attention.wo.weight"] = theirs[f"h.{layer}.o.weight"]
        for part in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention_norm", "ffn_norm"):
            ours[f"{block}.{part}.weight"] = theirs[f"h.{layer}.{part}.weight"]
    return ours


def converted(folder: Path, num_shards: int = 4) -> Converted:
    write_shards(folder / "upstream", shapes(), num_shards, dtypes())
    return convert(folder / "upstream", ConvertOptions(), None)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("num_shards", (1, 4))
@pytest.mark.parametrize("how", ("save", "link"))
def test_rows_joins_and_dtypes_come_from_several_files(tmp_path, num_shards, how, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_SHARD_SIZE", "10KB")
    new = converted(tmp_path, num_shards)
    getattr(new, how)(tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model", CPU)
    assert same(loaded.model.state_dict(), expected_state())
    wide = {name: tensor.float() for name, tensor in expected_state().items()}
    assert same(checkpoint.load(tmp_path / "model", CPU, torch.float32).model.state_dict(), wide)
    assert loaded.config.provenance.source_sha256 == files_sha256(sorted((tmp_path / "upstream").glob("*.safetensors")))
    assert checkpoint.stored_dtype(tmp_path / "model") == torch.bfloat16
    assert checkpoint.problems(tmp_path / "model") == []
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == (num_shards if how == "link" else 3)


def test_copies_own_their_weights_and_links_do_not(tmp_path):
    new = converted(tmp_path)
    new.save(tmp_path / "copy")
    assert new.link(tmp_path / "links") == "hard"
    theirs = sorted((tmp_path / "upstream").glob("*.safetensors"))
    ours = sorted((tmp_path / "links").glob("*.safetensors"))
    assert [path.stat().st_ino for path in ours] == [path.stat().st_ino for path in theirs]
    assert checkpoint.weights_sha256(tmp_path / "links") == files_sha256(theirs)
    assert [read_config(tmp_path / name).weights for name in ("copy", "links")] == ["flashar", "upstream"]
    # A model that was read through links is written as our own.
    loaded = checkpoint.load(tmp_path / "links", CPU)
    checkpoint.save(tmp_path / "again", loaded.config, loaded.model.state_dict(), None)
    assert same(load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "copy" / "model.safetensors"))
    assert checkpoint.problems(tmp_path / "again") == []


def test_links_across_file_systems_are_symbolic_and_can_be_replaced(tmp_path, monkeypatch, run_cli):
    def other_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    new = converted(tmp_path)
    for path in (tmp_path / "upstream").iterdir():
        path.chmod(0o444)
    assert new.link(tmp_path / "links") == "symbolic"
    links = sorted((tmp_path / "links").glob("*.safetensors"))
    assert len(links) == 4 and all(path.is_symlink() and path.exists() for path in links)
    assert same(checkpoint.load(tmp_path / "links", CPU).model.state_dict(), expected_state())
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "upstream").iterdir()} == {0o444}
    result = run_cli("convert", tmp_path / "upstream", "--out", tmp_path / "links", "--link", "--overwrite", "--json")
    assert result.code == 0 and "symbolic links" in result.err, result.err
    assert json.loads(result.out)["config"]["weights"] == "upstream"
    for path in (tmp_path / "upstream").iterdir():
        path.unlink()
    with pytest.raises(FlasharError, match=r"model-00001-of-00004\.safetensors is a link to nothing"):
        checkpoint.load(tmp_path / "links", CPU)
    assert any("link to nothing" in line for line in checkpoint.problems(tmp_path / "links"))
    write_shards(tmp_path / "upstream", shapes(), 2, dtypes())
    assert run_cli("convert", tmp_path / "upstream", "--out", tmp_path / "links", "--overwrite").code == 0


def test_links_leave_permissions_as_they_are(tmp_path):
    new = converted(tmp_path)
    for path in (tmp_path / "upstream").iterdir():
        path.chmod(0o440)
    assert new.link(tmp_path / "links") == "hard"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "upstream").iterdir()} == {0o440}


def test_pickles_are_not_linked(run_cli, tmp_path):
    torch.save({"embed.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    result = run_cli("convert", tmp_path / "w.pt", "--link", "--out", tmp_path / "model")
    assert result.code == 2 and "is a pickle" in result.err and result.err.count("\n") == 1
    result = run_cli("convert", tmp_path / "w.pt", "--link", "--to", "upstream", "--out", tmp_path / "x.pt")
    assert result.code == 2 and "--link" in result.err


def test_a_single_file_is_linked(tmp_path):
    state = {name: values_of(name, shape, torch.float32) for name, shape in shapes().items()}
    save_file(state, tmp_path / "w.safetensors")
    convert(tmp_path / "w.safetensors", ConvertOptions(), None).link(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(
        checkpoint.load(tmp_path / "model", CPU).model.state_dict()["backbone.head.weight"], state["head.weight"][TEXT:]
    )


def test_every_fault_is_listed_before_a_value_is_read(tmp_path, monkeypatch):
    wrong = shapes() | {"h.0.k.weight": (15, DIM), "embed.weight": (TEXT + VISUAL - 1, DIM), "more": (2,)}
    del wrong["norm.weight"]
    write_shards(tmp_path / "upstream", wrong, 3)
    monkeypatch.setattr(shards.Stored, "read", None)
    monkeypatch.setattr("flashar_cli.checkpoints.convert.files_sha256", None)
    with pytest.raises(FlasharError) as error:
        convert(tmp_path / "upstream", ConvertOptions(), None)
    for words in (
        "missing norm.weight",
        "unexpected more",
        "h.0.k.weight is [15, 32], expected [16, 32]",
        "embed.weight is [31, 32], expected [32, 32]",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_leave_nothing(tmp_path):
    path = tmp_path / "upstream" / write_shards(tmp_path / "upstream", shapes(), 4, dtypes())["h.1.v.weight"]
    state = load_file(path)
    state["h.1.v.weight"][3, 4] = torch.nan
    save_file(state, path)
    new = convert(tmp_path / "upstream", ConvertOptions(), None)
    with pytest.raises(FlasharError, match=r"upstream: h\.1\.v\.weight has NaN or infinite values"):
        new.save(tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["upstream"]
    new.link(tmp_path / "links")
    assert checkpoint.problems(tmp_path / "links") == [f"{tmp_path / 'links'}: h.1.v.weight has NaN or infinite values"]
    with pytest.raises(FlasharError, match=r"h\.1\.v\.weight has NaN"):
        checkpoint.load(tmp_path / "links", CPU)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    new = converted(tmp_path)
    needed = sum(tensor.num_bytes for tensor in new.model_state.values())
    assert needed == sum(tensor.nbytes for tensor in expected_state().values())
    monkeypatch.setattr("flashar_cli.machine.memory.free_disk_bytes", lambda path: needed - 1)
    with pytest.raises(FlasharError, match="the checkpoint needs .* of disk"):
        new.save(tmp_path / "model")
    monkeypatch.setattr("flashar_cli.machine.memory.free_disk_bytes", lambda path: needed)
    new.save(tmp_path / "model")


# A LlamaGen of 20 blocks of width 2048, in bfloat16: 2.1 GB in four files.
BIG_LAYERS, BIG_DIM, BIG_FFN, BIG_SHARDS = 20, 2048, 5632, 4
PEAK = """
import re, sys
from pathlib import Path
import torch
from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.convert import convert
from flashar_cli.families.base import ConvertOptions
from flashar_cli.grid import Grid
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
task, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if task == "load":
    checkpoint.load(out, torch.device("cpu"), getattr(torch, sys.argv[4]))
else:
    new = convert(source, ConvertOptions(num_heads=16, grid=Grid(16, 16)), None)
    getattr(new, task)(out)
print(before, peak())
"""


def peak_of(*arguments: object) -> tuple[int, int]:
    """Bytes of memory that a process had at most after its imports, and in all."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, peak = map(int, done.stdout.split())
    print(arguments[0], arguments[3:], f"{before / 2**20:.0f} MiB before, {peak / 2**20:.0f} MiB at most")
    return before, peak


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory(tmp_path):
    big: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (16384, BIG_DIM), "output.weight": (16384, BIG_DIM)}
    for layer in range(BIG_LAYERS):
        big[f"layers.{layer}.attention.wqkv.weight"] = (3 * BIG_DIM, BIG_DIM)
        big[f"layers.{layer}.attention.wo.weight"] = (BIG_DIM, BIG_DIM)
        big |= {f"layers.{layer}.feed_forward.{part}.weight": (BIG_FFN, BIG_DIM) for part in ("w1", "w3")}
        big[f"layers.{layer}.feed_forward.w2.weight"] = (BIG_DIM, BIG_FFN)
        big |= {f"layers.{layer}.{part}_norm.weight": (BIG_DIM,) for part in ("attention", "ffn")}
    big |= {"norm.weight": (BIG_DIM,), "cls_embedding.embedding_table.weight": (1001, BIG_DIM)}
    upstream, copy, links = (tmp_path / name for name in ("upstream", "copy", "links"))
    write_shards(upstream, big, BIG_SHARDS)
    shard = max(path.stat().st_size for path in upstream.glob("*.safetensors"))
    whole = sum(path.stat().st_size for path in upstream.glob("*.safetensors"))
    assert whole > 2e9
    for task, place in (("save", copy), ("link", links)):
        before, peak = peak_of(task, upstream, place)
        assert peak < 1.5 * shard and peak - before < shard / 2
    for place in (copy, links):
        before, peak = peak_of("load", upstream, place, "bfloat16")
        assert whole < peak - before < 1.2 * whole
    before, peak = peak_of("load", upstream, links, "float32")
    assert 2 * whole < peak - before < 1.2 * 2 * whole


FACTS = ConvertOptions(num_heads=4, grid=Grid(3, 3))


@pytest.fixture
def with_ibq(monkeypatch: pytest.MonkeyPatch) -> None:
    family = type(get_family("llamagen"))
    monkeypatch.setattr(family, "read_tokenizer", lambda self, source: ibq_upstream.read_state(source.state))
    monkeypatch.setattr(family, "tokenizer_to_upstream", lambda self, state: ibq_upstream.to_upstream(state))


def test_a_separate_tokenizer_becomes_part_of_the_model(with_ibq: None, tmp_path: Path) -> None:
    torch.save(upstream_state(vocab_size=20), tmp_path / "model.pt")
    (tmp_path / "vq").mkdir()
    torch.save(published_state(), tmp_path / "vq" / "model.ckpt")
    new = convert(tmp_path / "model.pt", FACTS, tmp_path / "vq")
    assert new.config.tokenizer == SMALL and json.loads(new.config.model_dump_json())["tokenizer"]["kind"] == "ibq"
    assert new.tokenizer_state is not None and "decoder.conv_blocks.0.upsample.conv.bias" in new.tokenizer_state


def test_problems_of_a_tokenizer_are_listed_by_upstreams_names(with_ibq: None, tmp_path: Path) -> None:
    torch.save(upstream_state(vocab_size=20), tmp_path / "model.pt")
    wrong = {"decoder.up.1.upsample.conv.bias": torch.zeros(7), "encoder.mid.attn_1.q.bias": torch.zeros(5)}
    torch.save(published_state() | wrong, tmp_path / "model.ckpt")
    with pytest.raises(FlasharError) as error:
        convert(tmp_path / "model.pt", FACTS, tmp_path / "model.ckpt")
    assert str(error.value).endswith(
        "decoder.up.1.upsample.conv.bias is [7], expected [64]; encoder.mid.attn_1.q.bias is [5], expected [64]"
    )
