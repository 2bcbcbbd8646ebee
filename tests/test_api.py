"""The Python API as the README shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flashar_cli
from flashar_cli.config import Pruning
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.pixels import to_uint8
from tests.tiny_models import infinity_like_config, var_like_config


def test_generate_and_logits(write_tiny_checkpoint):
    model = flashar_cli.load(str(write_tiny_checkpoint()))
    made = model.generate(labels=[0, 3, 8], seed=1)
    assert made.tokens.shape == (3, 4, 4) and made.tokens.dtype == torch.int64
    assert made.images is not None and made.images.shape == (3, 16, 16, 3)
    logits = model.logits(made.tokens, labels=[0, 3, 8])
    assert logits.shape == (3, 4, 4, 32) and logits.dtype == torch.float32
    assert not torch.equal(logits, model.logits(made.tokens, labels=[0, 3, 8], decoder="raster"))
    greedy = model.generate([5], temperature=0, cfg_scale=1.0, top_k=0)
    assert torch.equal(model.logits(greedy.tokens, [5]).argmax(-1), greedy.tokens)
    assert torch.equal(
        model.generate([1, 2], num_images=4, seed=2, batch_size=1).tokens[2:3],
        model.generate([1, 2, 1], seed=2, batch_size=3).tokens[2:],
    )


def test_bad_arguments(write_tiny_checkpoint):
    model = flashar_cli.load(str(write_tiny_checkpoint(tokenizer=False)))
    assert model.generate([1]).images is None
    tokens = torch.zeros(1, 4, 4, dtype=torch.int64)
    for call in (
        lambda: model.generate(),
        lambda: model.generate([10]),
        lambda: model.generate([1], decoder="spiral"),
        lambda: model.generate([1], top_p=2.0),
        lambda: model.generate([1], batch_size=0),
        lambda: model.generate([1], prompts=["a star"]),
        lambda: model.generate(prompts=["a star"]),
        lambda: model.generate([1], sharpness=3),
        lambda: model.generate(caption_features=torch.zeros(1, 2, 3), caption_mask=torch.ones(1, 2)),
        lambda: model.logits(tokens, [1, 2]),
        lambda: model.logits(tokens + 32, [1]),
        lambda: model.logits(tokens[:, :3], [1]),
        lambda: model.images(tokens),
        lambda: flashar_cli.load("no-such-model"),
    ):
        with pytest.raises(FlasharError):
            call()


def test_images_are_of_tokens_that_the_tokenizer_has(write_tiny_checkpoint):
    model = flashar_cli.load(str(write_tiny_checkpoint()))
    tokens = torch.arange(32).reshape(2, 4, 4)
    expected = to_uint8(model.tokenizer.decode(tokens))
    assert np.abs(model.images(tokens).astype(int) - expected).max() <= 1
    with pytest.raises(FlasharError, match=r"tokens range over 1 \.\. 32"):
        model.images(tokens + 1)


def test_half_precision(write_tiny_checkpoint):
    model = flashar_cli.load(str(write_tiny_checkpoint()), dtype=torch.bfloat16)
    assert model.model.dtype == torch.bfloat16
    assert model.generate([1], seed=0).tokens.max() < 32


def test_quantised(write_tiny_checkpoint):
    pytest.importorskip("torchao")
    path = str(write_tiny_checkpoint())
    plain, quantised = flashar_cli.load(path), flashar_cli.load(path, quantize="int8")
    tokens = plain.generate([1, 2], temperature=0).tokens
    near, far = quantised.logits(tokens, [1, 2]), plain.logits(tokens, [1, 2])
    assert not torch.equal(near, far)
    assert (near - far).abs().max() < 0.05 * far.abs().max()
    with pytest.raises(FlasharError, match="overflows float16"):
        flashar_cli.load(path, dtype=torch.float16, quantize="int8")


def test_prompts_on_a_grid(prompt_checkpoint):
    model = flashar_cli.load(str(prompt_checkpoint))
    prompts = ["a red star", "a blue ring"]
    greedy = {"prompts": prompts, "grid": (2, 7), "temperature": 0, "top_k": 0}
    made = model.generate(**greedy, cfg_scale=1.0)
    assert made.tokens.shape == (2, 2, 7) and made.images.shape == (2, 8, 28, 3)
    assert torch.equal(model.logits(made.tokens, prompts=prompts).argmax(-1), made.tokens)
    assert model.generate(prompts=prompts).tokens.shape == (2, 3, 5)
    # Away from the unconditional text is what a negative prompt of that text would be.
    guided = model.generate(**greedy, cfg_scale=6.0).tokens
    assert torch.equal(model.generate(**greedy, cfg_scale=6.0, negative_prompts=["assistant"]).tokens, guided)
    assert not torch.equal(model.generate(**greedy, cfg_scale=6.0, negative_prompts=prompts[::-1]).tokens, guided)
    long = torch.zeros(1, 11, 11, dtype=torch.int64)
    for call in (
        lambda: model.generate(prompts=prompts, negative_prompts=["a", "b", "c"]),
        lambda: model.generate(prompts=prompts, grid=(11, 11)),
        lambda: model.generate(prompts=prompts, grid=(0, 3)),
        lambda: model.logits(long, prompts=["a"]),
        lambda: model.logits(long[0], prompts=["a"]),
    ):
        with pytest.raises(FlasharError):
            call()


def test_what_only_prompts_take(write_tiny_checkpoint):
    model = flashar_cli.load(str(write_tiny_checkpoint()))
    with pytest.raises(FlasharError, match="only prompts have negative ones"):
        model.generate([1], negative_prompts=["a"])
    with pytest.raises(FlasharError, match="the grid is 4x5, but this model makes images of 4x4"):
        model.generate([1], grid=(4, 5))


def captions(lengths):
    """Features and mask of captions for ``infinity_like_config``."""
    features = torch.randn(len(lengths), max(lengths), 16, generator=torch.Generator().manual_seed(0))
    return {"caption_features": features, "caption_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])}


PRUNING = Pruning(ratios=((3, 0.5),), first_layer=1, num_scales=4)


@pytest.mark.parametrize("decoder", ("scale", "truncate", "fastvar"))
def test_next_scale_models(write_scale_checkpoint, decoder):
    path = str(write_scale_checkpoint(infinity_like_config()))
    model, shown = flashar_cli.load(path, fastvar=PRUNING), captions([4, 6])
    made = model.generate(**shown, decoder=decoder, temperature=0)
    num_tokens = 54 if decoder == "scale" else 26
    assert made.tokens.shape == (2, num_tokens, 3) and made.tokens.dtype == torch.uint8
    assert made.images.shape == (2, 14, 8, 3)
    logits = model.logits(made.tokens, **shown, decoder=decoder)
    assert logits.shape == (2, num_tokens, 3, 2) and torch.equal(logits.argmax(-1).byte(), made.tokens)
    assert np.abs(model.images(made.tokens).astype(int) - made.images).max() <= 1


def test_logits_of_all_scales_are_those_of_one_forward(write_scale_checkpoint):
    model = flashar_cli.load(str(write_scale_checkpoint(var_like_config())))
    tokens = torch.randint(32, (2, 36), generator=torch.Generator().manual_seed(1))
    maps = TokenMaps(model.config, model.tokenizer.quantizer, model.config.scales(Grid(3, 5)))
    with torch.no_grad():
        forced = model.model(maps.inputs(tokens), Conditions(labels=torch.tensor([1, 2])), Grid(3, 5))
    torch.testing.assert_close(model.logits(tokens, [1, 2]), forced, atol=1e-4, rtol=0)


def test_other_images_of_a_next_scale_model(write_scale_checkpoint):
    model, shown = flashar_cli.load(str(write_scale_checkpoint(infinity_like_config()))), captions([4])
    made = model.generate(**shown, grid=(3, 8))
    assert made.images.shape == (1, 6, 16, 3)
    assert np.abs(model.images(made.tokens, grid=(3, 8)).astype(int) - made.images).max() <= 1
    assert model.logits(made.tokens, **shown, grid=(3, 8)).shape == (1, 48, 3, 2)
    for call, words in (
        (lambda: model.generate(**shown, grid=(9, 9)), "the grid is 9x9, for which this model has no schedule"),
        (lambda: model.generate(**shown, decoder="fastvar"), "pass --fastvar"),
        (lambda: model.generate(**shown, decoder="truncate"), "pass --fastvar-scales"),
        (lambda: model.generate(**shown, decoder="raster"), "this model predicts whole maps"),
        (lambda: model.generate([1]), "caption-conditional"),
        (lambda: model.images(made.tokens), "expected those of the first one or more scales"),
        (lambda: model.images(made.tokens + 2, grid=(3, 8)), "tokens range over"),
        (lambda: model.logits(made.tokens, **shown), "the tokens of an image are"),
        (lambda: model.logits(made.tokens + 2, **shown, grid=(3, 8)), r"expected 0\.\.1"),
    ):
        with pytest.raises(FlasharError, match=words):
            call()
    with pytest.raises(FlasharError, match="layer 27 is to drop tokens"):
        flashar_cli.load(str(write_scale_checkpoint(infinity_like_config(), "other")), fastvar="infinity-released")


def test_a_raster_model_has_no_fastvar(write_tiny_checkpoint):
    with pytest.raises(FlasharError, match="FastVAR drops tokens of whole maps"):
        flashar_cli.load(str(write_tiny_checkpoint()), fastvar=PRUNING)
