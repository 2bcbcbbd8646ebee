"""How tokens are sampled: the parameters that commands, checkpoints and reports share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from flashar_cli.config.base import Config, validated
from flashar_cli.inputs import bounds


class Sampling(Config):
    """Each field is an option of the same name. What neither the command nor the checkpoint sets is off, as here."""

    cfg_scale: Annotated[float, bounds.CFG_SCALE] = Field(1.0, description="Classifier-free guidance; 1 turns it off.")
    cfg_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="Part of the cells, in decoding order, that is guided, as fractions A:B."
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
        return self.cfg_scale != 1.0

    def guides_cell(self, position: int, num_cells: int) -> bool:
        """Whether the step that starts at this position of the order is guided."""
        start, end = self.cfg_interval
        return self.guided and start <= position / num_cells < end

    def changed(self, **settings: object) -> Sampling:
        """These settings with some replaced; None keeps one. Raises FlasharError for an unknown or impossible one."""
        given = {name: value for name, value in settings.items() if value is not None}
        return validated({**self.model_dump(), **given}, Sampling, "sampling", "possible")
