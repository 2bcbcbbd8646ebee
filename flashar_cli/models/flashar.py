"""The whole model: prefix, backbone, vertical branch, and the one place where their predictions are fused.

Letters: B batch, S = P + N sequence, P prefix tokens, N = H*W cells, C target cells, D model dim, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import BranchConfig, ModelConfig
from flashar_cli.grid import Order
from flashar_cli.models.branch import VerticalBranch
from flashar_cli.models.prefix import Conditions, build_prefix
from flashar_cli.models.targets import Targets, grid_targets
from flashar_cli.models.transformer import Transformer, run_blocks
from flashar_cli.nn.attention import AttentionBackend
from flashar_cli.nn.kv_cache import KVCache
from flashar_cli.nn.layers import Attention
from flashar_cli.nn.masks import order_block_mask, order_mask, sequence_steps, with_valid_keys
from flashar_cli.nn.rope import rope_table_2d
from flashar_cli.nn.sampling import guide

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


# Runs work that was split off before, and returns its result, ready to use.
Aside = Callable[[Callable[[], Tensor]], Tensor]


class HiddenStates(NamedTuple):
    """Normed hidden states [B, S, D] of the horizontal and, where it ran, of the vertical head."""

    horizontal: Tensor
    vertical: Tensor | None

    def since(self, position: int) -> HiddenStates:
        """Those of the positions from this one on (negative: counted from the end)."""
        return HiddenStates(
            self.horizontal[:, position:], None if self.vertical is None else self.vertical[:, position:]
        )

    def sources(self, targets: Targets) -> HiddenStates:
        """Those that predict each target, [B, C, D]."""
        vertical = None if self.vertical is None else _select(self.vertical, targets.vertical)
        return HiddenStates(_select(self.horizontal, targets.horizontal), vertical)


# What a forward makes of its hidden states, in place of a prediction of all cells.
Reader = Callable[[HiddenStates, Targets], Any]


class Prediction(NamedTuple):
    """float32 logits [B, C, V] at C target cells. The last four are None where no branch took part.

    ``horizontal`` and ``vertical`` hold arbitrary values where ``targets`` says that the head has no part;
    ``gate`` [B, C, 1] is 1 or 0 there.
    """

    logits: Tensor
    horizontal: Tensor
    vertical: Tensor | None
    gate: Tensor | None
    targets: Targets


class FlasharModel(nn.Module):
    """A raster-scan autoregressive image model, with a vertical branch or without one (``branch`` is None)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention: AttentionBackend = "sdpa"
        self.prefix = build_prefix(config.prefix, config.backbone.dim)
        self.backbone = Transformer(config.backbone)
        self.branch = VerticalBranch(config.branch, config.backbone) if config.branch else None

    @property
    def device(self) -> torch.device:
        return self.backbone.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.head.weight.dtype

    def set_attention(self, backend: AttentionBackend) -> None:
        """Chooses the attention back-end of every block."""
        self.attention = backend
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def add_branch(self, branch: BranchConfig, seed: int) -> None:
        """Adds a fresh branch, initialised from the backbone, and says so in ``config``."""
        self.config = ModelConfig.model_validate({**self.config.model_dump(), "branch": branch.model_dump()})
        module = VerticalBranch(branch, self.config.backbone).to(self.device, self.dtype)
        module.initialise_from(self.backbone, torch.Generator(self.device).manual_seed(seed))
        self.branch = module

    def rope(self, order: Order) -> Tensor:
        """Rotation table [P + N, E // 2, 2] of a sequence in this order."""
        backbone = self.config.backbone
        return _rope(order, self.config.prefix.length, backbone.head_dim, backbone.rope_base, self.device)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for one picture per row: backbone blocks first, then those of the branch."""
        backbone = self.config.backbone
        num_layers = backbone.num_layers + (len(self.branch.blocks) if self.branch else 0)
        length = self.config.prefix.length + self.config.order_grid.num_cells
        kv = (backbone.num_kv_heads, length, backbone.head_dim)
        return KVCache(num_layers, batch, *kv, self.device, self.dtype)

    def hidden_states(
        self,
        x_BSD: Tensor,
        rope: Tensor,
        mask: Tensor | BlockMask | None,
        use_branch: bool,
        cache: KVCache | None = None,
        start: int = 0,
    ) -> HiddenStates:
        """Runs embedded tokens through backbone and branch; training, prefix and decoding steps all come here."""
        blocks, layers = list(self.backbone.blocks), cache.layers if cache else None

        def run(part: Iterable[nn.Module], x_BSD: Tensor, first: int) -> Tensor:
            return run_blocks(part, x_BSD, rope, mask, layers[first:] if layers else None, start)[-1]

        if not use_branch:
            return HiddenStates(self.backbone.norm(run(blocks, x_BSD, 0)), None)
        branch = self.branch
        assert branch is not None, "the order needs a vertical branch"
        shared_BSD = run(blocks[: branch.layer], x_BSD, 0)
        aside = self.fork()
        horizontal = self.backbone.norm(run(blocks[branch.layer :], shared_BSD, branch.layer))
        vertical = aside(lambda: branch.norm(run(branch.blocks, shared_BSD, len(blocks))))
        return HiddenStates(horizontal, vertical)

    def fork(self) -> Aside:
        """How to run the branch, which reads what the backbone has computed so far: after the backbone's other blocks.
        Decoding may set another way.
        """
        return _afterwards

    def fuse(self, hidden: HiddenStates, targets: Targets) -> Prediction:
        """Predicts target cells: ``g * l_horizontal + (1 - g) * l_vertical`` (paper: fusion gate).

        Row 0 takes the horizontal, column 0 the vertical prediction alone; the corner fuses both from the last prefix
        token with a gate of its own. ``hidden`` holds the tokens that ``targets`` counts its sources in.
        """
        h_BCD, v_BCD = hidden.sources(targets)
        logits_h = self.backbone.head(h_BCD).float()
        if not targets.uses_branch:
            return Prediction(logits_h, logits_h, None, None, targets)
        assert self.branch is not None and v_BCD is not None
        logits_v = self.branch.head(v_BCD).float()
        gate = self.branch.gate(h_BCD, v_BCD, logits_h, logits_v)
        gate = torch.where(targets.gated, gate, targets.fixed_gate).sigmoid()  # float32, as fixed_gate is
        return Prediction(torch.lerp(logits_v, logits_h, gate), logits_h, logits_v, gate, targets)

    def guided_logits(self, hidden: HiddenStates, targets: Targets, cfg_scale: Tensor | None) -> Tensor:
        """Fused logits [B, C, V]; with a guidance scale (float32, no dimension) those of its two halves of rows, the
        conditional and the unconditional one, in one.
        """
        logits = self.fuse(hidden, targets).logits
        if cfg_scale is None:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guide(conditional, unconditional, cfg_scale)

    def _teacher_forced_mask(self, order: Order, valid_BP: Tensor | None, length: int) -> Tensor | BlockMask:
        """The mask of a forward without a cache, in the form that the back-end wants."""
        if self.attention != "flex":
            return self.attention_mask(order, valid_BP, length)
        if valid_BP is None:
            return _order_block_mask(order, self.config.prefix.length, length, self.device)
        steps = sequence_steps(order, self.config.prefix.length, self.device)[:length]
        return order_block_mask(steps, F.pad(valid_BP, (0, length - valid_BP.shape[1]), value=True))

    def attention_mask(self, order: Order, valid_BP: Tensor | None, length: int) -> Tensor:
        """bool mask of the first ``length`` positions of a sequence in this order; ``valid_BP`` marks real captions."""
        mask = _order_mask(order, self.config.prefix.length, self.device)[:length, :length]
        if valid_BP is None:
            return mask
        image = valid_BP.new_ones(len(valid_BP), length - valid_BP.shape[1])
        return with_valid_keys(mask, torch.cat([valid_BP, image], dim=1))

    def embed(
        self, codes_BN: Tensor, conditions: Conditions, drop: Tensor, blank_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The input sequence of a teacher-forced forward: prefix and all cells but the last, [B, P + N - 1, D].

        Under autocast it has autocast's dtype, and so has the residual stream of every block after it, wherever the
        weights are: as in a model that decodes in that dtype.
        """
        prefix_BPD, valid_BP = self.prefix(conditions, drop)
        tokens_BND = self.backbone.embedding(codes_BN[:, :-1])
        if blank_BN is not None:
            tokens_BND = tokens_BND.masked_fill(blank_BN[:, :-1, None], 0)
        x_BSD = torch.cat([prefix_BPD, tokens_BND], dim=1)
        kind = x_BSD.device.type
        return x_BSD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_BSD, valid_BP

    def forward(
        self,
        codes_BN: Tensor,
        conditions: Conditions,
        order: Order,
        drop: Tensor | None = None,
        blank_BN: Tensor | None = None,
        read: Reader | None = None,
    ) -> Any:
        """Teacher-forced prediction of all N cells, in the given order; or what ``read`` makes of the hidden states of
        the tokens that predict them, computed here because sharded heads are whole only while a forward lasts.

        ``codes_BN`` int64 [B, N] are in that order already; ``drop`` bool [B] marks rows to make unconditional,
        ``blank_BN`` bool [B, N] context tokens whose embedding is zero.
        """
        if drop is None:
            drop = torch.zeros(len(codes_BN), dtype=torch.bool, device=codes_BN.device)
        x_BSD, valid_BP = self.embed(codes_BN, conditions, drop, blank_BN)
        length = x_BSD.shape[1]
        targets = grid_targets(order, x_BSD.device)
        mask = self._teacher_forced_mask(order, valid_BP, length)
        hidden = self.hidden_states(x_BSD, self.rope(order)[:length], mask, targets.uses_branch)
        return (read or self.fuse)(hidden.since(self.config.prefix.length - 1), targets)


def initialise(model: FlasharModel, seed: int) -> None:
    """Fresh weights as LlamaGen starts: N(0, 0.02^2) everywhere, gains 1, output head 0."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name == "backbone.head.weight":
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02, generator=generator)


def _afterwards(work: Callable[[], Tensor]) -> Tensor:
    return work()


def _select(hidden_BKD: Tensor, index: Tensor | None) -> Tensor:
    return hidden_BKD if index is None else hidden_BKD.index_select(1, index)


# Tables are made once and shared by decoding and training, so never as inference tensors, which autograd refuses.
@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _rope(order: Order, prefix_length: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    return rope_table_2d(order, prefix_length, head_dim, base, device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _order_mask(order: Order, prefix_length: int, device: torch.device) -> Tensor:
    return order_mask(order, prefix_length, device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _order_block_mask(order: Order, prefix_length: int, length: int, device: torch.device) -> BlockMask:
    return order_block_mask(sequence_steps(order, prefix_length, device)[:length], None)
