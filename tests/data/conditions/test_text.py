"""Prompts as text tokens: from the command line, from a file of ids, from captions of data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import TextPrefix
from flashar_cli.data.conditions import Given, conditions_of, parse
from flashar_cli.data.conditions.text import TextConditions
from flashar_cli.data.encoding import encode
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_encoding, plan_tokens
from flashar_cli.data.shards import read_shards
from flashar_cli.errors import FlasharError
from flashar_cli.machine.world import World
from flashar_cli.tokenizers import build_tokenizer
from tests.data.images import captioned_images
from tests.tiny_models import build_model, random_config

CPU = torch.device("cpu")
BEGIN, END, PAD = 60, 61, 63
PREFIX = TextPrefix(
    vocab_size=64, template="<{prompt}>", begin=(BEGIN,), end=(END,), pad_id=PAD, kept=(BEGIN, END), max_length=12
)


class Letters:
    """A text tokenizer: ``a`` is 1, ``z`` 26, anything else 0."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 if "a" <= letter <= "z" else 0 for letter in text]


KIND = TextConditions(PREFIX, text_tokenizer=Letters())


def file_of(folder, document) -> Path:
    path = folder / "prompts.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def rows(conditions, name):
    return conditions.tensors[name].tolist()


def test_prompts_become_left_padded_ids_in_their_template():
    conditions, names = KIND.parse(Given(prompts=["ab", "c"]), CPU)
    assert names == ["ab", "c"]
    assert rows(conditions, "ids") == [[BEGIN, 0, 1, 2, 0, END], [PAD, BEGIN, 0, 3, 0, END]]
    assert rows(conditions, "mask") == [[True] * 6, [False] + [True] * 5] == rows(conditions, "uncond_mask")
    assert rows(conditions, "uncond_ids") == [[BEGIN, PAD, PAD, PAD, PAD, END], [PAD, BEGIN, PAD, PAD, PAD, END]]
    model = build_model(random_config(branch=False).model_copy(update={"prefix": PREFIX}))
    model.prefix.check(conditions)
    again, _ = parse(Given(prompts=["ab", "c"]), model, Letters())
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in conditions.tensors.items())


def test_ids_from_a_file(tmp_path):
    path = file_of(tmp_path, {"cond": [[1, 2, 3], [BEGIN, END]]})
    conditions, names = KIND.parse(Given(prompt_tokens=path), CPU)
    assert names == ["prompt 0", "prompt 1"]
    assert rows(conditions, "ids") == [[1, 2, 3], [PAD, BEGIN, END]]
    assert rows(conditions, "uncond_ids") == [[PAD] * 3, [PAD, BEGIN, END]]
    assert rows(conditions, "mask") == rows(conditions, "uncond_mask") == [[True] * 3, [False, True, True]]


def test_unconditional_ids_of_other_lengths(tmp_path):
    path = file_of(tmp_path, {"cond": [[1, 2], [3]], "uncond": [[4], [5, 6, 7]]})
    conditions, _ = KIND.parse(Given(prompt_tokens=path), CPU)
    assert rows(conditions, "ids") == [[PAD, 1, 2], [PAD, PAD, 3]]
    assert rows(conditions, "uncond_ids") == [[PAD, PAD, 4], [5, 6, 7]]
    assert rows(conditions, "mask") == [[False, True, True], [False, False, True]]
    assert rows(conditions, "uncond_mask") == [[False, False, True], [True] * 3]
    build_model(random_config(branch=False).model_copy(update={"prefix": PREFIX})).prefix.check(conditions)


@pytest.mark.parametrize(
    ("document", "words"),
    (
        ("no json", "not valid JSON"),
        ([[1]], "is not of the form"),
        ({}, "cond"),
        ({"cond": []}, "cond"),
        ({"cond": [[1], []]}, r"cond\.1"),
        ({"cond": [[1.0]]}, r"cond\.0\.0"),
        ({"cond": [["1"]]}, r"cond\.0\.0"),
        ({"cond": [[True]]}, r"cond\.0\.0"),
        ({"cond": [[-1]]}, r"cond\.0\.0"),
        ({"cond": [[1]], "more": 1}, "more"),
        ({"cond": [[64]]}, r"has the id 64; this model's text tokens are 0\.\.63"),
        ({"cond": [[1]], "uncond": [[64]]}, "has the id 64"),
        ({"cond": [[1]], "uncond": []}, "1 rows in cond and 0 in uncond"),
        ({"cond": [[1], [2]], "uncond": [[1]]}, "2 rows in cond and 1 in uncond"),
        ({"cond": [[1] * 13]}, "a prompt has 13 tokens; this model takes 1 to 12"),
        ({"cond": [[1]], "uncond": [[1] * 13]}, "13 tokens"),
    ),
)
def test_other_files_are_one_line(tmp_path, document, words):
    with pytest.raises(FlasharError, match=words) as error:
        KIND.parse(Given(prompt_tokens=file_of(tmp_path, document)), CPU)
    assert "\n" not in str(error.value)


def test_what_is_not_of_this_kind_is_refused():
    path = Path("x")
    for given, words in (
        (Given(), "expected either --prompt or --prompt-tokens FILE"),
        (Given(prompts=["a"], prompt_tokens=path), "expected either --prompt or --prompt-tokens FILE"),
        (Given(labels="1"), "made for prompts; pass --prompt or --prompt-tokens, not --labels"),
        (Given(prompts=["a"], caption_features=path), "not --caption-features"),
        (Given(prompts=["a" * 9]), "a prompt has 13 tokens"),
    ):
        with pytest.raises(FlasharError, match=words):
            KIND.parse(given, CPU)
    with pytest.raises(FlasharError, match="--prompt-tokens FILE"):
        TextConditions(PREFIX).parse(Given(prompts=["a"]), CPU)


def test_captions_of_data_are_cut_to_fit():
    subjects = KIND.read(["ab", "abcdefghijkl", ""], [], Path("shards"))
    assert subjects.labels is None and subjects.names() == ["ab", "abcdefghijkl", ""]
    conditions = subjects.conditions()
    assert rows(conditions, "ids")[1] == [BEGIN, 0, *range(1, 9), 0, END]  # the template is whole
    assert rows(conditions, "mask")[2] == [False] * 8 + [True] * 4
    short = subjects.take(np.array([2, 0])).conditions()
    assert rows(short, "ids") == [[PAD, PAD, BEGIN, 0, 0, END], [BEGIN, 0, 1, 2, 0, END]]
    shown, names = KIND.examples(subjects, 2)
    assert len(shown) == 2 and names == ["ab", "abcdefghijkl"]
    narrow = TextConditions(PREFIX.model_copy(update={"max_length": 3}), text_tokenizer=Letters())
    with pytest.raises(FlasharError, match="too few for its template"):
        narrow.read(["ab"], [], Path("shards"))


def test_shards_hold_captions_as_text(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    config = random_config(branch=False).model_copy(update={"prefix": PREFIX})
    assert config.tokenizer is not None
    tokenizer = build_tokenizer(config.tokenizer)
    loaded = checkpoint.Loaded(build_model(config), tokenizer, Letters())
    lines = captioned_images(tmp_path / "images", 10)
    job, out = plan_encoding(loaded, str(lines), None, 0, EncodeOptions(shard_size=6)), tmp_path / "out"
    encode(job, out, World())
    names = {path.name for path in out.iterdir()}
    assert names == {"manifest.json", "codes-00000.parquet", "codes-00001.parquet"}
    assert json.loads((out / "manifest.json").read_text())["captions"] is None
    data = read_shards(out, job.grid, 32, None, conditions_of(config, Letters()))
    assert data.subjects.names()[:2] == ["a red star", "Ring"]
    tokens, conditions = data.take(slice(1, 2)).tensors(CPU)
    assert tokens.shape == (1, 4, 4) and rows(conditions, "ids") == [[BEGIN, 0, 0, 9, 14, 7, 0, END]]
    assert data.fingerprint() == data.take(np.arange(10)[::-1]).fingerprint()
    assert len(plan_tokens(loaded, str(lines), None, 0).tokens(lambda count: None)) == 10
    # A checkpoint without text tokenizer can encode images, but can't be trained on the shards.
    bare = checkpoint.Loaded(loaded.model, tokenizer)
    assert plan_encoding(bare, str(lines), None, 0, EncodeOptions(shard_size=6)).key() == job.key()
    with pytest.raises(FlasharError, match="no text tokenizer"):
        plan_tokens(bare, str(lines), None, 0)
