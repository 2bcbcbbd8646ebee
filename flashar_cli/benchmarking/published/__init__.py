"""Samplers that were published with the models: their code is imported from a local clone, never part of ours."""

from __future__ import annotations

from dataclasses import dataclass

from flashar_cli.benchmarking.arms import UPSTREAM, split_arm


@dataclass(frozen=True)
class Publication:
    """A sampler as it was published, for the models of one family."""

    family: str
    repository: str
    decoder: str  # ours that decodes in the same order, with the same forwards, floor and greedy tokens
    files: tuple[str, ...]  # that are imported, and tell a clone
    folder: str = "."  # where the repository keeps them

    @property
    def clone(self) -> str:
        """For people: what ``--upstream`` expects."""
        return f"a clone of github.com/{self.repository}"


AUTOREGRESSIVE = "autoregressive/models/gpt.py", "autoregressive/models/generate.py"
LLAMAGEN = Publication("llamagen", "FoundationVision/LlamaGen", "raster", AUTOREGRESSIVE)
# One anti-diagonal a forward, with the mean of both heads.
NAR = Publication("nar", "ThisisBillhe/NAR", "flashar", AUTOREGRESSIVE, "NAR-images")
VAR = Publication("var", "FoundationVision/VAR", "scale", ("models/var.py", "models/vqvae.py", "models/helpers.py"))
PUBLICATIONS: dict[str, Publication] = {publication.family: publication for publication in (LLAMAGEN, NAR, VAR)}


def decoder_of(arm: str, family: str) -> str:
    """The decoder of an arm; of upstream's sampler, the one of ours that decodes in the same order."""
    return PUBLICATIONS[family].decoder if arm == UPSTREAM else split_arm(arm)[0]
