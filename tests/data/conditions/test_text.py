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
from flashar_cli.grid import Grid
from flashar_cli.machine.world import World
from flashar_cli.tokenizers import build_tokenizer
from tests.data.images import captioned_images
from tests.tiny_models import build_model, random_config

CPU, GRID = torch.device("cpu"), Grid(3, 5)
BEGIN, END, PAD = 60, 61, 63
PREFIX = TextPrefix(
    vocab_size=64, template="<{prompt}>", begin=(BEGIN,), end=(END,), pad_id=PAD, kept=(BEGIN, END), max_length=12
)


class Letters:
    """A text tokenizer: ``a`` is 1, ``z`` 26, ``0`` 48, ``9`` 57, anything else 0."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 if "a" <= letter <= "z" else ord(letter) * letter.isdigit() for letter in text]


KIND = TextConditions(PREFIX, GRID, text_tokenizer=Letters())


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
        ({"cond": [[1], [2], [3]], "uncond": [[1], [2]]}, "3 rows in cond and 2 in uncond"),
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
        TextConditions(PREFIX, GRID).parse(Given(prompts=["a"]), CPU)


def test_captions_of_data_are_cut_to_fit():
    subjects = KIND.read(["ab", "abcdefghijkl", ""], [], Path("shards"))
    assert subjects.labels is None and subjects.names() == ["ab", "abcdefghijkl", ""]
    conditions = subjects.conditions()
    assert rows(conditions, "ids")[1] == [BEGIN, 0, *range(1, 9), 0, END]  # the template is whole
    assert rows(conditions, "mask")[2] == [False] * 8 + [True] * 4
    short = subjects.take(np.array([2, 0])).conditions()
    assert rows(short, "ids") == [[PAD, PAD, BEGIN, 0, 0, END], [BEGIN, 0, 1, 2, 0, END]]
    wide = subjects.of_one_shape().take(np.array([2, 0])).conditions()
    assert rows(wide, "ids") == [[PAD] * 6 + row for row in rows(short, "ids")]
    assert rows(wide, "mask") == [[False] * 6 + row for row in rows(short, "mask")]
    shown, names = KIND.examples(subjects, 2)
    assert len(shown) == 2 and names == ["ab", "abcdefghijkl"]
    narrow = TextConditions(PREFIX.model_copy(update={"max_length": 3}), GRID, text_tokenizer=Letters())
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
    data = read_shards(out, job.encoder.grid, 32, None, conditions_of(config, Letters()))
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


TEMPLATE = "do {prompt} on{height}by{width}"
WITH_UNCOND = TextPrefix(
    vocab_size=64, template=TEMPLATE, uncond_template="no{height}by{width}", pad_id=PAD, max_length=40, train_length=20
)
TEMPLATED = TextConditions(WITH_UNCOND, GRID, text_tokenizer=Letters())


def unpadded(conditions, part="") -> list[list[int]]:
    """The ids of each row under its mask; the rest must be padding."""
    ids, mask = conditions.tensors[f"{part}ids"], conditions.tensors[f"{part}mask"]
    assert (ids[~mask] == PAD).all() and mask[:, -1].all() and (mask[:, 1:] >= mask[:, :-1]).all()
    return [row[valid].tolist() for row, valid in zip(ids, mask, strict=True)]


def letters(*texts: str) -> list[list[int]]:
    return [Letters().encode(text) for text in texts]


def test_templates_hold_the_grid_and_an_unconditional_text():
    prompts = ["ab", "{height}{width}{prompt}"]  # which stay as they are
    conditions, _ = TEMPLATED.parse(Given(prompts=prompts), CPU)
    assert unpadded(conditions) == letters("do ab on3by5", "do {height}{width}{prompt} on3by5")
    assert unpadded(conditions, "uncond_") == letters("no3by5", "no3by5")
    config = random_config(branch=False).model_copy(update={"prefix": WITH_UNCOND})
    other = conditions_of(config, Letters(), Grid(12, 7)).parse(Given(prompts=["ab"]), CPU)[0]
    assert len(unpadded(other)[0]) == len("do ab on12by7")
    own = conditions_of(config, Letters()).parse(Given(prompts=["ab"]), CPU)[0]
    assert unpadded(own) == letters("do ab on4by4")
    build_model(config).prefix.check(conditions)


@pytest.mark.parametrize("kind", (KIND, TEMPLATED))
def test_negative_prompts_stand_in_the_template_of_prompts(kind):
    def filled(*prompts: str) -> list[list[int]]:
        return unpadded(kind.parse(Given(prompts=list(prompts)), CPU)[0])

    for negative, expected in ((["z"], ["z", "z"]), (["z", "yyyy"], ["z", "yyyy"]), ([""], ["", ""])):
        conditions, names = kind.parse(Given(prompts=["ab", "c"], negative_prompts=negative), CPU)
        assert names == ["ab", "c"] and unpadded(conditions) == filled("ab", "c")
        assert unpadded(conditions, "uncond_") == filled(*expected)
    with pytest.raises(FlasharError, match="2 negative prompts for 3 prompts; expected one, or as many"):
        kind.parse(Given(prompts=["a", "b", "c"], negative_prompts=["d", "e"]), CPU)


def test_unconditional_ids_from_a_file_or_the_template(tmp_path):
    def of(kind, document):
        conditions, _ = kind.parse(Given(prompt_tokens=file_of(tmp_path, document)), CPU)
        assert unpadded(conditions) == document["cond"]
        return unpadded(conditions, "uncond_")

    bare = TextConditions(WITH_UNCOND, GRID)
    for kind in (TEMPLATED, bare):
        assert of(kind, {"cond": [[1], [2, 3]], "uncond": [[4, 5, 6]]}) == [[4, 5, 6]] * 2
        assert of(kind, {"cond": [[1], [2, 3]], "uncond": [[4], [5]]}) == [[4], [5]]
    assert of(TEMPLATED, {"cond": [[1], [2, 3]]}) == letters("no3by5", "no3by5")
    with pytest.raises(FlasharError, match=r'has no uncond, and .* no text tokenizer to make it; add "uncond"'):
        of(bare, {"cond": [[1]]})
    given = Given(prompt_tokens=file_of(tmp_path, {"cond": [[1]]}), negative_prompts=["a"])
    with pytest.raises(FlasharError, match="--negative-prompt: the file of --prompt-tokens says by uncond"):
        TEMPLATED.parse(given, CPU)


def test_captions_are_cut_to_the_training_length():
    subjects = TEMPLATED.read(["abcdefghijklmnop", "a" * 100_000, "z"], [], Path("shards"))
    conditions = subjects.take(np.array([2, 0, 1])).conditions()
    assert unpadded(conditions) == letters("do z on3by5", "do abcdefghij on3by5", "do aaaaaaaaaa on3by5")
    assert unpadded(conditions, "uncond_") == letters(*["no3by5"] * 3)
    # Not those of a person, which only the model's length bounds.
    assert len(unpadded(TEMPLATED.parse(Given(prompts=["a" * 30]), CPU)[0])[0]) == 40
    with pytest.raises(ValueError, match="train_length 41 is more than max_length 40"):
        TextPrefix(**WITH_UNCOND.model_dump() | {"train_length": 41})


@pytest.mark.parametrize(
    ("prompt", "words"),
    (
        ("a" * 31, "a prompt has 41 tokens; this model takes 1 to 40"),
        ("a" * 70_000, "a prompt has 70000 characters; expected at most 65536"),
        ("caf\udce9", "is no Unicode text"),
    ),
)
def test_prompts_that_cannot_be_read_are_one_line(prompt, words):
    for given in (Given(prompts=["a", prompt]), Given(prompts=["a"], negative_prompts=[prompt])):
        with pytest.raises(FlasharError, match=words) as error:
            TEMPLATED.parse(given, CPU)
        assert "\n" not in str(error.value)


def test_a_prompt_without_tokens_is_refused():
    bare = TextConditions(TextPrefix(vocab_size=64), GRID, text_tokenizer=Letters())
    with pytest.raises(FlasharError, match="a prompt has 0 tokens; this model takes 1 to 512"):
        bare.parse(Given(prompts=["abc", ""]), CPU)
