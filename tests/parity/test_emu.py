"""Every published output of Emu3.5 and of its adaptation, through convert, generate and the Python API."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import flashar_cli
from flashar_cli.api import ImageModel
from flashar_cli.config.recipe import StageSettings
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.text import left_padded
from flashar_cli.nn.rope import rope_table_1d
from flashar_cli.training.losses import losses_of
from tests.parity.fill import tensor_for
from tests.parity.fixtures import read_fixture

FLASHAR = ("flashar_emu35_small", "flashar_emu35_rect")
RASTER = "emu35_raster_small"


def conditions(prompts: list[list[int]], unconditional: list[list[int]]) -> Conditions:
    """Prompts and their unconditional ones, padded to the longest of all."""
    length = max(map(len, [*prompts, *unconditional]))
    ids, mask = left_padded(prompts, 0, length)
    uncond_ids, uncond_mask = left_padded(unconditional, 0, length)
    return Conditions(ids=ids, mask=mask, uncond_ids=uncond_ids, uncond_mask=uncond_mask)


def rows(tensor: Tensor) -> list[list[int]]:
    """Prompts of one length."""
    found: list[list[int]] = tensor.tolist()
    return found


class Published:
    """A fixture, written in upstream's layout and imported by the command line."""

    def __init__(self, name: str, folder: Path) -> None:
        fixture = read_fixture(name)
        self.meta, self.tensors, self.folder = fixture.meta, fixture.tensors, folder
        shapes = self.meta.get("flashar_state_dict_shapes") or self.meta["state_dict_shapes"]
        config = self.meta.get("backbone_config") or self.meta["config"]
        self.offset: int = self.meta["visual_token_offset"]
        self.grid = f"{self.meta['height']}x{self.meta['width']}"
        arguments = ["--visual-token-offset", self.offset, "--grid", self.grid]
        if "eol_token_id" in self.meta:
            arguments += ["--eol-token-id", self.meta["eol_token_id"]]
        source = folder / "upstream"
        write_upstream(source, shapes, config | {"model_type": "Emu3"}, self.meta.get("fill_scale", 0.08))
        if "branch_layer" in self.meta:
            facts = {"vertical_start_layer": self.meta["branch_layer"], "vertical_layers": self.meta["branch_depth"]}
            (source / "checkpoint_meta.json").write_text(json.dumps(facts))
        self.loaded = converted(source, folder / "model", *arguments)


def converted(source: Path, out: Path, *arguments: Any) -> ImageModel:
    """What the command line makes of a directory of upstream."""
    from typer.testing import CliRunner

    from flashar_cli.cli.main import app

    result = CliRunner().invoke(app, ["convert", str(source), "--out", str(out), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return flashar_cli.load(str(out))


def write_upstream(folder: Path, shapes: dict[str, list[int]], config: dict[str, Any], scale: float) -> None:
    """A directory as `save_pretrained` writes it, in two shards."""
    folder.mkdir()
    names = list(shapes)
    files = {
        name: f"model-0000{1 + (2 * index >= len(names))}-of-00002.safetensors" for index, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        state = {name: tensor_for(name, tuple(shapes[name]), scale) for name in names if files[name] == file}
        save_file(state, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=FLASHAR)
def adapted(request, tmp_path_factory) -> Published:
    return Published(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Published:
    return Published(RASTER, tmp_path_factory.mktemp(RASTER))


def greedy(published: Published, run_cli, folder: Path, prompts, unconditional, scale: float, *more: Any) -> Tensor:
    """Vocabulary ids [B, H, W] of greedy decoding by the command line."""
    (folder / "prompts.json").write_text(json.dumps({"cond": prompts, "uncond": unconditional}))
    result = run_cli(
        *("generate", published.folder / "model", "--prompt-tokens", folder / "prompts.json", "--temperature", 0),
        *("--cfg-scale", scale, "--tokens-out", folder / "tokens.npy", *more),
    )
    assert result.code == 0, result.err
    return torch.from_numpy(np.load(folder / "tokens.npy")) + published.offset


def test_family_and_branch(adapted, base):
    config = adapted.loaded.config
    assert config.family == "emu3.5-flashar" and base.loaded.config.family == "emu3.5-image"
    assert config.branch is not None and not config.branch.sees_prefix
    assert (config.branch.layer, config.branch.depth) == (adapted.meta["branch_layer"], adapted.meta["branch_depth"])


def predicted(adapted: Published, given: Conditions, paired: bool) -> Any:
    order = adapted.loaded.config.order_grid.diagonal()
    grids = adapted.tensors["image_tokens"].reshape(-1, order.grid.height, order.grid.width) - adapted.offset
    with torch.no_grad():
        return adapted.loaded.model(order.from_raster(grids), given, order, paired=paired), order


def test_fused_logits(adapted):
    texts = rows(adapted.tensors["text"])
    (prediction, order) = predicted(adapted, conditions(texts, texts), paired=False)
    published = adapted.tensors["fused_logits"][..., adapted.offset :]
    torch.testing.assert_close(order.to_raster(prediction.logits, trailing=1), published, atol=1e-4, rtol=0)


def test_logits_of_both_heads(adapted):
    """Those of upstream are unshifted: at (r, c) for the cell on the right, or for the one below."""
    texts = rows(adapted.tensors["text"])
    (prediction, order) = predicted(adapted, conditions(texts, texts), paired=False)
    horizontal, vertical = (order.to_raster(part, trailing=1) for part in (prediction.horizontal, prediction.vertical))
    published = adapted.tensors["logits_h"][:, :, :-1, adapted.offset :]
    torch.testing.assert_close(horizontal[:, :, 1:], published, atol=1e-4, rtol=0)
    published = adapted.tensors["logits_v"][:, :-1, :, adapted.offset :]
    torch.testing.assert_close(vertical[:, 1:], published, atol=1e-4, rtol=0)


def test_losses(adapted):
    """Over the visual tokens alone, from the published logits. Upstream's own, over all tokens, are the same means."""
    texts, offset, published = rows(adapted.tensors["text"]), adapted.offset, adapted.tensors
    order = adapted.loaded.config.order_grid.diagonal()
    ids = published["image_tokens"].reshape(-1, order.grid.height, order.grid.width)
    pairs = {"fused": (published["fused_logits"], ids), "vertical": (published["logits_v"][:, :-1], ids[:, 1:])}
    for name, upstream in (("fused", "loss"), ("vertical", "loss_v")):
        logits, tokens = pairs[name]
        assert F.cross_entropy(logits.flatten(0, 2), tokens.flatten()).item() == pytest.approx(
            published[upstream].item()
        )
    tokens_BN, model = order.from_raster(ids - offset), adapted.loaded.model
    with torch.no_grad():
        read = partial(losses_of, model, tokens_BN=tokens_BN, settings=StageSettings())
        losses = model(tokens_BN, conditions(texts, texts), order, read=read)
    for name, (logits, tokens) in pairs.items():
        expected = F.cross_entropy(logits[..., offset:].flatten(0, 2), (tokens - offset).flatten())
        torch.testing.assert_close(getattr(losses, name), expected, atol=1e-5, rtol=1e-5)


def test_a_padded_prompt(adapted):
    """Its image starts where that of the longer prompt of its pair does."""
    texts, mask = rows(adapted.tensors["text"]), adapted.tensors["text_mask"]
    prompts = [text[: int(count)] for text, count in zip(texts, mask.sum(dim=1), strict=True)]
    assert len({len(prompt) for prompt in prompts}) == 2
    (prediction, order) = predicted(adapted, conditions(prompts, texts), paired=True)
    published = adapted.tensors["fused_logits_masked"][..., adapted.offset :]
    torch.testing.assert_close(order.to_raster(prediction.logits, trailing=1), published, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", (1.0, 2.5))
def test_greedy_decode_by_command(adapted, run_cli, tmp_path, scale):
    texts, uncond = rows(adapted.tensors["text"]), rows(adapted.tensors["uncond_text"])
    found = greedy(adapted, run_cli, tmp_path, texts, uncond, scale)
    name = "greedy_cfg1" if scale == 1 else "greedy_cfg2_5"
    assert torch.equal(found, adapted.tensors[name])


def test_a_prompt_shorter_than_the_unconditional_one(adapted, run_cli, tmp_path):
    """Alone, and in a batch with longer ones, whose lengths it must not feel."""
    short, uncond = rows(adapted.tensors["short_text"]), rows(adapted.tensors["uncond_text"])
    expected = adapted.tensors["greedy_short_cfg2_5"]
    assert torch.equal(greedy(adapted, run_cli, tmp_path, short, uncond[:1], 2.5)[0], expected)
    texts = rows(adapted.tensors["text"])
    together = greedy(adapted, run_cli, tmp_path, [*texts, *short], [*uncond, uncond[0]], 2.5, "--overwrite")
    assert torch.equal(together, torch.cat([adapted.tensors["greedy_cfg2_5"], expected[None]]))


@pytest.mark.parametrize("scale", (1, 3))
def test_greedy_raster_decode_with_line_ends(base, run_cli, tmp_path, scale):
    texts, uncond = rows(base.tensors["text"]), rows(base.tensors["uncond_text"])
    found = greedy(base, run_cli, tmp_path, texts, uncond, scale)
    assert torch.equal(found[0], base.tensors[f"greedy_cfg{scale}"])


def test_raster_logits(adapted):
    """The base's own logits, on a text of tokens of all kinds."""
    meta, ids = adapted.meta, adapted.tensors["ar_input_ids"]
    source = adapted.folder / "base"
    write_upstream(source, meta["backbone_state_dict_shapes"], meta["backbone_config"], meta["fill_scale"])
    model = converted(source, adapted.folder / "base-model", "--visual-token-offset", adapted.offset).model
    table = torch.cat([model.prefix.embedding.weight, model.backbone.embedding.weight])
    length, config = ids.shape[1], model.config.backbone
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        rope = rope_table_1d(torch.arange(length), config.head_dim, config.rope_base)
        hidden = model.hidden_states(table[ids], rope, causal, use_branch=False)
        logits = model.backbone.head(hidden.horizontal)
    torch.testing.assert_close(logits, adapted.tensors["ar_logits"][..., adapted.offset :], atol=1e-4, rtol=0)
