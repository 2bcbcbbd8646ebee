"""Which published sampler a folder holds."""

from __future__ import annotations

from pathlib import Path

from flashar_cli.benchmarking.published import AUTOREGRESSIVE, PUBLICATIONS
from flashar_cli.benchmarking.published.autoregressive import AutoregressiveUpstream
from flashar_cli.benchmarking.published.base import Upstream
from flashar_cli.benchmarking.published.var import VARUpstream
from flashar_cli.errors import FlasharError


def load_upstream(directory: Path) -> Upstream:
    """Imports the model and the sampler of a clone, or of its folder with the code. Raises FlasharError."""
    for publication in PUBLICATIONS.values():
        code = directory / publication.folder
        if all((code / name).is_file() for name in publication.files):
            kind = AutoregressiveUpstream if publication.files == AUTOREGRESSIVE else VARUpstream
            return kind.of(code.resolve())
    lacking = next(name for name in AUTOREGRESSIVE if not (directory / name).is_file())
    expected = " or ".join(publication.clone for publication in PUBLICATIONS.values())
    raise FlasharError(f"--upstream is {directory}, which has no {lacking}; expected {expected}")
