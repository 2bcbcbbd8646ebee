"""What a family is: how its published files are named, recognised and translated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flashar_cli import __version__
from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    CaptionPrefix,
    ClassPrefix,
    GenerationDefaults,
    GridConfig,
    ModelConfig,
    Provenance,
    VQConfig,
)
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

BLOCK_INDEX = r"(0|[1-9][0-9]{0,5})"  # as it is written: layers.05 is no second name of layers.5


@dataclass(frozen=True)
class HubFile:
    """A published file on the Hugging Face Hub."""

    repo: str
    file: str

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}"


@dataclass(frozen=True)
class Preset:
    """A published model: its shape, and where its files are."""

    name: str
    family: str
    backbone: BackboneConfig
    prefix: ClassPrefix | CaptionPrefix
    grid: Grid
    tokenizer: VQConfig
    generation: GenerationDefaults
    weights: HubFile
    tokenizer_weights: HubFile
    branch: BranchConfig | None = None

    def config(self) -> ModelConfig:
        """What the model is, without its weights at hand."""
        return ModelConfig(
            family=self.family,
            backbone=self.backbone,
            prefix=self.prefix,
            grid=GridConfig(height=self.grid.height, width=self.grid.width),
            branch=self.branch,
            tokenizer=self.tokenizer,
            generation=self.generation,
            provenance=Provenance(tool_version=__version__, source=str(self.weights)),
        )


@dataclass(frozen=True)
class Family:
    """One table, ``keys``, used in both directions: (upstream name, our name). ``{}`` stands for a block index;
    upstream numbers the blocks of the branch after those of the backbone. ``dropped_keys`` hold nothing but what the
    config says already.
    """

    name: str
    presets: tuple[Preset, ...]
    keys: tuple[tuple[str, str], ...]
    dropped_keys: tuple[str, ...] = ()

    def to_ours(self, upstream: str, num_layers: int) -> str | None:
        """Our name of an upstream key; None where it has no place in this family."""
        for theirs, ours in self.keys:
            match = re.fullmatch(re.escape(theirs).replace(r"\{\}", BLOCK_INDEX), upstream)
            if match is None:
                continue
            if not match.groups():
                return ours
            index = int(match[1])
            if ours.startswith("branch.") == (index >= num_layers):
                return ours.format(index - num_layers if index >= num_layers else index)
        return None

    def to_upstream(self, ours: str, num_layers: int) -> str:
        """Upstream's name of one of our keys. Raises FlasharError where the family has none."""
        for theirs, pattern in self.keys:
            match = re.fullmatch(re.escape(pattern).replace(r"\{\}", BLOCK_INDEX), ours)
            if match is not None:
                offset = num_layers if pattern.startswith("branch.") else 0
                return theirs.format(int(match[1]) + offset) if match.groups() else theirs
        raise FlasharError(f"'{ours}' has no name in the upstream layout of family {self.name}")
