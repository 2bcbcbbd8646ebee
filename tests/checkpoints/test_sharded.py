"""What is wrong with the files that processes read in shards; adaptation/test_model.py has several processes."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashar_cli.checkpoints.checkpoint import load
from flashar_cli.checkpoints.convert import convert
from flashar_cli.checkpoints.parts import model_on_meta
from flashar_cli.checkpoints.sharded import read_base
from flashar_cli.config import read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions
from flashar_cli.models.flashar import FlasharModel


@pytest.fixture
def base(write_tiny_checkpoint):
    return write_tiny_checkpoint(branch=False)


def empty_model(folder) -> FlasharModel:
    return model_on_meta(read_config(folder)).to_empty(device="cpu")


def test_it_reads_what_is_there_in_the_dtype_of_the_model(base):
    model, state = empty_model(base).bfloat16(), load_file(base / "model.safetensors")
    read_base(model, base)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].bfloat16()), name


@pytest.mark.parametrize(
    ("change", "words"),
    (
        (lambda state: state.pop("backbone.norm.weight"), "missing backbone.norm.weight"),
        (lambda state: state.update(other=torch.zeros(2)), "unexpected other"),
        (lambda state: state.update({"backbone.norm.weight": torch.ones(3)}), "norm.weight is [3], expected [64]"),
        (lambda state: state.update({"backbone.norm.weight": torch.ones(64).int()}), "norm.weight is I32, expected"),
        (lambda state: state["backbone.head.weight"].fill_(torch.inf), "head.weight has NaN or infinite values"),
    ),
)
def test_every_problem_is_named(base, change, words):
    state = load_file(base / "model.safetensors")
    change(state)
    save_file(state, base / "model.safetensors")
    with pytest.raises(FlasharError) as error:
        read_base(empty_model(base), base)
    assert words in str(error.value)


def test_a_second_file_with_the_same_tensors_is_refused(base):
    shutil.copy(base / "model.safetensors", base / "model-00001-of-00002.safetensors")
    with pytest.raises(FlasharError, match="model-00001-of-00002.safetensors holds .* too; remove that file"):
        read_base(empty_model(base), base)


def test_a_truncated_file_is_one_line(base):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FlasharError, match="it may be truncated"):
        read_base(empty_model(base), base)


def test_linked_files_of_upstream_are_joined_and_cut(tmp_path):
    """As ``load`` does: queries, keys and values are apart there, text and visual tokens together."""
    from tests.parity.fixtures import read_fixture
    from tests.parity.test_emu import write_upstream

    meta = read_fixture("emu35_raster_small").meta
    write_upstream(tmp_path / "upstream", meta["state_dict_shapes"], meta["config"] | {"model_type": "Emu3"}, 0.08)
    options = ConvertOptions(visual_token_offset=meta["visual_token_offset"], eol_token_id=meta["eol_token_id"])
    convert(tmp_path / "upstream", options, None).link(tmp_path / "linked")
    model, whole = empty_model(tmp_path / "linked"), load(tmp_path / "linked", torch.device("cpu")).model
    read_base(model, tmp_path / "linked")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
