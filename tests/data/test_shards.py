"""Token shards: a round trip is the identity, and errors name missing and changed files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flashar_cli.config import CaptionPrefix, ClassPrefix
from flashar_cli.data.conditions.by_class import ClassConditions
from flashar_cli.data.conditions.caption import CaptionConditions
from flashar_cli.data.shards import file_sha256, read_shards, shard_bytes
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

GRID = Grid(2, 3)
CLASSES = ClassConditions(ClassPrefix(num_classes=5), GRID)
TOKENIZER = "ab" * 32


def write(folder, num_views=1, vocab_size=32):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (30, num_views, 2, 3))
    shards = []
    for index in range(3):
        rows = range(index * 12, min(30, index * 12 + 12))
        content = shard_bytes(tokens[rows], [f"p{k}" for k in rows], [k % 5 for k in rows], False, vocab_size)
        path = folder / f"codes-{index}.parquet"
        path.write_bytes(content)
        shards.append({"name": path.name, "sha256": file_sha256(path), "rows": len(rows) * num_views})
    manifest = {
        "format_version": 1,
        "grid": [2, 3],
        "vocab_size": vocab_size,
        "tokenizer_sha256": TOKENIZER,
        "source_fingerprint": "made up",
        "subset": {"size": 30, "seed": None, "ids_sha256": "cd" * 32},
        "augmentation": {"name": "center", "views": num_views},
        "captions": None,
        "dtype": "float32",
        "batch_size": 4,
        "shard_size": 12,
        "source": "images",
        "counts": {"pictures": 30, "views": 30 * num_views, "bad": 0},
        "bad": [],
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return tokens


@pytest.mark.parametrize("num_views", (1, 10))
@pytest.mark.parametrize(("vocab_size", "dtype"), ((32, np.uint16), (65_536, np.uint16), (65_537, np.uint32)))
def test_round_trip(tmp_path, num_views, vocab_size, dtype):
    tokens = write(tmp_path, num_views, vocab_size)
    back = read_shards(tmp_path, GRID, vocab_size, TOKENIZER, CLASSES)
    assert back.tokens.dtype == dtype and np.array_equal(back.tokens, tokens)
    assert back.ids.tolist() == [f"p{k}" for k in range(30)]
    assert back.subjects.labels.tolist() == [k % 5 for k in range(30)]
    for wrong, words in (
        ((Grid(3, 2), vocab_size, TOKENIZER, CLASSES), "grid 2x3"),
        ((GRID, 16, TOKENIZER, CLASSES), "this model's are 0..15"),
        ((GRID, vocab_size, "other", CLASSES), "another tokenizer"),
        ((GRID, vocab_size, TOKENIZER, CaptionConditions(CaptionPrefix(feature_dim=8), GRID)), "no column caption"),
    ):
        with pytest.raises(FlasharError, match=words):
            read_shards(tmp_path, *wrong)


def test_missing_and_changed_shards_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "codes-1.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FlasharError, match=r"codes-1.parquet is corrupted"):
        read_shards(tmp_path, GRID, 32, TOKENIZER, CLASSES)
    path.unlink()
    with pytest.raises(FlasharError, match=r"codes-1.parquet is missing"):
        read_shards(tmp_path, GRID, 32, TOKENIZER, CLASSES)


def test_manifests_without_version_and_of_other_versions(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens = np.arange(12).reshape(2, 6)
    table = pa.table({"codes": list(tokens.astype(np.uint32)), "label": [1, 2], "id": ["a", "b"]})
    pq.write_table(table, tmp_path / "codes-00000.parquet")
    old = {"grid": [2, 3], "tokenizer_sha256": None, "num_images": 2, "files": ["codes-00000.parquet"]}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    back = read_shards(tmp_path, GRID, 32, TOKENIZER, CLASSES)
    assert back.tokens.reshape(2, 6).tolist() == tokens.tolist() and back.subjects.labels.tolist() == [1, 2]
    (tmp_path / "codes-00000.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(FlasharError, match="cannot be read"):
        read_shards(tmp_path, GRID, 32, TOKENIZER, CLASSES)
    for text in ("{}", "[1]", "no json", '{"format_version": 9}', '{"grid": [1, 2], "files": []}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(FlasharError, match="manifest"):
            read_shards(tmp_path, Grid(1, 2), 32, TOKENIZER, CLASSES)


def test_views_that_are_not_whole_are_refused(tmp_path):
    import pyarrow.parquet as pq

    write(tmp_path, num_views=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    path = tmp_path / "codes-2.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    manifest["shards"][2]["sha256"] = file_sha256(path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FlasharError, match="views"):
        read_shards(tmp_path, GRID, 32, TOKENIZER, CLASSES)
