"""Hostile `config.json` files: every field with values that no model has."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashar_cli.config import IBQConfig, Provenance, RasterConfig, VQConfig, parse_config
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.text import one_line
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers import build_tokenizer
from tests.input.values import DOCUMENTS, FLOATS, INTEGERS, TEXT
from tests.tiny_models import random_config

VALID: dict[str, Any] = json.loads(random_config().model_dump_json())


def places(document: object, above: tuple = ()) -> Iterator[tuple]:
    """The paths of all tables and values of a document."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield (*above, key)
            yield from places(value, (*above, key))


def changed(place: tuple, value: object) -> dict[str, Any]:
    document = copy.deepcopy(VALID)
    table = document
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return document


def try_value(place: tuple, value: object) -> None:
    """Either it is a model that can be built and stored, or an error of one line says what is wrong."""
    try:
        config = parse_config(changed(place, value), "config.json")
    except FlasharError as error:
        assert len(one_line(str(error))) <= 500
        return
    config.model_dump_json().encode("utf-8")
    assert RasterConfig.model_validate_json(config.model_dump_json()) == config
    if config.backbone.num_layers < 100:
        with torch.device("meta"):
            model = FlasharModel(config)
            if config.tokenizer is not None and config.tokenizer.num_res_blocks < 10:
                build_tokenizer(config.tokenizer)
        assert sum(parameter.numel() for parameter in model.parameters()) == config.num_weights


PLACES = list(places(VALID))
VALUES = INTEGERS | FLOATS | TEXT | DOCUMENTS


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES), VALUES)
def test_every_field_under_hostile_values(place: tuple, value: object) -> None:
    try_value(place, value)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(st.sampled_from(PLACES), VALUES)
def test_every_field_under_many_hostile_values(place: tuple, value: object) -> None:
    try_value(place, value)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    (
        (("backbone", "dim"), 10**30, "expected a whole number from 1 to 131072 (got 1000000"),
        (("backbone", "num_layers"), 10**5, "from 1 to 1024"),
        (("backbone", "rope_base"), 1e-45, "rope_base"),
        (("backbone", "norm_eps"), 5e-324, "norm_eps"),
        (("grid", "height"), 10**9, "from 1 to 1024"),
        (("generation", "temperature"), 1e-300, "or 0 (argmax)"),
        (("generation", "top_p"), 1e-46, "top_p"),
        (("tokenizer", "channels"), 33, "multiple of 32"),
        (("tokenizer", "encoder_multipliers"), [1] * 60, "60 encoder_multipliers and 3 decoder_multipliers"),
        (("kind",), [], "has kind []; expected one of raster"),
        (("family",), "caf\udce9", "holds the character \\udce9"),
        (("provenance", "notes"), "a\0b", "holds the character \\x00"),
        (("raster_loss",), float("nan"), "raster_loss"),
    ),
)
def test_what_no_machine_computes_is_refused(place: tuple, value: object, words: str) -> None:
    with pytest.raises(FlasharError) as error:
        parse_config(changed(place, value), "config.json")
    assert words in str(error.value) and "Infinity" not in str(error.value)


def test_numbers_that_python_would_not_write_are_described() -> None:
    with pytest.raises(FlasharError, match=r"dim: expected .* \(got a number of about 5001 digits\)"):
        parse_config(changed(("backbone", "dim"), 10**5000), "config.json")


def test_provenance_holds_what_json_holds() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"in": deep}
    provenance = Provenance(tool_version="0", recipe={"lr": float("nan"), "name": "caf\udce9", "deep": deep})
    text = provenance.model_dump_json()
    assert provenance.recipe is not None and provenance.recipe["lr"] is None and len(text) < 1000


def test_the_kind_says_which_tokenizer_it_is() -> None:
    ibq = json.loads(IBQConfig(codebook_size=VALID["tokenizer"]["codebook_size"]).model_dump_json())
    assert isinstance(parse_config(changed(("tokenizer",), ibq), "config.json").tokenizer, IBQConfig)
    with pytest.raises(FlasharError, match="tokenizer.ibq.encoder_multipliers: Extra inputs"):
        parse_config(changed(("tokenizer", "kind"), "ibq"), "config.json")
    with pytest.raises(FlasharError, match="tokenizer: .*'vq', 'ibq'"):
        parse_config(changed(("tokenizer", "kind"), "frog"), "config.json")


def test_a_tokenizer_has_as_many_levels_both_ways() -> None:
    assert VQConfig(encoder_multipliers=(1, 2), decoder_multipliers=(2, 1)).downsample == 2
    for down, up in (((), ()), ((1,) * 9, (1,) * 9), ((1, 2), (1,))):
        with pytest.raises(ValueError, match="expected as many of both"):
            VQConfig(encoder_multipliers=down, decoder_multipliers=up)
    with pytest.raises(ValueError, match="from 1 to 64"):
        VQConfig(encoder_multipliers=(1, 0), decoder_multipliers=(1, 1))
