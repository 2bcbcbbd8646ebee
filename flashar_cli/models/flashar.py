"""The whole model: prefix, backbone, vertical branch, and the one place where their predictions are fused.

Letters: B batch, R rows (B, or 2B with guidance), S = P + M sequence, P prefix tokens, M slots of the image, N = H*W
cells, C target cells, D model dim, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import BranchConfig, DiffusionConfig, RasterConfig
from flashar_cli.grid import Order
from flashar_cli.models.base import TokenModel
from flashar_cli.models.branch import VerticalBranch
from flashar_cli.models.diffusion import BlockDiffusion, diffusion_inputs
from flashar_cli.models.prefix import Conditions, build_prefix
from flashar_cli.models.targets import Targets, grid_targets
from flashar_cli.models.transformer import Transformer, run_blocks
from flashar_cli.nn.attention import AttentionBackend
from flashar_cli.nn.kv_cache import KVCache
from flashar_cli.nn.layers import Attention
from flashar_cli.nn.masks import order_block_mask, order_mask, sequence_ranks, with_valid_keys
from flashar_cli.nn.rope import rope_table_1d, rope_table_2d, text_places
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


class Inputs(NamedTuple):
    """A teacher-forced sequence of ``num_prefix`` prefix tokens and all tokens of the image but the last: embeddings
    [B, S, D], rotations, and the masks of the whole sequence and of its image alone.
    """

    x_BSD: Tensor
    rope: Tensor
    mask: Tensor | BlockMask
    image_mask: Tensor | BlockMask | None
    num_prefix: int


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


class FlasharModel(TokenModel):
    """A raster-scan autoregressive image model. ``branch`` is None where it has no vertical branch, ``diffusion`` where
    it was not adapted to block diffusion.
    """

    config: RasterConfig

    def __init__(self, config: RasterConfig) -> None:
        super().__init__()
        self.config = config
        self.attention: AttentionBackend = "sdpa"
        self.prefix = build_prefix(config.prefix, config.backbone.dim)
        self.backbone = Transformer(config.backbone)
        self.branch = VerticalBranch(config.branch, config.backbone) if config.branch else None
        self.diffusion = BlockDiffusion(config.diffusion, config.backbone.dim) if config.diffusion else None

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

    @property
    def every_forward(self) -> nn.Module:
        return self.backbone.blocks[0]

    @property
    def step_layers(self) -> list[nn.Linear]:
        parts: list[nn.Module] = [self.backbone.blocks, self.backbone.head]
        if self.branch is not None:
            parts += [self.branch.blocks, self.branch.head]
        return [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]

    def initialise(self, seed: int, zero_head: bool = True) -> None:
        """LlamaGen's start: N(0, 0.02^2) everywhere, but gains are 1 and, unless ``zero_head`` is False, the last
        matrix of the head is 0.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        heads = [name for name, part in self.named_parameters() if name.startswith("backbone.head.") and part.dim() > 1]
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name == heads[-1] and zero_head:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def add_branch(self, branch: BranchConfig, seed: int, dtype: torch.dtype | None = None) -> None:
        """Adds a new branch, initialised from the backbone, and puts it into ``config``. ``dtype``: not the model's."""
        self.config = RasterConfig.model_validate({**self.config.model_dump(), "branch": branch.model_dump()})
        module = VerticalBranch(branch, self.config.backbone).to(self.device, dtype or self.dtype)
        generator = torch.Generator(self.device).manual_seed(seed)
        module.initialise_from(self.backbone.state_dict(), self.config.backbone.num_layers, generator)
        self.branch = module

    def add_diffusion(self, diffusion: DiffusionConfig, dtype: torch.dtype | None = None) -> None:
        """Makes a model of block diffusion, which puts it into ``config``: a token that is not known begins as the mean
        of all. ``dtype``: not the model's.
        """
        self.config = RasterConfig.model_validate({**self.config.model_dump(), "diffusion": diffusion.model_dump()})
        module = BlockDiffusion(diffusion, self.config.backbone.dim).to(self.device, dtype or self.dtype)
        every = torch.arange(self.config.backbone.vocab_size, device=self.device)
        with torch.no_grad():
            module.unknown.copy_(self.backbone.embedding(every).mean(dim=0))
        self.diffusion = module

    def rope(self, order: Order, prefix_length: int, valid_RP: Tensor | None, starts_R: Tensor | None = None) -> Tensor:
        """Rotation table of a sequence in this order, [P + M, E // 2, 2] or [R, P + M, E // 2, 2]. ``valid_RP`` bool
        [R, P] are the valid prefix positions (None: all); in a text the image starts at ``starts_R`` [R] (None: after
        the row's own prefix).
        """
        config, device = self.config.backbone, self.device
        if config.rope == "2d":
            return rope_table_2d(order, prefix_length, config.head_dim, config.rope_base, device)
        if valid_RP is None:
            valid_RP = torch.ones(1, prefix_length, dtype=torch.bool, device=device)
        places_RS = text_places(valid_RP, image_places(order, device), starts_R)
        return rope_table_1d(places_RS, config.head_dim, config.rope_base)

    def new_cache(self, num_rows: int, prefix_length: int, num_slots: int) -> KVCache:
        """An empty cache for sequences of P + M tokens: backbone blocks first, then those of the branch."""
        backbone, branch = self.config.backbone, self.config.branch
        first = 0 if branch is None or branch.sees_prefix else prefix_length
        firsts = [0] * backbone.num_layers + [first] * (self.config.num_blocks - backbone.num_layers)
        length = prefix_length + num_slots
        return KVCache(firsts, num_rows, backbone.num_kv_heads, length, backbone.head_dim, self.device, self.dtype)

    def hidden_states(
        self,
        x_BSD: Tensor,
        rope: Tensor,
        mask: Tensor | BlockMask | None,
        use_branch: bool,
        cache: KVCache | None = None,
        start: int = 0,
        num_prefix: int = 0,
        image_mask: Tensor | BlockMask | None = None,
    ) -> HiddenStates:
        """Runs embedded tokens through backbone and branch; training, prefix and decoding steps all come here.

        The first ``num_prefix`` tokens belong to the prefix. A branch that does not see it runs on the others, under
        ``image_mask``.
        """
        blocks, layers = list(self.backbone.blocks), cache.layers if cache else None

        def run(
            part: Iterable[nn.Module], x: Tensor, rope: Tensor, mask: Tensor | BlockMask | None, layer: int, start: int
        ) -> Tensor:
            return run_blocks(part, x, rope, mask, layers[layer:] if layers else None, start)

        if not use_branch:
            return HiddenStates(self.backbone.norm(run(blocks, x_BSD, rope, mask, 0, start)), None)
        branch = self.branch
        assert branch is not None, "the order needs a vertical branch"
        shared_BSD = run(blocks[: branch.layer], x_BSD, rope, mask, 0, start)
        horizontal = self.backbone.norm(run(blocks[branch.layer :], shared_BSD, rope, mask, branch.layer, start))
        if branch.sees_prefix:
            return HiddenStates(horizontal, branch.norm(run(branch.blocks, shared_BSD, rope, mask, len(blocks), start)))
        parts, rope_image = [], rope[..., num_prefix:, :, :]
        if num_prefix:
            parts.append(branch.unseen(shared_BSD)[:, :num_prefix])
        if rope_image.shape[-3]:
            image_BMD = shared_BSD[:, num_prefix:] if num_prefix else shared_BSD
            image_BMD = run(branch.blocks, image_BMD, rope_image, image_mask, len(blocks), start + num_prefix)
            parts.append(branch.norm(image_BMD))
        return HiddenStates(horizontal, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

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
        gate = self.branch.gate(h_BCD, v_BCD, logits_h, logits_v, targets.corner)
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
        ranks = sequence_ranks(order, prefix_length, self.device)[:length]
        return order_block_mask(ranks, F.pad(valid_BP, (0, length - prefix_length), value=True))

    def attention_mask(self, order: Order, prefix_length: int, valid_BP: Tensor | None, length: int) -> Tensor:
        """The mask of the first ``length`` positions in this order, bool [length, length]. ``valid_BP`` bool [B, P] are
        the prefix positions that may be attended to; with it the mask is bool [B, 1, length, length].
        """
        mask = order_mask(order, prefix_length, self.device)[:length, :length]
        if valid_BP is None:
            return mask
        return with_valid_keys(mask, F.pad(valid_BP, (0, length - prefix_length), value=True))

    def embed_step(self, tokens_RC: Tensor, line_end: bool, unknown_RC: Tensor | None = None) -> Tensor:
        """Embeddings of the tokens of a step, [R, C, D], and of the end-of-line token that follows them, if any.
        ``unknown_RC`` bool [R, C]: which of them block diffusion does not know yet.
        """
        x_RCD = self.backbone.embedding(tokens_RC)
        if unknown_RC is not None:
            assert self.diffusion is not None, "tokens are unknown in block diffusion alone"
            x_RCD = self.diffusion.embed(x_RCD, unknown_RC)
        return torch.cat([x_RCD, self._line_end(x_RCD)], dim=1) if line_end else x_RCD

    def _line_end(self, x_BND: Tensor) -> Tensor:
        end_D = self.prefix.line_end
        assert end_D is not None, "the order has end-of-line tokens"
        return end_D.to(x_BND.dtype).expand(len(x_BND), 1, -1)

    def inputs(
        self,
        tokens_BN: Tensor,
        conditions: Conditions,
        order: Order,
        drop: Tensor | None = None,
        blank_BN: Tensor | None = None,
        paired: bool = False,
    ) -> Inputs:
        """The sequence of a teacher-forced forward; the arguments are those of ``forward``.

        Under autocast the sequence, and so the residual stream of every block, has autocast's dtype, as in a model that
        decodes in that dtype.
        """
        if drop is None:
            drop = torch.zeros(len(tokens_BN), dtype=torch.bool, device=tokens_BN.device)
        prefix_BPD, valid_BP = self.prefix(conditions, drop), self.prefix.valid(conditions, drop)
        tokens_BMD = self.backbone.embedding(tokens_BN[:, :-1])
        if blank_BN is not None:
            tokens_BMD = tokens_BMD.masked_fill(blank_BN[:, :-1, None], 0)
        if order.line_ends:
            ended_BMD = torch.cat([tokens_BMD, self._line_end(tokens_BMD)], dim=1)
            tokens_BMD = ended_BMD.index_select(1, _fed_positions(order, ended_BMD.device))
        x_BSD = torch.cat([prefix_BPD, tokens_BMD], dim=1)
        kind, length, num_prefix = x_BSD.device.type, x_BSD.shape[1], prefix_BPD.shape[1]
        starts_B = self.prefix.common_starts(conditions) if paired and order.uses_branch else None
        apart = self.branch is not None and not self.branch.sees_prefix
        return Inputs(
            x_BSD.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x_BSD,
            self.rope(order, num_prefix, valid_BP, starts_B)[..., :length, :, :],
            self._teacher_forced_mask(order, num_prefix, valid_BP, length),
            self._teacher_forced_mask(order, 0, None, length - num_prefix) if apart else None,
            num_prefix,
        )

    def forward(
        self,
        tokens_BN: Tensor,
        conditions: Conditions,
        order: Order,
        drop: Tensor | None = None,
        blank_BN: Tensor | None = None,
        read: Reader | None = None,
        paired: bool = False,
        unknown_BN: Tensor | None = None,
    ) -> Any:
        """Teacher-forced prediction of all N cells in the given order, or what ``read`` returns for the hidden states
        that predict them. ``read`` is called in here because sharded heads are whole only during a forward.
        ``unknown_BN`` bool [B, N]: tokens in raster order that block diffusion does not know.

        ``tokens_BN`` int64 [B, N] are in that order already; ``drop`` bool [B] marks rows to make unconditional,
        ``blank_BN`` bool [B, N] marks context tokens whose embedding is set to zero. ``paired``: the rows are halves of
        guidance pairs, whose images start at the same place of the text.
        """
        if unknown_BN is None:
            given = self.inputs(tokens_BN, conditions, order, drop, blank_BN, paired)
            targets = grid_targets(order, given.x_BSD.device)
        else:
            given, targets = diffusion_inputs(self, tokens_BN, conditions, order, unknown_BN, drop, blank_BN)
        hidden = self.hidden_states(
            given.x_BSD,
            given.rope,
            given.mask,
            targets.uses_branch,
            num_prefix=given.num_prefix,
            image_mask=given.image_mask,
        )
        return (read or self.fuse)(hidden.since(given.num_prefix - 1), targets)


def _select(hidden_BKD: Tensor, index: Tensor | None) -> Tensor:
    return hidden_BKD if index is None else hidden_BKD.index_select(1, index)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # shared with decoding
def image_places(order: Order, device: torch.device) -> Tensor:
    """Places of the image's tokens in the text, from 0 on, int64 [M]."""
    return torch.tensor(order.places, device=device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _fed_positions(order: Order, device: torch.device) -> Tensor:
    """What is in each slot but the last, int64 [M - 1]: a position, N - 1 for an end-of-line token."""
    found = torch.full((order.num_slots,), len(order.cells) - 1)
    found[order.slots] = torch.arange(len(order.cells))
    return found[:-1].to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _order_block_mask(order: Order, prefix_length: int, length: int, device: torch.device) -> BlockMask:
    return order_block_mask(sequence_ranks(order, prefix_length, device)[:length], None)
