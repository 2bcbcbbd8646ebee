"""Class labels on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flashar_cli.config import ClassPrefix
from flashar_cli.data.conditions import Given
from flashar_cli.data.conditions.by_class import ClassConditions, Labels, parse_labels
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

CPU = torch.device("cpu")
GRID = Grid(4, 4)
NAMES = ("circle", "square", "star")


def test_parse_labels():
    assert parse_labels("2,0-1,star", 3, NAMES) == [2, 0, 1, 2]
    assert parse_labels(None, 40, None) == list(range(16))
    with pytest.raises(FlasharError, match="did you mean square"):
        parse_labels("squar", 3, NAMES)


def test_conditions_and_their_names():
    conditions, names = ClassConditions(ClassPrefix(num_classes=3), GRID, NAMES).parse(Given(labels="2,circle"), CPU)
    assert conditions.tensors["labels"].tolist() == [2, 0] and names == ["star", "circle"]
    unnamed = ClassConditions(ClassPrefix(num_classes=3), GRID)
    assert unnamed.parse(Given(), CPU)[1] == ["class 0", "class 1", "class 2"]
    path = Path("x")
    for given in (Given(prompts=["a"]), Given("1", caption_features=path), Given("1", prompt_tokens=path)):
        with pytest.raises(FlasharError, match="class-conditional; pass --labels, not captions"):
            unnamed.parse(given, CPU)
    with pytest.raises(FlasharError, match="--negative-prompt: this model is class-conditional"):
        unnamed.parse(Given("1", negative_prompts=["a"]), CPU)


def test_labels_of_data_and_examples():
    kind = ClassConditions(ClassPrefix(num_classes=50), GRID)
    subjects = kind.read([3, 49, 0], [], Path("shards"))
    assert subjects.labels is not None and subjects.labels.dtype == np.int64
    assert subjects.take(slice(1, 3)).conditions().tensors["labels"].tolist() == [49, 0]
    kind.check_labels(subjects.labels, "here")
    for labels in ([0, 50], [-1, 3]):
        with pytest.raises(FlasharError, match=r"--data here has labels .*; this model knows 0..49"):
            kind.check_labels(np.array(labels), "here")
    conditions, names = kind.examples(Labels(np.zeros(0, np.int64)), 42)
    assert conditions.tensors["labels"].tolist() == [*range(40), 0, 1] and names[41] == "class 1"
