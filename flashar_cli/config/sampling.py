"""How tokens are sampled: the parameters that commands, checkpoints and reports share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from flashar_cli.config.base import Config, validated
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds


class Sampling(Config):
    """Each field is an option of the same name. What neither the command nor the checkpoint sets is off, as here."""

    cfg_scale: Annotated[float, bounds.CFG_SCALE] = Field(1.0, description="Classifier-free guidance; 1 turns it off.")
    cfg_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="Part of the cells, in decoding order, that is guided, as fractions A:B."
    )
    cfg_schedule: Literal["constant", "linear"] | tuple[Annotated[float, bounds.CFG_SCALE], ...] = Field(
        "constant",
        description="constant; linear: guidance grows from 1 at the first step to --cfg-scale at the last; or S,S,..: "
        "that of each step.",
    )
    temperature: Annotated[float, bounds.TEMPERATURE] = Field(1.0, description="0 is argmax.")
    top_k: Annotated[int, bounds.TOP_K] = Field(0, description="Sample from the k likeliest tokens; 0 turns it off.")
    top_p: Annotated[float, bounds.TOP_P] = Field(
        1.0, description="Sample from the likeliest tokens that together have this probability; 1 turns it off."
    )
    min_p: Annotated[float, bounds.MIN_P] = Field(
        0.0, description="Sample from tokens at least this share as likely as the likeliest; 0 turns it off."
    )

    @field_validator("cfg_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        start, end = interval
        if not 0 <= start < end <= 1:  # NaN fails every comparison
            raise ValueError("expected A:B with 0 <= A < B <= 1")
        return interval

    @property
    def guided(self) -> bool:
        if isinstance(self.cfg_schedule, str):
            return self.cfg_scale != 1.0
        return any(scale != 1.0 for scale in self.cfg_schedule)

    def step_scales(self, starts: Sequence[int], num_cells: int) -> list[float]:
        """The guidance of each step of a decode, which start at these positions of the order; 1 is none. Raises
        FlasharError for a schedule of another number of steps.
        """
        first, last = self.cfg_interval
        if self.cfg_schedule == "linear":
            steps = max(1, len(starts) - 1)
            scales = [1 + (self.cfg_scale - 1) * step / steps for step in range(len(starts))]
        elif self.cfg_schedule == "constant":
            scales = [self.cfg_scale] * len(starts)
        else:
            scales = list(self.cfg_schedule)
            if len(scales) != len(starts):
                raise FlasharError(f"--cfg-schedule has {len(scales)} scales; expected {len(starts)}, one a step")
        acts = [first <= start / num_cells < last for start in starts]
        return [scale if guided else 1.0 for scale, guided in zip(scales, acts, strict=True)]

    def changed(self, **settings: object) -> Sampling:
        """These settings with some replaced; None keeps one. Raises FlasharError for an unknown or impossible one."""
        given = {name: value for name, value in settings.items() if value is not None}
        return validated({**self.model_dump(), **given}, Sampling, "sampling", "possible")
