"""What comes before the image tokens, by kind. ``models/prefix`` has a module for each kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashar_cli.config.base import Config, Text
from flashar_cli.inputs import bounds


class PrefixConfig(Config):
    """One kind of prefix. ``noun`` is what an image is made for: a class, a caption, a prompt."""

    kind: str

    @property
    def noun(self) -> str:
        raise NotImplementedError

    @property
    def longest(self) -> int:
        """Positions P of the longest prefix that memory and time are planned for; of prompts, those of training."""
        raise NotImplementedError

    @property
    def has_line_ends(self) -> bool:
        """Whether an end-of-line token follows the rows of image tokens in raster order."""
        return False

    def num_weights(self, dim: int) -> int:
        """Weights of the prefix in a model of width D."""
        raise NotImplementedError

    def read_weights(self, dim: int) -> int:
        """Weights that every prefix multiplies: projections, not tables."""
        return 0

    def check_class_names(self, names: tuple[str, ...] | None) -> None:
        """Raises ValueError where ``names`` are not those of this prefix's classes."""


class ClassPrefix(PrefixConfig):
    """One prefix token: the class embedding. Class ``num_classes`` is the unconditional one."""

    kind: Literal["class"] = "class"
    num_classes: Annotated[int, bounds.CLASSES]

    @property
    def noun(self) -> str:
        return "class"

    @property
    def longest(self) -> int:
        return 1

    def num_weights(self, dim: int) -> int:
        return (self.num_classes + 1) * dim

    def check_class_names(self, names: tuple[str, ...] | None) -> None:
        if names is not None and len(names) != self.num_classes:
            raise ValueError(f"{len(names)} class_names for {self.num_classes} classes")


class _Captions(PrefixConfig):
    """What readers of text-encoder features share: at most ``length`` features of ``feature_dim`` values each."""

    feature_dim: Annotated[int, bounds.WIDTH]
    length: Annotated[int, bounds.PREFIX]

    @property
    def noun(self) -> str:
        return "caption"

    @property
    def longest(self) -> int:
        return self.length


class CaptionPrefix(_Captions):
    """``length`` prefix tokens: left-padded text-encoder features of ``feature_dim`` values each."""

    kind: Literal["caption"] = "caption"
    length: Annotated[int, bounds.PREFIX] = 120

    def num_weights(self, dim: int) -> int:
        return self.length * self.feature_dim + self.read_weights(dim)

    def read_weights(self, dim: int) -> int:
        return (self.feature_dim + dim) * dim


class TextPrefix(PrefixConfig):
    """Text tokens with an embedding table of their own, left-padded to the longest prompt of a batch.

    The checkpoint's text tokenizer turns ``template``, with the prompt in it, into ids; ``begin`` and ``end`` are put
    before and after them. An unconditional prompt is the text of ``uncond_template``; without one it is the conditional
    prompt with all ids but ``kept`` replaced by padding, under the same mask.
    """

    kind: Literal["text"] = "text"
    vocab_size: Annotated[int, bounds.VOCAB] = Field(description="rows of the table of text tokens")
    template: Text = Field(
        "{prompt}", description="the text around a prompt; {height} and {width} are the rows and columns of tokens"
    )
    uncond_template: Text | None = Field(
        None, description="the text of an unconditional prompt, with {height} and {width}; null: by kept"
    )
    begin: tuple[Annotated[int, bounds.TOKEN_ID], ...] = Field((), description="ids before the text")
    end: tuple[Annotated[int, bounds.TOKEN_ID], ...] = Field((), description="ids after the text")
    pad_id: Annotated[int, bounds.TOKEN_ID] = 0
    kept: tuple[Annotated[int, bounds.TOKEN_ID], ...] = Field(
        (), description="ids that stay in an unconditional prompt; its others are padding"
    )
    line_end: Annotated[int, bounds.TOKEN_ID] | None = Field(
        None, description="id that is fed after each row of image tokens but the last, in raster order"
    )
    max_length: Annotated[int, bounds.PREFIX] = Field(512, description="tokens of the longest prompt")
    train_length: Annotated[int, bounds.PREFIX] | None = Field(
        None, description="tokens that the captions of training data are cut to; null: max_length"
    )

    @model_validator(mode="after")
    def _check_ids(self) -> TextPrefix:
        highest = max((self.pad_id, *self.begin, *self.end, *self.kept, self.line_end or 0))
        if highest >= self.vocab_size:
            raise ValueError(f"id {highest} is not among the {self.vocab_size} text tokens")
        if self.train_length is not None and self.train_length > self.max_length:
            raise ValueError(f"train_length {self.train_length} is more than max_length {self.max_length}")
        if self.template.count("{prompt}") != 1:
            raise ValueError("template has no place for the prompt, or several; expected one {prompt}")
        if self.uncond_template is not None and "{prompt}" in self.uncond_template:
            raise ValueError("uncond_template has a place for a prompt; expected a whole text")
        return self

    @property
    def noun(self) -> str:
        return "prompt"

    @property
    def longest(self) -> int:
        return self.train_length or self.max_length

    @property
    def has_line_ends(self) -> bool:
        return self.line_end is not None

    def num_weights(self, dim: int) -> int:
        return self.vocab_size * dim


class CaptionMemory(_Captions):
    """The ``length`` or fewer text-encoder features of a caption, which every block reads by cross-attention; pooled
    by attention of ``pool_heads`` heads they are the start token and the condition of the modulation (Infinity).
    """

    kind: Literal["caption-memory"] = "caption-memory"
    length: Annotated[int, bounds.PREFIX] = 512
    pool_heads: Annotated[int, bounds.HEADS]

    def num_weights(self, dim: int) -> int:
        # Features of no caption, a norm's gain, and what is read.
        return (self.length + 1) * self.feature_dim + self.read_weights(dim)

    def read_weights(self, dim: int) -> int:
        # Pooling: a query, keys and values with a bias for the values, an output layer. Memory: an MLP.
        pooling = dim + 2 * dim * self.feature_dim + dim + (dim + 1) * dim
        return pooling + (self.feature_dim + 1) * dim + (dim + 1) * dim


# A config.json may name any of these kinds.
Prefix = Annotated[ClassPrefix | CaptionPrefix | TextPrefix, Field(discriminator="kind")]
