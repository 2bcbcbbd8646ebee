"""The JSON files beside token shards: the plan of an encoding, a record of each finished shard, and the manifest.

A manifest without ``format_version`` is older or made by hand: its shards hold one view an image, and ``files`` lists
them without checksums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flashar_cli.config import Config, validated
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import plain_name, read_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
FileName = Annotated[str, AfterValidator(plain_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(Config):
    """A file in the folder."""

    name: FileName
    sha256: Sha256


class ShardEntry(FileEntry):
    """A Parquet file of ``rows`` views, and the file of its caption features where the model reads them."""

    rows: Count
    captions: FileEntry | None = None

    @property
    def files(self) -> list[FileEntry]:
        return [self] if self.captions is None else [self, self.captions]


class BadEntry(Config):
    """An image that was left out, and why."""

    id: str
    reason: str


class ShardRecord(ShardEntry):
    """A finished shard and its bad images."""

    bad: tuple[BadEntry, ...]

    def entry(self) -> ShardEntry:
        """The shard's entry in the manifest."""
        return ShardEntry.model_validate(self.model_dump(exclude={"bad"}))


class ChosenImages(Config):
    """Which images of the source were encoded; ``seed`` chose them, None where all were."""

    size: Positive
    seed: Count | None
    ids_sha256: Sha256


class AugmentationEntry(Config):
    """How views were cropped; ``crop_ratio`` only for ten-crop."""

    name: str
    crop_ratio: Annotated[float, Field(ge=1, le=4)] | None = None
    views: Positive


class CaptionEntry(Config):
    """What made the caption features, and their shape."""

    text_encoder: str
    feature_dim: Positive
    length: Positive


class EncodeSettings(Config):
    """The plan: everything that determines the bytes of the shards. ``tokenizer_sha256`` and ``dtype`` are None where
    the source holds tokens, as nothing tells their tokenizer.
    """

    format_version: Literal[1] = 1
    grid: tuple[Positive, Positive]
    vocab_size: Positive
    tokenizer_sha256: Sha256 | None
    source_fingerprint: str
    subset: ChosenImages
    augmentation: AugmentationEntry
    captions: CaptionEntry | None
    dtype: str | None
    batch_size: Positive
    shard_size: Positive

    def document(self) -> dict[str, Any]:
        """The plan in JSON. It must not change: its hash is the name of cached tokens."""
        return self.model_dump(mode="json", exclude_unset=True)


class Counts(Config):
    """Numbers of all shards together."""

    pictures: Count
    views: Count
    bad: Count


class Manifest(EncodeSettings):
    """``manifest.json``, written when all shards are finished."""

    source: str
    counts: Counts
    bad: tuple[BadEntry, ...]
    shards: tuple[ShardEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_counts(self) -> Manifest:
        counts, listed = self.counts, len(self.bad)
        if len(self.shards) != -(-self.subset.size // self.shard_size):
            raise ValueError(f"{len(self.shards)} shards of {self.shard_size} for {self.subset.size} images")
        if counts.bad != listed or counts.pictures + listed != self.subset.size:
            raise ValueError(f"counts.pictures and counts.bad don't add up to {self.subset.size}, {listed} of them bad")
        if not counts.views == sum(shard.rows for shard in self.shards) == counts.pictures * self.augmentation.views:
            raise ValueError(f"counts.views is {counts.views}; the shards have another number of rows")
        return self


class OldManifest(Config, extra="ignore"):
    """A manifest without ``format_version``."""

    grid: tuple[Positive, Positive]
    tokenizer_sha256: str | None = None
    files: tuple[FileName, ...] = Field(min_length=1)


def read_manifest(directory: Path) -> Manifest | OldManifest:
    """The manifest of a folder. Raises FlasharError where it is invalid or of another version."""
    path = directory / MANIFEST
    document = read_json(path)
    if not isinstance(document, dict):
        raise FlasharError(f"{path} is not a manifest of token shards: it holds no object; encode again")
    version = document.get("format_version")
    if version is None:
        return validated(document, OldManifest, str(path), "a manifest of token shards")
    if version != FORMAT_VERSION:
        raise FlasharError(f"{path} has format_version {version!r}; this flashar reads {FORMAT_VERSION}; encode again")
    return validated(document, Manifest, str(path), "a manifest of token shards")
