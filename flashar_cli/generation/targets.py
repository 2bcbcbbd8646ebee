"""What a run of `flashar generate` writes, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import NPY, NPZ
from flashar_cli.files.outputs import Output
from flashar_cli.generation.layout import Layout
from flashar_cli.generation.store import SAMPLE_FOLDER, WORK_FOLDER, is_whole


@dataclass(frozen=True)
class Targets:
    """A folder, a file of tokens, an archive of images; one of them at least."""

    out: Path | None
    tokens_out: Path | None
    npz: Path | None
    with_images: bool  # whether the folder holds images too
    layout: Layout  # of the folder

    @classmethod
    def of(
        cls,
        name: str,
        out: Path | None,
        tokens_out: Path | None,
        npz: Path | None,
        no_images: bool,
        layout: Layout | None = None,
    ) -> Targets:
        """Those that were asked for, by default a folder named after the model, which a ``layout`` needs too. Raises
        FlasharError.
        """
        for option, given in (("--npz", npz), ("--geneval", layout)):
            if no_images and given is not None:
                raise FlasharError(f"{option} holds images, but --no-images was passed; leave one of them out")
        if out is None and (layout is not None or (tokens_out is None and npz is None)):
            out = Path(f"{Path(name).name}-samples")
        with_images = not no_images and (out is not None or npz is not None)
        return cls(out, tokens_out, npz, with_images, layout or Layout())

    @property
    def all(self) -> list[Path]:
        """Those that are wanted."""
        return [path for path in (self.out, self.tokens_out, self.npz) if path is not None]

    @property
    def work(self) -> Path:
        """The work folder, beside the first of them."""
        return self.all[0].parent / f"{self.all[0].name}.part"

    def outputs(self) -> list[Output]:
        """For ``check_outputs``. Where all is made, some may be in their places already."""
        whole = is_whole(self.work)
        tokens = self.tokens_out
        kind = NPZ if tokens is not None and tokens.suffix == ".npz" else NPY
        named = (
            ("--out", self.out, SAMPLE_FOLDER),
            ("--tokens-out", tokens, kind),
            ("--npz", self.npz, NPZ),
        )
        found = [Output(option, path, kind, goes_on=whole) for option, path, kind in named if path is not None]
        return [*found, Output("the work folder", self.work, WORK_FOLDER, goes_on=True)]
