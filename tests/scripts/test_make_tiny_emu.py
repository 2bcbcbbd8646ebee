"""The untrained base of emu-tiny is a whole checkpoint with its vocabulary."""

from __future__ import annotations

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import read_config
from flashar_cli.tokenizers import build_tokenizer
from scripts.make_tiny_emu import make_base, tiny_config
from scripts.tiny.vocabulary import ranks, words
from tests.tiny_models import TINY_VQ


def test_the_base_is_whole(tmp_path):
    make_base(tiny_config(TINY_VQ), build_tokenizer(TINY_VQ), tmp_path / "base", 0)
    assert checkpoint.problems(tmp_path / "base") == []
    config, num_ranks = read_config(tmp_path / "base"), len(ranks(words()))
    assert config.prefix.vocab_size == num_ranks + 3 + 205 + 3 and config.prefix.line_end == num_ranks + 3 + 200
    assert config.num_weights < 2_000_000
    lines = (tmp_path / "base" / "text_tokenizer.tiktoken").read_text().splitlines()
    assert len(lines) == num_ranks and lines[-1].endswith(f" {num_ranks - 1}")
    assert (tmp_path / "base" / "text_tokenizer_special.txt").read_text().startswith("<|image token|>\n")
