"""Fixtures that several test files share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import NextScaleConfig, TextPrefix
from flashar_cli.machine import rates
from flashar_cli.tokenizers import build_tokenizer
from flashar_cli.tokenizers.text import open_text_tokenizer
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.tiny_models import CAPTION_PREFIX, PROMPT_PREFIX, build_model, build_scale_model, random_config
from tests.tokenizers.text.vocabularies import write_vocabulary


@pytest.fixture
def small_text_encoder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A T5 encoder of the published layout, small, in place of flan-t5-xl."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    from flashar_cli.data.conditions import caption

    folder = tmp_path_factory.mktemp("t5")
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "star": 4, "blue": 5, "ring": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )
    monkeypatch.setattr(caption, "TEXT_ENCODER", str(folder))


@pytest.fixture
def write_tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of ``random_config(**settings)`` and returns its directory."""

    def write(name: str = "tiny", **settings: Any) -> Path:
        config = random_config(**settings)
        torch.manual_seed(0)
        tokenizer = None if config.tokenizer is None else VQTokenizer(config.tokenizer).state_dict()
        checkpoint.save(tmp_path / name, config, build_model(config).state_dict(), tokenizer)
        return tmp_path / name

    return write


@pytest.fixture
def write_scale_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of a next-scale config, with random weights, and returns its directory."""

    def write(config: NextScaleConfig, name: str = "scales") -> Path:
        torch.manual_seed(0)
        tokenizer = build_tokenizer(config.tokenizer).state_dict()
        checkpoint.save(tmp_path / name, config, build_scale_model(config).state_dict(), tokenizer)
        return tmp_path / name

    return write


@pytest.fixture
def caption_checkpoint(tmp_path: Path) -> Path:
    """A random base that reads the captions of ``small_text_encoder``."""
    config = random_config(branch=False).model_copy(update={"prefix": CAPTION_PREFIX})
    assert config.tokenizer is not None
    checkpoint.save(
        tmp_path / "t2i", config, build_model(config).state_dict(), VQTokenizer(config.tokenizer).state_dict()
    )
    return tmp_path / "t2i"


@pytest.fixture
def text_checkpoint(tmp_path: Path) -> Path:
    """A random base that reads prompts, with a text tokenizer of five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "a": 1, "red": 2, "star": 3, "blue": 4, "ring": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    prefix = TextPrefix(vocab_size=16, begin=(10,), end=(11,), pad_id=12, kept=(10, 11), max_length=6)
    config = random_config(branch=False).model_copy(update={"prefix": prefix})
    assert config.tokenizer is not None
    extras = {"text_tokenizer.json": tmp_path / "words.json"}
    images = build_tokenizer(config.tokenizer).state_dict()
    checkpoint.save(tmp_path / "text", config, build_model(config).state_dict(), images, extras=extras)
    return tmp_path / "text"


@pytest.fixture
def prompt_checkpoint(tmp_path: Path) -> Path:
    """A random base of 3x5 tokens, or of any other grid within 128 positions, that reads prompts in a template by a
    tiktoken vocabulary.
    """
    config = random_config(3, 5, branch=False)
    backbone = config.backbone.model_copy(update={"rope": "1d", "max_positions": 128})
    config = config.model_copy(update={"prefix": PROMPT_PREFIX, "backbone": backbone})
    assert config.tokenizer is not None
    vocabulary = open_text_tokenizer(write_vocabulary(tmp_path / "vocabulary"), PROMPT_PREFIX.vocab_size)
    images = build_tokenizer(config.tokenizer).state_dict()
    checkpoint.save(tmp_path / "prompted", config, build_model(config).state_dict(), images, extras=vocabulary.copies)
    return tmp_path / "prompted"


@pytest.fixture(autouse=True, scope="session")
def rates_are_measured_once() -> Iterator[None]:
    """Seconds for each bench otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "measure_rates", cache(rates.measure_rates))
        yield


@pytest.fixture(autouse=True)
def errors_show_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no user's fault is raised in tests, not told in one line."""
    monkeypatch.setenv("FLASHAR_TRACEBACK", "1")


@dataclass(frozen=True)
class Result:
    """What a user sees: the exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``run_cli("bench", path, "--repeats", 1)``; arguments are turned into strings."""

    def run(*args: object) -> Result:
        from flashar_cli.cli.main import main

        monkeypatch.setattr(sys, "argv", ["flashar", *map(str, args)])
        capsys.readouterr()
        handler = signal.getsignal(signal.SIGTERM)  # the command sets its own, and pytest must still be stoppable
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            signal.signal(signal.SIGTERM, handler)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
