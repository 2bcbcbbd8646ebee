"""What the backbone is: a Llama-like decoder, and the facts in which such decoders differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashar_cli.config.base import Config
from flashar_cli.inputs import bounds

# Rotary positions: by row and column in interleaved pairs (LlamaGen), or by place in the sequence in two halves (Llama
# in Hugging Face transformers). head_dim must be a multiple of the number.
ROPES = {"2d": 4, "1d": 2}

Width = Annotated[int, bounds.WIDTH]
Heads = Annotated[int, bounds.HEADS]


class BackboneConfig(Config):
    """A Llama-like decoder of image tokens: RMSNorm, SwiGLU, rotary positions."""

    dim: Width = Field(description="model width D")
    num_layers: Annotated[int, bounds.LAYERS] = Field(description="transformer blocks L")
    num_heads: Heads = Field(description="query heads A")
    num_kv_heads: Heads = Field(description="key and value heads; num_heads for plain multi-head attention")
    ffn_dim: Width = Field(description="inner width of the SwiGLU feed-forward")
    vocab_size: Annotated[int, bounds.VOCAB] = Field(description="codebook size V")
    head_dim: Width = Field(
        default_factory=lambda given: int(given["dim"] // given["num_heads"]),
        description="width E of an attention head; default D / A",
    )
    norm_eps: Annotated[float, bounds.NORM_EPS] = 1e-5
    rope: Literal["2d", "1d"] = Field("2d", description="2d: by row and column; 1d: by place in the sequence")
    rope_base: Annotated[float, bounds.ROPE_BASE] = 10000.0
    max_positions: Annotated[int, bounds.POSITIONS] | None = Field(
        None, description="positions that the model knows, for grids of any size; null: its one grid"
    )
    qk_norm: bool = Field(False, description="an RMSNorm over each head's query and key, before they are turned")
    attention_bias: bool = Field(False, description="whether queries, keys and values have biases")
    embedding_dim: Width | None = Field(
        None, description="width of the token table before a two-layer MLP to D; null: the table's width is D"
    )
    head_hidden_dim: Width | None = Field(
        None, description="inner width of an output head that is a two-layer MLP; null: the head is one matrix"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> BackboneConfig:
        if "head_dim" not in self.model_fields_set and self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        multiple = ROPES[self.rope]
        if self.head_dim % multiple:
            raise ValueError(
                f"head_dim {self.head_dim} is not a multiple of {multiple}, as {self.rope} rotary positions need"
            )
        return self

    @property
    def qkv_dim(self) -> int:
        """Outputs of the one projection to queries, keys and values: (A + 2G) * E."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def block_weights(self) -> int:
        """Weights of one transformer block."""
        biases = self.qkv_dim if self.attention_bias else 0
        norms = 2 * self.dim + (2 * self.head_dim if self.qk_norm else 0)
        return self.block_linear_weights + biases + norms

    @property
    def block_linear_weights(self) -> int:
        """Weights of a block's matrices alone."""
        return self.dim * (self.qkv_dim + self.num_heads * self.head_dim) + 3 * self.dim * self.ffn_dim

    @property
    def block_linear_outputs(self) -> int:
        """Outputs of a block's linear layers."""
        return self.qkv_dim + 2 * self.dim + 2 * self.ffn_dim

    @property
    def head_weights(self) -> int:
        """Weights of one output head with the norm before it."""
        biases = 0 if self.head_hidden_dim is None else self.head_hidden_dim + self.vocab_size
        return self.head_linear_weights + biases + self.dim

    @property
    def head_linear_weights(self) -> int:
        """Weights of the output head's matrices alone."""
        inner = self.head_hidden_dim
        return self.dim * self.vocab_size if inner is None else (self.dim + self.vocab_size) * inner

    @property
    def head_linear_outputs(self) -> int:
        """Outputs of the output head's linear layers."""
        return self.vocab_size + (self.head_hidden_dim or 0)

    @property
    def embedding_weights(self) -> int:
        """Weights of the token table, and of the MLP after it."""
        if self.embedding_dim is None:
            return self.vocab_size * self.dim
        return self.vocab_size * self.embedding_dim + self.embedding_mlp_weights

    @property
    def embedding_mlp_weights(self) -> int:
        """Weights of the MLP after the token table, which every step reads; 0 where there is none."""
        return 0 if self.embedding_dim is None else (self.embedding_dim + self.dim + 2) * self.dim
