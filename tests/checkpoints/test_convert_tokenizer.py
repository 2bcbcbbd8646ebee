"""Image tokenizers in a separate file, of a family whose names are not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flashar_cli.checkpoints.convert import convert
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.families.base import ConvertOptions
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import ibq_upstream
from tests.parity.upstream_files import upstream_state
from tests.tokenizers.test_ibq import SMALL, published_state

OPTIONS = ConvertOptions(num_heads=4, grid=Grid(3, 3))


@pytest.fixture(autouse=True)
def with_ibq(monkeypatch: pytest.MonkeyPatch) -> None:
    family = type(get_family("llamagen"))
    monkeypatch.setattr(family, "read_tokenizer", lambda self, source: ibq_upstream.read_state(source.state))
    monkeypatch.setattr(family, "tokenizer_to_upstream", lambda self, state: ibq_upstream.to_upstream(state))


def test_it_becomes_part_of_the_model(tmp_path: Path) -> None:
    torch.save(upstream_state(vocab_size=20), tmp_path / "model.pt")
    (tmp_path / "vq").mkdir()
    torch.save(published_state(), tmp_path / "vq" / "model.ckpt")
    new = convert(tmp_path / "model.pt", OPTIONS, tmp_path / "vq")
    assert new.config.tokenizer == SMALL and json.loads(new.config.model_dump_json())["tokenizer"]["kind"] == "ibq"
    assert new.tokenizer_state is not None and "decoder.conv_blocks.0.upsample.conv.bias" in new.tokenizer_state


def test_problems_are_listed_by_upstreams_names(tmp_path: Path) -> None:
    torch.save(upstream_state(vocab_size=20), tmp_path / "model.pt")
    wrong = {"decoder.up.1.upsample.conv.bias": torch.zeros(7), "encoder.mid.attn_1.q.bias": torch.zeros(5)}
    torch.save(published_state() | wrong, tmp_path / "model.ckpt")
    with pytest.raises(FlasharError) as error:
        convert(tmp_path / "model.pt", OPTIONS, tmp_path / "model.ckpt")
    assert str(error.value).endswith(
        "decoder.up.1.upsample.conv.bias is [7], expected [64]; encoder.mid.attn_1.q.bias is [5], expected [64]"
    )
