"""flashar: turn a raster-scan autoregressive image model into a parallel one (FlashAR, arXiv 2605.09430)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashar_cli.api import ImageModel, load

__version__ = "0.1.0"
__all__ = ["ImageModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch is imported with the API, not with the package: `flashar --help` must answer at once.
    if name in ("load", "ImageModel"):
        from flashar_cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'flashar_cli' has no attribute {name!r}")
