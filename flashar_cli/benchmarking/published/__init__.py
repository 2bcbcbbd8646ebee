"""Samplers that were published with the models, as an arm of the bench: the registry. Their code is never part of ours;
``upstream.py`` imports it from a local clone at run time.
"""

from __future__ import annotations

from flashar_cli.benchmarking.arms import UPSTREAM, split_arm
from flashar_cli.benchmarking.published.base import Publication
from flashar_cli.benchmarking.published.llamagen import LLAMAGEN
from flashar_cli.benchmarking.published.nar import NAR

PUBLICATIONS: dict[str, Publication] = {publication.family: publication for publication in (LLAMAGEN, NAR)}


def decoder_of(arm: str, family: str) -> str:
    """``raster`` or ``flashar``: the decoder of an arm. Upstream's sampler counts as the one that it decodes like."""
    decoder, _ = split_arm(arm)
    return PUBLICATIONS[family].decoder if decoder == UPSTREAM else decoder
