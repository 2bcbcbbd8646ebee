"""What a directory of Janus tells, and what of it is refused. Its outputs: ``tests/parity/test_janus.py``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import TextPrefix
from flashar_cli.grid import Grid

pytest.importorskip("transformers")
from tests.parity.janus_models import BOI, BOS, GUIDANCE, PAD, build_janus


def test_facts(run_cli, tmp_path):
    model = build_janus(side=3, heads=6, kv_heads=2, head_dim=8, width=96, eps=1e-3, theta=77.0)
    model.save_pretrained(tmp_path / "upstream")
    assert run_cli("convert", tmp_path / "upstream", "--out", tmp_path / "janus").code == 0
    config = checkpoint.read_config(tmp_path / "janus")
    assert config.family == "janus" and config.order_grid == Grid(3, 3) and config.generation.cfg_scale == GUIDANCE
    prefix, backbone = config.prefix, config.backbone
    assert isinstance(prefix, TextPrefix)
    assert (prefix.begin, prefix.end, prefix.pad_id, prefix.kept) == ((BOS,), (BOI,), PAD, (BOS, BOI))
    assert (backbone.norm_eps, backbone.rope_base, backbone.rope) == (1e-3, 77.0, "1d")
    assert (backbone.num_heads, backbone.num_kv_heads, backbone.head_dim) == (6, 2, 8)


def test_what_is_wrong_is_told_in_words_of_the_files(run_cli, tmp_path):
    build_janus().save_pretrained(tmp_path / "janus")
    path = tmp_path / "janus" / "model.safetensors"
    state = load_file(path)
    del state["model.vqmodel.encoder.down.1.block.0.conv1.weight"]
    state["model.language_model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
    save_file(state, path)
    result = run_cli("convert", tmp_path / "janus", "--out", tmp_path / "ours")
    assert result.code == 2 and "missing model.vqmodel.encoder.down.1.block.0.conv1.weight" in result.err
    assert "unexpected model.language_model.layers.0.self_attn.q_norm.weight" in result.err


def test_a_config_that_means_another_model_is_refused(run_cli, tmp_path):
    build_janus().save_pretrained(tmp_path / "janus")
    path = tmp_path / "janus" / "config.json"
    content = path.read_text()
    for old, new in (
        ('"rope_type": "default"', '"rope_type": "llama3"'),
        ('"mlp_bias": false', '"mlp_bias": true'),
        ('"hidden_act": "gelu"', '"hidden_act": "relu"'),
        ('"hidden_size": 64', '"hidden_size": "wide"'),
    ):
        path.write_text(content.replace(old, new))
        result = run_cli("convert", tmp_path / "janus", "--out", tmp_path / "ours")
        assert result.code == 2 and f"{path} is not" in result.err and old.split('"')[1] in result.err
    path.write_text(content)
    (tmp_path / "janus" / "generation_config.json").unlink()
    result = run_cli("convert", tmp_path / "janus", "--out", tmp_path / "ours")
    assert result.code == 2 and "generation_config.json is not" in result.err and "generation_kwargs" in result.err
