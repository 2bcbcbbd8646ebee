"""What a run of `flashar generate` writes, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flashar_cli.generation.store import SAMPLE_FOLDER, WORK_FOLDER, is_whole
from flashar_cli.kinds import NPY, NPZ
from flashar_cli.outputs import Output


@dataclass(frozen=True)
class Targets:
    """A folder, a file of tokens, an archive of pictures; one of them at least. ``with_pictures``: the folder holds
    pictures too.
    """

    out: Path | None
    tokens_out: Path | None
    npz: Path | None
    with_pictures: bool

    @property
    def all(self) -> list[Path]:
        """Those that are wanted."""
        return [path for path in (self.out, self.tokens_out, self.npz) if path is not None]

    @property
    def work(self) -> Path:
        """The work folder, beside the first of them."""
        return self.all[0].parent / f"{self.all[0].name}.part"


def declared(targets: Targets) -> list[Output]:
    """The outputs, for ``check_outputs``. Where all is made, some may be in their places already."""
    whole = is_whole(targets.work)
    named = (
        ("--out", targets.out, SAMPLE_FOLDER),
        ("--tokens-out", targets.tokens_out, NPY),
        ("--npz", targets.npz, NPZ),
    )
    outputs = [Output(option, path, kind, goes_on=whole) for option, path, kind in named if path is not None]
    return [*outputs, Output("the work folder", targets.work, WORK_FOLDER, goes_on=True)]
