"""The static plan of one batch of a next-scale model: every buffer and table that decoding touches, made once, at fixed
addresses.

Between ``load`` and ``tokens`` nothing waits for the device, no shape depends on data, and no table is made. So these
methods run eagerly and under CUDA graph capture alike. A step is a scale.

Letters: B images, R rows (B, or 2B with guidance: conditional rows first), S tokens of a map, L tokens of all maps that
are decoded, C choices of a map (a token is one, or one for each of its bits), V options of a choice, D model dim,
E head dim, Z values of the latent that a token stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from flashar_cli.config import Pruning, Sampling
from flashar_cli.decoding.decoder import PlanKey, StaticPlan, StepHook
from flashar_cli.decoding.next_scale.fastvar import PrunedBlocks
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.grid import Grid
from flashar_cli.models.next_scale.model import Context, NextScaleModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingKind, SamplingValues, guide, sample
from flashar_cli.tokenizers.next_scale import ScaleQuantizer


@dataclass(frozen=True)
class ScaleKey(PlanKey):
    """The key of a batch. ``padded``: its captions differ in length, so that cross-attention needs a mask."""

    padded: bool = False
    pruning: Pruning = field(default_factory=Pruning)

    @classmethod
    def of(
        cls,
        decoder: str,
        model: NextScaleModel,
        conditions: Conditions,
        sampling: Sampling,
        grid: Grid | None = None,
        pruning: Pruning | None = None,
    ) -> ScaleKey:
        """The key of a batch for the decoder of this name. ``grid`` None: the model's own; ``pruning`` None: nothing is
        pruned.
        """
        return cls(
            decoder=decoder,
            batch=len(conditions),
            grid=grid or model.config.order_grid,
            prefix_length=model.prefix.length(conditions),
            kind=SamplingKind.of(sampling),
            dtype=model.dtype,
            device=model.device,
            padded=model.prefix.padded(conditions),
            pruning=pruning or Pruning(),
        )


class ScalePlan(StaticPlan):
    """The buffers and tables of one :class:`ScaleKey`. ``load`` copies inputs in, ``tokens`` reads the result.

    Raises FlasharError where the key's pruning fits neither model nor grid.
    """

    @torch.inference_mode()
    def __init__(self, model: NextScaleModel, quantizer: ScaleQuantizer, key: ScaleKey) -> None:
        self.model: NextScaleModel = model
        self.key: ScaleKey = key
        config, device, batch = model.config, key.device, key.batch
        self.num_rows = 2 * batch if key.kind.guided else batch
        self.scales = config.scales(key.grid)
        self.maps = TokenMaps(config, quantizer, self.scales)
        self.blocks = PrunedBlocks(model, key.pruning, self.scales, self.num_rows)
        self.num_steps = key.pruning.num_decoded(len(self.scales))
        sizes = [scale.num_cells for scale in self.scales[: self.num_steps]]
        self.bounds = list(pairwise(accumulate(sizes, initial=0)))
        num_tokens = sum(sizes)

        self.conditions = model.prefix.blank(batch, key.prefix_length)
        self.images_R = torch.arange(self.num_rows, device=device) % batch
        self.drop_R = torch.arange(self.num_rows, device=device) >= batch
        self.context = self._read()
        self.uniform_BC = torch.zeros(batch, num_tokens * config.num_choices, device=device)
        dtype = torch.uint8 if config.token_shape else torch.int64
        self.tokens_BL = torch.zeros(batch, num_tokens, *config.token_shape, dtype=dtype, device=device)
        self.latent = self.maps.blank(batch, device)
        self.values = SamplingValues.of(Sampling(), device)
        self.cfg_scales = torch.ones(self.num_steps, device=device)  # 1 is no guidance

        # Where the keys of each scale begin in each layer's cache, and where the last ones end.
        self.key_starts = [
            list(accumulate((self.blocks.num_keys(layer, scale) for scale in range(self.num_steps)), initial=0))
            for layer in range(len(model.blocks))
        ]
        self.caches = [model.new_cache(self.num_rows, starts[-1]) for starts in self.key_starts]
        self.rope = model.rope(key.grid)

    @torch.inference_mode()
    def load(self, conditions: Conditions, sampling: Sampling, uniform_BC: Tensor) -> None:
        """Copies a batch's inputs into place. ``uniform_BC`` float32 [B, C'] has a number for each choice of all tokens
        of the image, also of scales that are skipped, in the order of the tokens. Guidance too counts these scales.
        """
        assert SamplingKind.of(sampling) == self.key.kind, "a plan of another kind of sampling"
        for name, own in self.conditions.tensors.items():
            own.copy_(conditions.tensors[name])
        self.uniform_BC.copy_(uniform_BC[:, : self.uniform_BC.shape[1]])
        self.values.fill(sampling)
        *starts, num_tokens = accumulate((scale.num_cells for scale in self.scales), initial=0)
        cfg_scales = sampling.step_scales(starts, num_tokens)[: self.num_steps]
        self.cfg_scales.copy_(torch.tensor(cfg_scales))

    def prefix(self) -> Tensor:
        """Reads the conditions and predicts the first scale: logits [B, C, V] after guidance."""
        for own, new in zip(self.context, self._read(), strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        self.latent.zero_()
        return self._predict(0, None)

    def step(self, scale: int, tokens_BS: Tensor) -> Tensor:
        """Adds the tokens of the scale before to the latent and predicts ``scale``: logits [B, C, V] after guidance."""
        self.latent.add_(self.maps.contribution(scale - 1, tokens_BS))
        return self._predict(scale, self.maps.seen(scale, self.latent))

    def sample(self, scale: int, logits_BCV: Tensor, on_step: StepHook | None = None) -> None:
        """Samples the tokens of ``scale`` and stores them."""
        if on_step is not None:
            on_step(scale, logits_BCV)
        num_choices = self.model.config.num_choices
        first, last = self.bounds[scale]
        uniform_BC = self.uniform_BC[:, num_choices * first : num_choices * last]
        tokens_BS = self._map(scale, self.tokens_BL)
        tokens_BS.copy_(sample(logits_BCV, uniform_BC, self.key.kind, self.values).view(tokens_BS.shape))

    def advance(self, first: int, last: int, on_step: StepHook | None = None) -> None:
        """Predicts and samples the scales ``first`` .. ``last - 1``, from 1 on; ``on_step`` as in ``run``."""
        for scale in range(first, last):
            self.sample(scale, self.step(scale, self._map(scale - 1, self.tokens_BL)), on_step)

    def teacher_forced(self, tokens_BL: Tensor) -> Iterator[Tensor]:
        """Each scale's logits [B, C, V] after guidance when these tokens, as ``tokens`` returns them, are fed."""
        yield self.prefix()
        for scale in range(1, self.num_steps):
            yield self.step(scale, self._map(scale - 1, tokens_BL))

    def tokens(self) -> Tensor:
        """The sampled tokens of all scales that are decoded, one map after the other in raster order: a new int64
        [B, L], or uint8 [B, L, bits] where tokens are bits.
        """
        return self.tokens_BL.clone()

    def buffers(self) -> list[Tensor]:
        """Every tensor that ``load`` and decoding write to."""
        own = [self.uniform_BC, self.tokens_BL, self.latent, *self.values, self.cfg_scales]
        own += [tensor for cache in self.caches for tensor in (cache.keys, cache.values)]
        own += [self.blocks.outputs, *self.conditions.tensors.values()]
        return own + [tensor for tensor in self.context if tensor is not None]

    def _read(self) -> Context:
        return self.model.read(self.conditions[self.images_R], self.drop_R, self.key.padded)

    def _map(self, scale: int, tokens_BL: Tensor) -> Tensor:
        first, last = self.bounds[scale]
        return tokens_BL[:, first:last]

    def _predict(self, scale: int, latent_BSZ: Tensor | None) -> Tensor:
        model, (first, last) = self.model, self.bounds[scale]
        latent_RSZ = None if latent_BSZ is None else latent_BSZ[self.images_R]
        x_RSD = model.embed(scale, self.scales, latent_RSZ, self.context)
        rope = None if self.rope is None else self.rope[first:last]
        for layer, block in enumerate(model.blocks):
            given = self.context.given(layer, rope, cache=self.caches[layer], start=self.key_starts[layer][scale])
            x_RSD = self.blocks.run(layer, scale, block, x_RSD, given)
        logits = model.head(x_RSD, self.context.head)
        if self.key.kind.guided:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, self.cfg_scales[scale])
        return logits.unflatten(-1, (-1, model.config.num_options)).flatten(1, 2)
