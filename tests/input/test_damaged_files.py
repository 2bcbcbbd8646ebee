"""Binary files with bytes changed, cut out or doubled, and such as were made to do harm: read, or refused in a line."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.convert import convert
from flashar_cli.config import ClassPrefix
from flashar_cli.data.augment import Augmentation
from flashar_cli.data.conditions.by_class import ClassConditions
from flashar_cli.data.conditions.caption import read_caption_features
from flashar_cli.data.conditions.features import feature_bytes, open_features
from flashar_cli.data.decode import decode
from flashar_cli.data.encode_shard import prepared_or_bad
from flashar_cli.data.encoders import StoredTokens
from flashar_cli.data.shards import read_shards, shard_bytes
from flashar_cli.data.sources.base import Fetch, Wanted
from flashar_cli.data.sources.open import open_images
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.text import open_text_tokenizer
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.data.images import encoded, good_kinds, quarters
from tests.input.files import DEEP, accepted, damaged, quick, thorough
from tests.parity.upstream_files import upstream_state
from tests.tiny_models import TINY_VQ, build_model, random_config
from tests.tokenizers.text.vocabularies import SIZE, write_vocabulary

OPTIONS = ConvertOptions(num_heads=4, grid=Grid(3, 5))
CLASSES = Wanted(4)
CLASS_CONDITIONS = ClassConditions(ClassPrefix(num_classes=4), Grid(4, 4))


@dataclass(frozen=True)
class File:
    """A good one, where it belongs, and what reads it."""

    content: bytes
    path: Path
    read: Callable[[], object]


def pickled(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def in_tar(samples: list[tuple[tarfile.TarInfo | str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, content in samples:
            header = tarfile.TarInfo(member) if isinstance(member, str) else member
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def in_parquet(columns: dict[str, Any], **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue().to_pybytes()


def views_or_bad(augmentation: Augmentation, fetch: Fetch) -> object:
    return prepared_or_bad(lambda raw: augmentation.views(decode(raw), 8, 8), fetch)


def every_image(path: Path) -> None:
    source = open_images(str(path), CLASSES)
    for fetch in source.images(np.arange(len(source.ids))):
        views_or_bad(Augmentation("center"), fetch)


def upstream_pickle(folder: Path) -> File:
    path = folder / "w.pt"
    return File(pickled({"model": upstream_state()}), path, lambda: convert(path, OPTIONS, None))


def upstream_safetensors(folder: Path) -> File:
    path = folder / "w.safetensors"
    return File(save(upstream_state()), path, lambda: convert(path, OPTIONS, None))


def upstream_tokenizer(folder: Path) -> File:
    model, path = folder / "w.pt", folder / "vq.pt"
    torch.save(upstream_state(vocab_size=32), model)
    return File(pickled(VQTokenizer(TINY_VQ).state_dict()), path, lambda: convert(model, OPTIONS, path))


def weights(folder: Path) -> File:
    config = random_config(tokenizer=False)
    checkpoint.save(folder / "model", config, build_model(config).state_dict(), None)
    path = folder / "model" / checkpoint.MODEL_FILE
    return File(path.read_bytes(), path, lambda: checkpoint.load(folder / "model", torch.device("cpu")))


def tar_shard(folder: Path) -> File:
    samples = [(f"{'long/' * 40}{k}.{end}", body) for k in range(3) for end, body in (("png", IMAGE), ("cls", b"1"))]
    return File(in_tar(samples), folder / "a.tar", lambda: every_image(folder / "a.tar"))


def tar_of_tokens(folder: Path) -> File:
    grid, path = pickled(torch.arange(6).reshape(2, 3)), folder / "a.tar"

    def read() -> None:
        source = open_images(str(path), Wanted(None))
        for fetch in source.images(np.arange(len(source.ids))):
            prepared_or_bad(StoredTokens(Grid(2, 3), 6).prepare, fetch)

    samples = [(f"{k}.{end}", body) for k in range(2) for end, body in (("pt", grid), ("txt", b"words"))]
    return File(in_tar(samples), path, read)


def parquet_images(folder: Path) -> File:
    content = in_parquet({"image": [{"bytes": IMAGE, "path": None}] * 4, "label": [0, 1, 2, 3]}, row_group_size=2)
    return File(content, folder / "a.parquet", lambda: every_image(folder / "a.parquet"))


def code_shard(folder: Path) -> File:
    tokens = np.arange(24).reshape(4, 1, 2, 3)
    (folder / "manifest.json").write_text(json.dumps({"grid": [2, 3], "files": ["tokens.parquet"]}))
    content = shard_bytes(tokens, [f"p{k}" for k in range(4)], [0, 1, 2, 3], False, 32)
    return File(content, folder / "tokens.parquet", lambda: read_shards(folder, Grid(2, 3), 32, None, CLASS_CONDITIONS))


def caption_shard(folder: Path) -> File:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    path, texts = folder / "captions.safetensors", np.array(["a", "b"], dtype=object)

    def read() -> None:
        open_features([path], texts, 3, 4).conditions()

    return File(feature_bytes(torch.randn(2, 3, 4), mask), path, read)


def caption_features(folder: Path) -> File:
    path = folder / "f.safetensors"
    content = save({"caption_features": torch.randn(2, 3, 4), "caption_mask": torch.ones(2, 3)})
    return File(content, path, lambda: read_caption_features(path))


def vocabulary(folder: Path, which: int = 0) -> File:
    files = write_vocabulary(folder)
    return File(
        files[which].read_bytes(), files[which], lambda: open_text_tokenizer(files, SIZE).encode("a blue star, <|")
    )


IMAGE = encoded(quarters(16, 16))
FILES = {
    "upstream pickle": upstream_pickle,
    "upstream safetensors": upstream_safetensors,
    "upstream tokenizer": upstream_tokenizer,
    "weights": weights,
    "tar shard": tar_shard,
    "tar of tokens": tar_of_tokens,
    "Parquet images": parquet_images,
    "token shard": code_shard,
    "caption shard": caption_shard,
    "caption features": caption_features,
    "vocabulary": vocabulary,
    "special tokens": partial(vocabulary, which=1),
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory) -> File:
    return FILES[request.param](tmp_path_factory.mktemp("file"))


def check_damaged(file, drawn):
    file.path.write_bytes(drawn.draw(damaged(file.content)))
    accepted(file.read)


test_damaged = quick(st.data(), 15)(check_damaged)
test_damaged_thoroughly = thorough(st.data(), 1500)(check_damaged)


def test_good_files_are_accepted(file):
    file.path.write_bytes(file.content)
    assert accepted(file.read)


def check_image(drawn):
    kinds = {**good_kinds(), "plain.jpg": encoded(quarters(), "JPEG"), "plain.bmp": encoded(quarters(), "BMP")}
    kinds["plain.tif"] = encoded(quarters(), "TIFF")
    content = drawn.draw(damaged(kinds[drawn.draw(st.sampled_from(sorted(kinds)))]))
    views_or_bad(Augmentation("ten-crop"), lambda: content)


test_damaged_images = quick(st.data(), 40)(check_image)
test_damaged_images_thoroughly = thorough(st.data(), 3000)(check_image)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header that claims any size, also below zero."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    field = size.to_bytes(12, "big", signed=True)
    block[124:136] = bytes([field[0] | 0x80]) + field[1:] if size >= 0 else b"\xff" + field[1:]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "content",
    (
        header("a.png", -512) + IMAGE.ljust(1024, b"\0"),
        header("a.cls", 1) + b"1".ljust(512, b"\0") + header("a.png", -512),  # the next header is this one again
        header("a.png", -(2**40)),
        header("a.png", 2**60) + IMAGE,
        header("a.png", len(IMAGE)) + IMAGE[:40],
        header("././@LongLink", 2**60, tarfile.GNUTYPE_LONGNAME),
        header("././@LongLink", -1, tarfile.GNUTYPE_LONGNAME),
        header("././@LongLink", 0, tarfile.GNUTYPE_LONGNAME) * 5000,
        header("pax", 2**50, tarfile.XHDTYPE),
        header("pax", -5, tarfile.XHDTYPE),
        header("odd", -512, b"Z") * 3,
        header("a.png", 2**30, tarfile.GNUTYPE_SPARSE) + IMAGE,
        in_tar([("a.png", IMAGE), ("a.cls", b"9" * 5000)]),
        in_tar([("a.png", IMAGE), ("a.cls", b"\xff\xfe1\0")]),
        in_tar([("a.png", IMAGE), ("a.json", b'{"label": ' + b"[" * 100_000)]),
        in_tar([("a.png", IMAGE), ("a.json", b"[1]")]),
        in_tar([("a.png", IMAGE), ("a.cls", b"1"), ("b.png", IMAGE), ("b.cls", b"1")] * 2),
        in_tar([("a\nb.png", IMAGE), ("a\nb.cls", b"1")]),
        in_tar([("a" * 5000 + ".png", IMAGE), ("a" * 5000 + ".cls", b"1")]),
    ),
    ids=range(19),
)
def test_tar_files_made_to_do_harm(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    assert not accepted(lambda: every_image(tmp_path / "a.tar"), 5)


@pytest.mark.parametrize("size", (2**60, 2**33, -600))
@pytest.mark.parametrize("kind", (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE))
def test_large_headers_are_not_read(tmp_path, size, kind):
    with open(tmp_path / "a.tar", "wb") as content:
        content.write(header("long", size, kind))
        content.truncate(2**34)
    with pytest.raises(FlasharError, match="a header of -?[0-9]+ bytes"):
        every_image(tmp_path / "a.tar")


def test_links_and_devices_in_tar_files_are_no_images(tmp_path):
    def member(name: str, kind: bytes) -> tarfile.TarInfo:
        found = tarfile.TarInfo(name)
        found.type, found.linkname = kind, "/etc/passwd"
        return found

    others = [(member(f"a{kind.decode()}.png", kind), b"") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)]
    others += [(member(f"b{kind.decode()}.png", kind), b"") for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE)]
    good = [("../../c.png", IMAGE), ("../../c.cls", b"2")]
    (tmp_path / "a.tar").write_bytes(in_tar(others + good))
    source = open_images(str(tmp_path / "a.tar"), CLASSES)
    assert source.ids.tolist() == ["a.tar/../../c"]
    assert np.array_equal(decode(next(iter(source.images(np.array([0]))))()), quarters(16, 16))


def columns_of_images(**changes: Any) -> dict[str, Any]:
    return {"image": [{"bytes": IMAGE, "path": None}] * 2, "label": [0, 1]} | changes


@pytest.mark.parametrize(
    "columns",
    (
        columns_of_images(label=[0, None]),
        columns_of_images(label=[0.0, 1.0]),
        columns_of_images(label=[True, False]),
        columns_of_images(label=[[0], [1]]),
        columns_of_images(label=[{"a": 0}, {"a": 1}]),
        columns_of_images(label=np.array([2**63, 0], np.uint64)),
        columns_of_images(label=["9" * 5000, "1"]),
        columns_of_images(label=["no class", "1"]),
        columns_of_images(label=[None, None]),
        {"image": [1, 2]},
        {"label": [1, 2]},
        {"image": [], "label": []},
    ),
    ids=range(12),
)
def test_parquet_tables_that_are_no_labelled_images(tmp_path, columns):
    (tmp_path / "a.parquet").write_bytes(in_parquet(columns))
    assert not accepted(lambda: every_image(tmp_path / "a.parquet"))


@pytest.mark.parametrize("image", ([None, None], [1, 2], [{"bytes": None, "path": 3}] * 2, ["a", "b"], [[1], [2]]))
def test_cells_without_an_image_are_bad_images(tmp_path, image):
    (tmp_path / "a.parquet").write_bytes(in_parquet(columns_of_images(image=image)))
    source = open_images(str(tmp_path / "a.parquet"), CLASSES)
    found = [views_or_bad(Augmentation(), fetch) for fetch in source.images(np.arange(2))]
    assert all(isinstance(one, FlasharError) for one in found)


def test_images_that_parquet_files_name_are_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    image = [{"bytes": None, "path": str(tmp_path / "pipe.png")}] * 2
    (tmp_path / "a.parquet").write_bytes(in_parquet(columns_of_images(image=image)))
    assert accepted(lambda: every_image(tmp_path / "a.parquet"), 5)


def test_a_folder_that_is_named_like_a_file(tmp_path):
    (tmp_path / "x.parquet").mkdir()
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(IMAGE)
    assert open_images(str(tmp_path), CLASSES).ids.tolist() == ["0/a.png"]


def columns_of_tokens(**changes: Any) -> dict[str, Any]:
    return {"codes": [list(range(6))] * 2, "label": [0, 1], "id": ["a", "b"]} | changes


@pytest.mark.parametrize(
    "columns",
    (
        columns_of_tokens(codes=[list(range(6)), list(range(5))]),
        columns_of_tokens(codes=[list(range(6)), None]),
        columns_of_tokens(codes=[[*range(5), None]] * 2),
        columns_of_tokens(codes=[[[1] * 6]] * 2),
        columns_of_tokens(codes=[[0.0] * 6] * 2),
        columns_of_tokens(codes=[["1"] * 6] * 2),
        columns_of_tokens(codes=[1, 2]),
        columns_of_tokens(codes=[[-1] * 6] * 2),
        columns_of_tokens(codes=[[32] * 6] * 2),
        columns_of_tokens(codes=list(np.full((2, 6), 2**63, np.uint64))),
        columns_of_tokens(label=[None, 1]),
        columns_of_tokens(label=[0.5, 1]),
        columns_of_tokens(label=np.array([2**63, 1], np.uint64)),
        columns_of_tokens(id=[None, "b"]),
        columns_of_tokens(id=[1, 2]),
        columns_of_tokens(view=[0, 5]),
        columns_of_tokens(view=[-1, -1]),
        columns_of_tokens(view=["0", "1"]),
        columns_of_tokens(view=[None, 0]),
        {"codes": [list(range(6))] * 2, "label": [0, 1]},
        {"label": [0, 1], "id": ["a", "b"]},
    ),
    ids=range(21),
)
def test_parquet_tables_that_are_no_tokens(tmp_path, columns):
    file = code_shard(tmp_path)
    file.path.write_bytes(in_parquet(columns))
    assert not accepted(file.read)


def strange_tensors() -> dict[str, object]:
    good = torch.ones(32)
    return {
        "sparse": good.to_sparse(),
        "compressed sparse": torch.ones(4, 8).to_sparse_csr(),
        "nested": torch.nested.nested_tensor([good, good[:2]]),
        "jagged": torch.nested.nested_tensor([good, good[:2]], layout=torch.jagged),
        "quantised": torch.quantize_per_tensor(good, 0.1, 0, torch.qint8),
        "meta": torch.empty(32, device="meta"),
        "float8": good.to(torch.float8_e4m3fn),
        "complex": good.to(torch.complex64),
        "integer": good.to(torch.int32),
        "boolean": good > 0,
        "empty": torch.empty(0),
        "empty and wide": torch.empty(2**40, 0),
        "expanded": torch.ones(1).expand(10**6, 10**6),
        "expanded to shape": torch.ones(1).expand(32),
        "scalar": torch.tensor(1.0),
        "list": [1.0] * 32,
        "number": 1.0,
        "None": None,
        "text": "ones",
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ("norm.weight", "tok_embeddings.weight", "freqs_cis"))
@pytest.mark.parametrize("kind", strange_tensors())
def test_tensors_that_are_no_weights(tmp_path, kind, key):
    if key == "freqs_cis" and kind in ("float8", "complex", "integer", "boolean", "expanded to shape", "scalar"):
        pytest.skip("its shape is wrong, or it is dropped")
    torch.save({**upstream_state(), key: strange_tensors()[kind]}, tmp_path / "w.pt")
    with pytest.raises(FlasharError):
        convert(tmp_path / "w.pt", OPTIONS, None)


def test_tensors_with_attributes_are_tensors(tmp_path):
    state = upstream_state()
    state["norm.weight"].to = "no method"  # type: ignore[method-assign,assignment]
    state["output.weight"] = torch.nn.Parameter(state["output.weight"])  # type: ignore[assignment]
    torch.save(state, tmp_path / "w.pt")
    found = convert(tmp_path / "w.pt", OPTIONS, None).model_state
    tensors = [tensor.read() for tensor in found.values()]
    assert all(type(tensor) is torch.Tensor and tensor.to(torch.float64) is not None for tensor in tensors)


def named(*names: Any) -> dict[Any, Any]:
    state: dict[Any, Any] = upstream_state()
    return state | {name: torch.ones(32) for name in names}


def without(prefix: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in upstream_state().items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("state", "words"),
    (
        (named(1), "holds 1 beside its tensors"),
        (named(None, (1, 2), b"x"), "beside its tensors"),
        (named("layers.01.ffn_norm.weight"), "unexpected layers.01.ffn_norm.weight"),
        (named("layers.-1.ffn_norm.weight"), "unexpected layers.-1.ffn_norm.weight"),
        (named("layers.1000000000.ffn_norm.weight"), "unexpected layers.1000000000"),
        (named("layers.99999.ffn_norm.weight"), "up to layers.99999 and no layers.3"),
        (named("layers." + "9" * 5000 + ".ffn_norm.weight"), "unexpected layers.999"),
        (named("layers.٣.ffn_norm.weight"), "unexpected layers.٣"),
        (without("layers.1."), "up to layers.2 and no layers.1"),
        (named("\ud800"), "unexpected"),
        ({"model": {"model": upstream_state()}}, "holds no tensors"),
        ([upstream_state()], "holds no tensors"),
        (upstream_state() | {"layers.0.attention.wqkv.weight": torch.ones(96)}, "expected a matrix"),
        (upstream_state() | {"freqs_cis": torch.ones(16)}, "freqs_cis is"),
        (upstream_state() | {"freqs_cis": torch.ones(16, 10**6, 2)}, "heads"),
        (upstream_state() | {"tok_embeddings.weight": torch.ones(1, 32)}, "vocab_size"),
        (upstream_state() | {"cls_embedding.embedding_table.weight": torch.ones(1, 32)}, "num_classes"),
    ),
    ids=range(17),
)
def test_state_dicts_that_are_no_models(tmp_path, state, words):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(FlasharError, match=words):
        convert(tmp_path / "w.pt", OPTIONS, None)


def test_a_pickle_that_holds_itself(tmp_path):
    state: dict[str, Any] = {}
    state["model"] = state["model "] = state
    torch.save(state, tmp_path / "w.pt")
    assert not accepted(lambda: convert(tmp_path / "w.pt", OPTIONS, None))
    with (
        zipfile.ZipFile(io.BytesIO(pickled({"model": upstream_state()}))) as source,
        zipfile.ZipFile(tmp_path / "w.pt", "w") as target,
    ):
        for member in source.infolist():
            lists = b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."
            target.writestr(member.filename, lists if member.filename.endswith("data.pkl") else source.read(member))
    assert not accepted(lambda: convert(tmp_path / "w.pt", OPTIONS, None))


def test_a_compressed_pickle_is_refused_before_it_is_unpacked(tmp_path):
    with (
        zipfile.ZipFile(io.BytesIO(pickled({"a": torch.zeros(10**6)}))) as source,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert (tmp_path / "w.pt").stat().st_size < 50_000
    with pytest.raises(FlasharError, match="compressed archive"):
        convert(tmp_path / "w.pt", OPTIONS, None)


@pytest.mark.parametrize(
    "changes",
    (
        {"caption_features": torch.full((2, 3, 4), torch.nan)},
        {"caption_features": torch.ones(2, 3, 4, dtype=torch.int64)},
        {"caption_features": torch.ones(2, 3, 4).to(torch.float8_e4m3fn)},
        {"caption_features": torch.ones(0, 3, 4), "caption_mask": torch.ones(0, 3)},
        {"caption_features": torch.ones(2, 3, 0)},
        {"caption_mask": torch.ones(2, 4)},
        {"caption_mask": torch.full((2, 3), 0.5)},
        {"caption_mask": torch.full((2, 3), torch.nan)},
        {"caption_mask": torch.full((2, 3), -1)},
    ),
    ids=range(9),
)
def test_features_that_are_none(tmp_path, changes):
    good = {"caption_features": torch.ones(2, 3, 4), "caption_mask": torch.ones(2, 3)}
    save_file(good | changes, tmp_path / "f.safetensors")
    assert not accepted(lambda: read_caption_features(tmp_path / "f.safetensors"))


@pytest.mark.parametrize("lengths", ([-1, 4], [2**31 - 1, 1], [1, 1], [4, -1], [], [[1, 2]], [1.0, 2.0]))
def test_caption_lengths_that_do_not_fit(tmp_path, lengths):
    content = {"features": torch.ones(3, 4), "lengths": torch.tensor(lengths)}
    save_file(content, tmp_path / "c.safetensors")
    texts = np.array(["a", "b"], dtype=object)
    assert not accepted(lambda: open_features([tmp_path / "c.safetensors"], texts, 3, 4))
