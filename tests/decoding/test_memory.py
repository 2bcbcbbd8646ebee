"""The estimate of what decoding takes, against the tensors of a decode and by hand."""

from __future__ import annotations

import pytest

from flashar_cli.config import Sampling
from flashar_cli.decoding.costs import Workload
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.static import RasterDecoder
from flashar_cli.grid import Grid
from flashar_cli.nn.sampling import uniform_table
from tests.decoding.plain import decode
from tests.decoding.test_decoder import make_conditions, make_model
from tests.models.test_diffusion import diffusion_model

NAMES = ("raster", "flashar", "naive", "zipar:1", "zipar:2", "jacobi:3", "jacobi:99", "block-diffusion:1")


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_step_is_that_of_a_decode(name):
    model = diffusion_model(3, 5, 7) if name.startswith("block") else make_model(3, 5, "hidden")
    decoder, lengths = choose_decoder(model.config, name), []
    assert isinstance(decoder, RasterDecoder)
    uniform = uniform_table(0, 0, 2, 15)
    decode(
        model, make_conditions(2, False), decoder, Sampling(), uniform, lambda _, logits: lengths.append(logits.shape)
    )
    assert decoder.longest_step(model.config, Grid(3, 5)) == max(shape[1] for shape in lengths)


def test_bytes_by_hand():
    """Keys and values of each block, six tensors of logits, and a distribution for each draft of ``jacobi``."""
    config = make_model(3, 5, "hidden").config
    part = config.backbone
    work = Workload(Grid(3, 5), rows=2, prefix_length=1, weight_bytes=2)
    cells = {"raster": 1, "flashar": 3, "jacobi:4": 4}
    found = {name: choose_decoder(config, name).image_bytes(config, work, 3, False) for name in cells}
    caches = 3 * 2 * config.num_blocks * 2 * (1 + 15) * part.num_kv_heads * part.head_dim * 2
    logits = {name: 6 * 2 * count * part.vocab_size * 4 for name, count in cells.items()}
    assert found == {
        name: caches + logits[name] + (15 * part.vocab_size * 4 if name == "jacobi:4" else 0) for name in cells
    }
