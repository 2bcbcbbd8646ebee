"""LlamaGen's sampler: raster order, one token a forward."""

from __future__ import annotations

from flashar_cli.benchmarking.published.base import Publication

LLAMAGEN = Publication(family="llamagen", repository="FoundationVision/LlamaGen", decoder="raster")
