"""What a family is: the only place that knows the names of its published files, and how they are recognised, read and
written. No torch here, so that `flashar ls` answers at once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from flashar_cli import __version__
from flashar_cli.config import (
    AnyTokenizerConfig,
    BackboneConfig,
    BranchConfig,
    BSQConfig,
    CaptionMemory,
    ClassPrefix,
    GridConfig,
    ModelConfig,
    MultiScaleVQConfig,
    NextScaleConfig,
    Prefix,
    Provenance,
    Pruning,
    RasterConfig,
    Sampling,
    ScaleTransformerConfig,
    SchedulesConfig,
    TokenizerConfig,
    default_gate_dim,
)
from flashar_cli.errors import FlasharError
from flashar_cli.families.keys import KeyTable
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from flashar_cli.files.lazy import Lazy

TOKENIZER = "tokenizer."  # our prefix for the names of an image tokenizer's tensors that are in the model's files


@dataclass(frozen=True)
class HubFiles:
    """Published files of one repository of the Hugging Face Hub, by name or by pattern."""

    repo: str
    files: tuple[str, ...]

    @property
    def single(self) -> str | None:
        """The file's name where there is only one; None where a directory with all of them is meant."""
        name = self.files[0]
        return None if len(self.files) > 1 or "*" in name else name

    @property
    def folder(self) -> str:
        """The folder of the repository that all are in."""
        return str(PurePosixPath(self.files[0]).parent)

    def __str__(self) -> str:
        return f"{self.repo}/{self.single or ('' if self.folder == '.' else self.folder)}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Facts(ABC):
    """What a model is, by kind. ``notes`` say which facts were assumed."""

    family: str
    grid: Grid
    generation: Sampling = field(default_factory=Sampling)
    notes: tuple[str, ...] = ()

    @abstractmethod
    def config_of(self, source: str) -> ModelConfig:
        """The config of this model, whose weights come from ``source``."""

    def check_tokenizer(self, tokenizer: Path, model: Path) -> None:  # noqa: B027 - some have nothing to compare
        """Raises FlasharError where the files of the image tokenizer and of the model have different tokens."""


@dataclass(frozen=True, kw_only=True)
class RasterFacts(Facts):
    """What a raster model is."""

    backbone: BackboneConfig
    prefix: Prefix
    tokenizer: TokenizerConfig | None
    branch: BranchConfig | None = None

    def check_tokenizer(self, tokenizer: Path, model: Path) -> None:
        if self.tokenizer is not None and self.tokenizer.codebook_size != self.backbone.vocab_size:
            raise FlasharError(
                f"{tokenizer} has {self.tokenizer.codebook_size} tokens, {model} predicts {self.backbone.vocab_size}; "
                "pass the tokenizer this model was trained with"
            )

    def config_of(self, source: str) -> RasterConfig:
        return RasterConfig(
            family=self.family,
            backbone=self.backbone,
            prefix=self.prefix,
            grid=GridConfig(height=self.grid.height, width=self.grid.width),
            branch=self.branch,
            tokenizer=self.tokenizer,
            generation=self.generation,
            provenance=Provenance(tool_version=__version__, source=source),
        )


@dataclass(frozen=True, kw_only=True)
class NextScaleFacts(Facts):
    """What a next-scale model is."""

    transformer: ScaleTransformerConfig
    prefix: ClassPrefix | CaptionMemory
    schedules: SchedulesConfig
    tokenizer: MultiScaleVQConfig | BSQConfig
    patch: int = 1
    fastvar: Pruning | None = None

    def config_of(self, source: str) -> NextScaleConfig:
        return NextScaleConfig(
            family=self.family,
            transformer=self.transformer,
            prefix=self.prefix,
            schedules=self.schedules,
            grid=GridConfig(height=self.grid.height, width=self.grid.width),
            patch=self.patch,
            tokenizer=self.tokenizer,
            fastvar=self.fastvar,
            generation=self.generation,
            provenance=Provenance(tool_version=__version__, source=source),
        )


FactsT = TypeVar("FactsT", bound=Facts)


@dataclass(frozen=True, kw_only=True)
class Preset(Generic[FactsT]):
    """A published model, and where its files are. ``tokenizer_weights`` is None where they are among ``weights``."""

    name: str
    facts: FactsT
    weights: HubFiles
    tokenizer_weights: HubFiles | None = None

    @property
    def family(self) -> str:
        return self.facts.family

    def config(self) -> ModelConfig:
        """What the model is, without its weights at hand."""
        return self.facts.config_of(str(self.weights))


@dataclass(frozen=True)
class ConvertOptions:
    """Facts that upstream files may lack. None: as the files say, as in a preset of the same shape, or the default."""

    family: str | None = None
    num_heads: int | None = None
    grid: Grid | None = None
    res: int | None = None
    branch_layer: int | None = None
    branch_depth: int | None = None
    norm_eps: float | None = None
    rope_base: float | None = None
    visual_token_offset: int | None = None
    eol_token_id: int | None = None
    scales: tuple[int, ...] | None = None

    def given(self) -> list[str]:
        """The options that were passed, as they are typed."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]

    def refuse_others(self, source: Source, needed: tuple[str, ...]) -> None:
        """Raises FlasharError for every option but the family and the ``needed`` ones, which the files may lack."""
        known = [f"--{name.replace('_', '-')}" for name in ("family", *needed)]
        others = [option for option in self.given() if option not in known]
        if others:
            raise FlasharError(f"{', '.join(others)}: {source.path} tells that or has no such thing; leave it out")


class Family(ABC):
    """Models whose files one publication lays out in the same way. A subclass is one module, registered in
    ``families/__init__.py``.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # what messages call its files
    hallmark: ClassVar[str]  # what such files must contain
    sign: ClassVar[str]  # what tells it from families of the same layout
    presets: ClassVar[tuple[Preset[Any], ...]] = ()
    keys: ClassVar[KeyTable]
    dropped: ClassVar[tuple[str, ...]] = ()  # names of tensors that nothing here needs, `*` for any part
    tokenizer_title: ClassVar[str | None] = None  # what messages call an image tokenizer in a separate file
    needed: ClassVar[tuple[str, ...]] = ()  # fields of ConvertOptions that its files may lack
    new_branch_depth: ClassVar[int] = 1  # blocks of a branch that is added without a word about it
    new_branch_sees_prefix: ClassVar[bool] = True
    text_tokenizer: ClassVar[tuple[str, ...]] = ()  # files of the source that are the text tokenizer

    @abstractmethod
    def recognises(self, source: Source) -> bool:
        """Whether these can be files of this family. If several families say so, the first in the registry wins."""

    @abstractmethod
    def read(self, source: Source, options: ConvertOptions, tokenizer: Any) -> Facts:
        """The facts in the files and the options. Raises FlasharError where these contradict each other or leave
        something open, pydantic's ValidationError where the facts describe no model.
        """

    def options(self, preset: Preset[Any]) -> ConvertOptions:
        """The facts of a preset that its files lack."""
        return ConvertOptions(family=self.name)

    def new_branch(
        self, backbone: BackboneConfig, layer: int | None = None, depth: int | None = None, gate: str = "hidden"
    ) -> BranchConfig:
        """The branch that a model without one is given. None: the depth that is usual in the family, and the layer
        L - depth.
        """
        if depth is None:
            depth = min(self.new_branch_depth, backbone.num_layers)
        return BranchConfig(
            layer=max(0, backbone.num_layers - depth) if layer is None else layer,
            depth=depth,
            sees_prefix=self.new_branch_sees_prefix,
            gate=gate,
            gate_dim=default_gate_dim(gate, backbone.dim, backbone.vocab_size),
        )

    def kept(self, state: Mapping[str, Lazy], config: ModelConfig) -> dict[str, Lazy]:
        """The tensors of upstream files without ``dropped`` ones: those that the model needs, and foreign ones."""
        patterns = [re.compile(re.escape(name).replace(r"\*", ".*")) for name in self.dropped]
        return {name: value for name, value in state.items() if not any(each.fullmatch(name) for each in patterns)}

    def to_ours(self, state: Mapping[str, Lazy], names: Iterable[str], config: ModelConfig) -> dict[str, Lazy]:
        """The tensors that we call ``names``, from a state that has all that ``to_upstream`` makes of them; nothing is
        read.
        """
        return self.keys.to_ours(state, names, config)

    def to_upstream(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Our tensors as upstream has them: the exact inverse of ``to_ours``. Raises FlasharError for a part that
        upstream does not have. With tensors on the meta device it tells what upstream files must contain.
        """
        return self.keys.to_upstream(state, config)

    def to_files(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """What ``to_upstream`` makes as upstream's files have it: with the constants and the names that it expects when
        it loads them.
        """
        return dict(state)

    def read_tokenizer(self, source: Source) -> tuple[AnyTokenizerConfig, dict[str, Lazy]]:
        """The image tokenizer in a separate file, under our names."""
        raise FlasharError(f"{source.path}: a model of family {self.name} has its tokenizer with it; leave it out")

    def tokenizer_to_upstream(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of ``read_tokenizer``."""
        raise NotImplementedError
