"""Presets are fetched once, converted, and kept; what can't be had is said in one line."""

from __future__ import annotations

import shutil
import time

import pytest
import torch

from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.config import BackboneConfig, ClassPrefix, Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.families.base import HubFiles, Preset, RasterFacts
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.parity.upstream_files import upstream_state
from tests.tiny_models import TINY_VQ

SMALL = Preset(
    name="small",
    facts=RasterFacts(
        family="llamagen",
        backbone=BackboneConfig(dim=32, num_layers=3, num_heads=4, num_kv_heads=4, ffn_dim=40, vocab_size=32),
        prefix=ClassPrefix(num_classes=7),
        grid=Grid(4, 4),
        tokenizer=TINY_VQ,
        generation=Sampling(cfg_scale=2.0),
    ),
    weights=HubFiles("someone/small", ("small.pt",)),
    tokenizer_weights=HubFiles("someone/small", ("vq.pt",)),
)


@pytest.fixture
def fetched(monkeypatch, tmp_path) -> list[str]:
    """A Hub with one small model in the upstream layout; names of the files fetched from it."""
    store, names = tmp_path / "store", []
    store.mkdir()
    torch.save({"model": upstream_state(vocab_size=32)}, store / "small.pt")
    torch.manual_seed(0)
    torch.save({"model": VQTokenizer(TINY_VQ).state_dict()}, store / "vq.pt")

    def download(repo: str, file: str, local_files_only: bool) -> str:
        assert not local_files_only
        names.append(f"{repo}/{file}")
        return shutil.copy(store / file, tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(hub, "hub_unreachable", lambda: False)
    monkeypatch.setitem(PRESETS, "small", SMALL)
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    return names


def test_a_preset_is_fetched_and_converted_once(fetched):
    for _ in range(2):
        directory = hub.resolve("small")
        assert fetched == ["someone/small/small.pt", "someone/small/vq.pt"]
    loaded = checkpoint.load(directory, torch.device("cpu"))
    assert loaded.tokenizer is not None and loaded.config.order_grid == Grid(4, 4)
    assert loaded.config.backbone == SMALL.facts.backbone and hub.place_of(directory) == "cache"


def test_no_network_says_at_once_what_to_put_where(monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(PRESETS, "small", SMALL)
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "hub_unreachable", lambda: True)
    started = time.perf_counter()
    with pytest.raises(FlasharError, match=r"can't be reached.*flashar convert small\.pt.*llamagen-tiny"):
        hub.resolve("small")
    assert time.perf_counter() - started < 5, "the Hub's library tried again and again"
    assert capfd.readouterr() == ("", "") and not (tmp_path / "home").exists()


def test_a_file_is_not_a_checkpoint(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(FlasharError, match="flashar"):
        hub.resolve(str(tmp_path / "weights.pt"))
    with pytest.raises(FlasharError, match=r"no config\.json"):
        hub.resolve(str(tmp_path))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_build_on_the_meta_device(name):
    from flashar_cli.models import build_model

    config = PRESETS[name].config()
    with torch.device("meta"):
        model = build_model(config)
    part = getattr(model, "backbone", model)
    # Published sizes: LlamaGen's table gives 111 M, 343 M, 775 M, 1.4 B and 3.1 B, VAR's 310 M, 600 M, 1.0 B, 2.0 B and
    # 2.3 B, Infinity's 2 B and 8 B (with two decimals, of upstream's own modules).
    millions = sum(parameter.numel() for parameter in part.parameters()) / 1e6
    # Janus: 24 * (4 * 2048^2 + 3 * 2048 * 5632) and 30 * (4 * 4096^2 + 3 * 4096 * 11008), and a head of 38 and 84 M.
    # Emu3.5: 64 * (5120 * 80 * 128 + 8192 * 5120 + 3 * 5120 * 25600), and twice 131072 * 5120.
    published = {
        "b": 111,
        "l": 343,
        "xl": 775,
        "xxl": 1411,
        "3b": 3098,
        "1b": 1275,
        "7b": 6172,
        "image": 32548,
        "flashar": 32548,
        "d16": 310,
        "d20": 600,
        "d24": 1033,
        "d30": 2006,
        "d36": 2353,
        "2b": 2204,
        "8b": 8337,
    }
    published = published[name.split("-")[-1]]
    assert millions == pytest.approx(published, rel=0.02)
