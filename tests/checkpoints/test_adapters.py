"""Checkpoints with adapters apart, against peft's own reading of the same files."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from flashar_cli.checkpoints import adapters, checkpoint
from flashar_cli.checkpoints.sharded import weights_of
from flashar_cli.config.recipe import LoraSettings
from flashar_cli.errors import FlasharError
from flashar_cli.reporting.listing import inspect
from tests.models.test_lora import adapted, logits

LORA = LoraSettings(rank=3, alpha=6.0, targets=("wqkv", "w2"))
CPU = torch.device("cpu")


@pytest.fixture
def apart(tmp_path):
    """A checkpoint with trained adapters apart, and the model that it was written from."""
    model, folder = adapted(LORA, trained=True), tmp_path / "apart"
    adapters.write(LORA, "tiny", model, tmp_path)
    config = model.config.model_copy(update={"adapter": True, "tokenizer": None})
    extras = {name: tmp_path / name for name in adapters.FILES}
    checkpoint.save(folder, config, weights_of(model, torch.float32, merge=False), None, extras=extras)
    return folder, model


def test_it_is_merged_when_it_is_loaded(apart):
    folder, model = apart
    stored = load_file(folder / "model.safetensors")
    loaded = checkpoint.load(folder, CPU).model
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)
    name = "backbone.blocks.0.attention.wqkv.weight"
    assert set(stored) == set(loaded.state_dict()) and not torch.equal(stored[name], loaded.state_dict()[name])
    assert torch.equal(stored[name], model.get_parameter(name.replace("weight", "base_layer.weight")))


def test_peft_reads_the_same_adapters(apart):
    folder, model = apart
    without = folder / "config.json"
    without.write_text(without.read_text().replace('"adapter": true', '"adapter": false'))
    base = checkpoint.load(folder, CPU).model
    assert not torch.allclose(logits(base), logits(model), atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft warns of missing and unexpected tensors
        wrapped = PeftModel.from_pretrained(base.backbone, str(folder / "adapter"))
    assert len(wrapped.peft_config["default"].target_modules) == 2
    torch.testing.assert_close(logits(base), logits(model), atol=1e-6, rtol=1e-6)


def test_merged_weights_are_the_plain_checkpoint(apart, tmp_path):
    _, model = apart
    config = model.config.model_copy(update={"tokenizer": None})
    checkpoint.save(tmp_path / "merged", config, weights_of(model, torch.float32), None)
    loaded = checkpoint.load(tmp_path / "merged", CPU).model
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)


def test_inspect_tells_and_the_hash_covers_them(apart, run_cli):
    folder, _ = apart
    report = inspect(folder)
    assert report["adapter"] == {"rank": 3, "alpha": 6.0, "targets": ["w2", "wqkv"]} and not report["problems"]
    assert "rank 3, alpha 6.0" in run_cli("inspect", folder).out
    path = folder / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    save_file({name: 2 * tensor for name, tensor in state.items()}, path)
    assert checkpoint.weights_sha256(folder) != report["sha256"]


def drop(state):
    state.pop("base_model.model.blocks.1.attention.wqkv.lora_B.weight")


def rename(state):
    state["base_model.model.blocks.9.attention.wo.lora_A.weight"] = state.pop(next(iter(state)))


def shorten(state):
    name = "base_model.model.blocks.0.feed_forward.w2.lora_A.weight"
    state[name] = state[name][:2].contiguous()


def spoil(state):
    next(iter(state.values()))[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "words"),
    (
        (drop, "blocks.1.attention.wqkv lacks one of its two"),
        (rename, "blocks.9.attention.wo is no linear layer"),
        (shorten, "w2 has matrices [2, 48] and [64, 3], expected [3, 48] and [64, 3]"),
        (spoil, "no finite numbers"),
        (dict.clear, "it is empty"),
        (lambda state: state.update(other=torch.zeros(2)), "unexpected other"),
    ),
)
def test_adapters_that_do_not_fit_are_named(apart, damage, words):
    folder, _ = apart
    path = folder / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    damage(state)
    save_file(state, path)
    with pytest.raises(FlasharError) as error:
        checkpoint.load(folder, CPU)
    assert words in str(error.value) and str(path) in str(error.value)
    assert any(words in problem for problem in checkpoint.problems(folder))


@pytest.mark.parametrize("change", ({"use_dora": True}, {"r": 0}, {"peft_type": "IA3"}, {"lora_alpha": "much"}))
def test_other_kinds_of_adapters_are_refused(apart, change):
    folder, _ = apart
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FlasharError, match="is not of plain low-rank adapters"):
        checkpoint.load(folder, CPU)
    path.unlink()
    with pytest.raises(FlasharError, match="adapter_config.json does not exist"):
        checkpoint.load(folder, CPU)
