"""Speculative decoding draws what raster decoding draws: the same greedy tokens, the same distribution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.jacobi import JacobiDecoder
from flashar_cli.decoding.static import RASTER
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import guide, uniform_table
from tests.decoding.plain import decode
from tests.decoding.test_decoder import make_conditions, make_model, scaled
from tests.tiny_models import build_model, emu_like_config, random_config


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize(
    "guidance",
    (
        {"cfg_scale": 1.0},
        {"cfg_scale": 2.0},
        {"cfg_scale": 3.0, "cfg_interval": (0.3, 0.8)},
        {"cfg_scale": 3.0, "cfg_schedule": "linear"},
    ),
    ids=("none", "constant", "interval", "linear"),
)
@pytest.mark.parametrize("window", (1, 2, 5, 40))
def test_greedy_tokens_are_those_of_raster_decoding(window, guidance, captions):
    model, conditions = make_model(4, 5, "hidden", captions), make_conditions(3, captions)
    sampling, uniform = Sampling(**guidance, temperature=0.0), uniform_table(0, 0, 3, 20)
    found = decode(model, conditions, JacobiDecoder(window), sampling, uniform)
    assert torch.equal(found, decode(model, conditions, RASTER, sampling, uniform))


@pytest.mark.parametrize("window", (1, 3, 16))
def test_an_image_does_not_depend_on_its_batch(window):
    model, conditions = make_model(4, 5, "hidden"), make_conditions(3, False)
    sampling, uniform = Sampling(cfg_scale=1.5, top_k=6), uniform_table(0, 0, 3, 20)
    together = decode(model, conditions, JacobiDecoder(window), sampling, uniform)
    for row in range(3):
        rows = torch.tensor([row])
        assert torch.equal(
            decode(model, conditions[rows], JacobiDecoder(window), sampling, uniform[rows])[0], together[row]
        )


def small_model(vocab_size: int) -> FlasharModel:
    """Of 2x2 tokens, so few that all images can be listed, with chances that depend on the tokens before."""
    config = random_config(2, 2, tokenizer=False).model_dump()
    config["backbone"]["vocab_size"] = vocab_size
    return scaled(build_model(RasterConfig.model_validate(config)))


def chances_of_all_images(model: FlasharModel, sampling: Sampling) -> tuple[torch.Tensor, np.ndarray]:
    """All images [V^4, 2, 2] and their chances under the base."""
    vocab_size, grid = model.config.backbone.vocab_size, model.config.order_grid
    images = torch.tensor(list(itertools.product(range(vocab_size), repeat=4))).view(-1, 2, 2)
    conditions, order = Conditions(labels=torch.zeros(len(images), dtype=torch.int64)), grid.raster()
    drops = [torch.full((len(images),), drop) for drop in (False, True)]
    with torch.no_grad():
        pair = [model(order.from_raster(images), conditions, order, drop).logits for drop in drops]
    logits = guide(*pair, sampling.cfg_scale) if sampling.guided else pair[0]
    log_p = (logits / sampling.temperature).log_softmax(dim=-1).gather(2, images.flatten(1)[..., None]).sum(dim=(1, 2))
    return images, log_p.double().exp().numpy()


@pytest.mark.parametrize("window", (1, 2, 3))
@pytest.mark.parametrize("sampling", (Sampling(), Sampling(cfg_scale=1.8, temperature=1.3)), ids=("plain", "guided"))
def test_the_distribution_is_that_of_the_base(window, sampling):
    """Pearson's test over all 81 images; images that are rare by themselves are counted together."""
    model, num_images = small_model(3), 12_000
    images, chances = chances_of_all_images(model, sampling)
    assert chances.sum() == pytest.approx(1) and chances.max() < 0.5
    labels = Conditions(labels=torch.zeros(num_images, dtype=torch.int64))
    tokens = decode(model, labels, JacobiDecoder(window), sampling, uniform_table(5, 0, num_images, 4))
    index = (tokens.flatten(1) * 3 ** torch.arange(3, -1, -1)).sum(dim=1).numpy()
    counts = np.bincount(index, minlength=len(images))
    common = chances * num_images >= 5
    expected = np.append(chances[common], chances[~common].sum()) * num_images
    found = np.append(counts[common], counts[~common].sum())
    statistic = float(((found - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    freedom = len(expected) - 1
    # Beyond four standard deviations of the statistic; it has a chance of about 1 in 5000.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom), (statistic, freedom)


def test_drafts_save_forwards_where_the_model_is_sure():
    """A model that always says the same needs a forward a window; the costs are those of that case."""
    model = make_model(4, 5, "hidden")
    with torch.no_grad():
        model.backbone.head.weight.zero_()
        model.backbone.head.weight[7] = 1e3 * model.backbone.norm.weight.sign()
    forwards = []
    with torch.no_grad():
        model.backbone.norm.weight.zero_()
    tokens = decode(
        model,
        make_conditions(1, False),
        JacobiDecoder(6),
        Sampling(temperature=0.0),
        uniform_table(0, 0, 1, 20),
        lambda step, logits: forwards.append(step),
    )
    assert len(tokens.unique()) == 1
    assert forwards == list(range(len(forwards))) and len(forwards) <= 1 + 2 * 4


def test_it_has_no_number_of_forwards_and_no_logits():
    model, conditions = make_model(3, 4, "hidden"), make_conditions(2, False)
    decoder: Decoder = choose_decoder(model.config, "jacobi")
    grid = model.config.order_grid
    assert decoder.name == "jacobi:16" and decoder.num_forwards(model.config, grid) is None
    with pytest.raises(FlasharError, match="has no logits of given tokens"):
        decoder.logits(model, None, torch.zeros(2, 3, 4, dtype=torch.int64), conditions, grid)
    engine = Engine(model, None)
    assert engine.teacher_forced(decoder, conditions, Sampling(), torch.zeros(2, 3, 4, dtype=torch.int64)) is None
    with pytest.raises(FlasharError, match="ends each row with a token of its own"):
        choose_decoder(build_model(emu_like_config()).config, "jacobi:4")
