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
from flashar_cli.nn.rope import rope_table
from flashar_cli.nn.sampling import guide

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class HiddenStates(NamedTuple):
    """Normed hidden states [B, S, D] of the horizontal and, where it ran, of the vertical head."""

    horizontal: Tensor
    vertical: Tensor | None

    def since(self, position: int) -> HiddenStates:
        """Those from this position on (negative: counted from the end)."""
        vertical = None if self.vertical is None else self.vertical[:, position:]
        return HiddenStates(self.horizontal[:, position:], vertical)

    def sources(self, targets: Targets) -> HiddenStates:
        """Those that predict each target, [B, C, D]."""
        vertical = None if self.vertical is None else _select(self.vertical, targets.vertical)
        return HiddenStates(_select(self.horizontal, targets.horizontal), vertical)


# Computes what a forward returns instead of a prediction of all cells.
Reader = Callable[[HiddenStates, Targets], Any]


class Prediction(NamedTuple):
    """float32 logits [B, C, V] at C target cells. ``vertical`` and ``gate`` are None where no branch took part.

    ``horizontal`` and ``vertical`` hold arbitrary values where ``targets`` says that this head does not predict the
    cell; ``gate`` [B, C, 1] is 1 or 0 there.
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
        return self.backbone.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.norm.weight.dtype

    def set_attention(self, backend: AttentionBackend) -> None:
        """Chooses the attention back-end of every block."""
        self.attention = backend
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def add_branch(self, branch: BranchConfig, seed: int, dtype: torch.dtype | None = None) -> None:
        """Adds a new branch, initialised from the backbone, and puts it into ``config``. ``dtype``: not the model's."""
        self.config = ModelConfig.model_validate({**self.config.model_dump(), "branch": branch.model_dump()})
        module = VerticalBranch(branch, self.config.backbone).to(self.device, dtype or self.dtype)
        generator = torch.Generator(self.device).manual_seed(seed)
        module.initialise_from(self.backbone.state_dict(), self.config.backbone.num_layers, generator)
        self.branch = module

    def rope(self, order: Order, prefix_length: int) -> Tensor:
        """Rotation table [P + N, E // 2, 2] of a sequence in this order."""
        return rope_table(self.config.backbone, order, prefix_length, self.device)

    def new_cache(self, num_rows: int, length: int) -> KVCache:
        """An empty cache for sequences of this length: backbone blocks first, then those of the branch."""
        backbone = self.config.backbone
        num_blocks, num_heads = self.config.num_blocks, backbone.num_kv_heads
        return KVCache(num_blocks, num_rows, num_heads, length, backbone.head_dim, self.device, self.dtype)

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
            return run_blocks(part, x_BSD, rope, mask, layers[first:] if layers else None, start)

        if not use_branch:
            return HiddenStates(self.backbone.norm(run(blocks, x_BSD, 0)), None)
        branch = self.branch
        assert branch is not None, "the order needs a vertical branch"
        shared_BSD = run(blocks[: branch.layer], x_BSD, 0)
        horizontal = self.backbone.norm(run(blocks[branch.layer :], shared_BSD, branch.layer))
        return HiddenStates(horizontal, branch.norm(run(branch.blocks, shared_BSD, len(blocks))))

    def fuse(self, hidden: HiddenStates, targets: Targets) -> Prediction:
        """Predicts target cells: ``g * l_horizontal + (1 - g) * l_vertical`` (paper: fusion gate).

        Row 0 takes the horizontal prediction alone, column 0 the vertical one. The corner fuses both, from the last
        prefix token. ``hidden`` has the positions that the sources in ``targets`` are indices of.
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
        """Fused logits [B, C, V]. With a guidance scale (float32, no dimension) the rows of ``hidden`` are conditional
        in the first half and unconditional in the second, and both are guided into one.
        """
        logits = self.fuse(hidden, targets).logits
        if cfg_scale is None:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guide(conditional, unconditional, cfg_scale)

    def _teacher_forced_mask(
        self, order: Order, prefix_length: int, valid_BP: Tensor | None, length: int
    ) -> Tensor | BlockMask:
        """The mask of a forward without a cache, in the form that the back-end takes."""
        if self.attention != "flex":
            return self.attention_mask(order, prefix_length, valid_BP, length)
        if valid_BP is None:
            return _order_block_mask(order, prefix_length, length, self.device)
        steps = sequence_steps(order, prefix_length, self.device)[:length]
        return order_block_mask(steps, F.pad(valid_BP, (0, length - prefix_length), value=True))

    def attention_mask(self, order: Order, prefix_length: int, valid_BP: Tensor | None, length: int) -> Tensor:
        """The mask of the first ``length`` positions in this order, bool [length, length]. ``valid_BP`` bool [B, P] are
        the prefix positions that may be attended to; with it the mask is bool [B, 1, length, length].
        """
        mask = order_mask(order, prefix_length, self.device)[:length, :length]
        if valid_BP is None:
            return mask
        return with_valid_keys(mask, F.pad(valid_BP, (0, length - prefix_length), value=True))

    def embed(
        self, tokens_BN: Tensor, conditions: Conditions, drop: Tensor, blank_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The input sequence of a teacher-forced forward, [B, P + N - 1, D]: the prefix and all cells but the last; and
        which prefix positions are valid, bool [B, P] (None: all).

        Under autocast the sequence, and so the residual stream of every block, has autocast's dtype, as in a model that
        decodes in that dtype.
        """
        prefix_BPD, valid_BP = self.prefix(conditions, drop)
        tokens_BND = self.backbone.embedding(tokens_BN[:, :-1])
        if blank_BN is not None:
            tokens_BND = tokens_BND.masked_fill(blank_BN[:, :-1, None], 0)
        x_BSD = torch.cat([prefix_BPD, tokens_BND], dim=1)
        kind = x_BSD.device.type
        return x_BSD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_BSD, valid_BP

    def forward(
        self,
        tokens_BN: Tensor,
        conditions: Conditions,
        order: Order,
        drop: Tensor | None = None,
        blank_BN: Tensor | None = None,
        read: Reader | None = None,
    ) -> Any:
        """Teacher-forced prediction of all N cells in the given order, or what ``read`` returns for the hidden states
        that predict them. ``read`` is called in here because sharded heads are whole only during a forward.

        ``tokens_BN`` int64 [B, N] are in that order already; ``drop`` bool [B] marks rows to make unconditional,
        ``blank_BN`` bool [B, N] marks context tokens whose embedding is set to zero.
        """
        if drop is None:
            drop = torch.zeros(len(tokens_BN), dtype=torch.bool, device=tokens_BN.device)
        x_BSD, valid_BP = self.embed(tokens_BN, conditions, drop, blank_BN)
        length = x_BSD.shape[1]
        prefix_length = length - tokens_BN.shape[1] + 1
        targets = grid_targets(order, x_BSD.device)
        mask = self._teacher_forced_mask(order, prefix_length, valid_BP, length)
        hidden = self.hidden_states(x_BSD, self.rope(order, prefix_length)[:length], mask, targets.uses_branch)
        return (read or self.fuse)(hidden.since(prefix_length - 1), targets)


def initialise(model: FlasharModel, seed: int, zero_head: bool = True) -> None:
    """New weights as LlamaGen's start: N(0, 0.02^2) everywhere, but gains are 1 and the last matrix of the output head
    is 0 unless ``zero_head`` is False.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    last = [name for name, part in model.named_parameters() if name.startswith("backbone.head.") and part.dim() > 1][-1]
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name == last and zero_head:
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02, generator=generator)


def _select(hidden_BKD: Tensor, index: Tensor | None) -> Tensor:
    return hidden_BKD if index is None else hidden_BKD.index_select(1, index)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # shared with decoding
def _order_block_mask(order: Order, prefix_length: int, length: int, device: torch.device) -> BlockMask:
    return order_block_mask(sequence_steps(order, prefix_length, device)[:length], None)
