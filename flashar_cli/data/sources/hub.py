"""A `datasets` id, streamed: nothing is stored, and this package decodes the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.sources.base import Fetch, ImageSource, Wanted, choose_column
from flashar_cli.data.sources.parquet import image_bytes
from flashar_cli.errors import FlasharError
from flashar_cli.machine.network import hub_unreachable


class HubDataset(ImageSource):
    """One split of a `datasets` id. A first pass lists labels or captions, a second one reads the chosen images."""

    def __init__(self, name: str, settings: DataSettings, wanted: Wanted) -> None:
        self.name, self.image_column = name, settings.image_column
        self.split = settings.split or "train"
        rows = self._open()
        present = rows.column_names or list(next(iter(rows), {}))
        text = choose_column(f"data set {name}", settings, wanted, present)
        values = [row[text] for row in self._passing(self._only(text))]
        ids = [f"{name}:{self.split}:{index:09d}" for index in range(len(values))]
        version = f"{getattr(rows.info, 'version', None)} {getattr(rows.info, 'dataset_size', None)}"
        marks = [name, self.split, settings.image_column, version, *map(str, values)]
        self._list(ids, values, marks, f"data set {name}", wanted)

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """The bytes of each image, as the stream passes by."""
        if not len(rows):
            return
        from datasets import Image

        stream = self._open().select_columns([self.image_column]).cast_column(self.image_column, Image(decode=False))
        wanted, first = set(rows.tolist()), int(rows[0])
        for row, item in enumerate(self._passing(stream.skip(first)), start=first):
            if row in wanted:
                yield image_bytes(item[self.image_column])
            if row >= rows[-1]:
                return

    def _open(self, **options: Any) -> Any:
        try:
            from datasets import load_dataset
            from datasets.exceptions import DatasetsError
        except ImportError:
            raise FlasharError(f"--data {self.name} needs the datasets package; install it, or pass a folder") from None
        if hub_unreachable():
            raise FlasharError(
                f"--data {self.name} is neither a file nor shapes[:N], and the Hub, where it may be a data set, can't "
                "be reached; check the path or the network"
            )
        try:
            return load_dataset(self.name, split=self.split, streaming=True, **options)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FlasharError(
                f"--data {self.name} is neither a file nor shapes[:N] nor a data set that can be loaded ({reason})"
            ) from None

    def _passing(self, stream: Iterable[Any]) -> Iterator[Any]:
        """The rows of a stream. Raises FlasharError where the stream breaks off."""
        try:
            yield from stream
        except Exception as error:  # datasets passes on whatever its network and file libraries raise
            reason = " ".join(str(error).split())[:200]
            raise FlasharError(
                f"the stream of data set {self.name} broke off ({type(error).__name__}: {reason}); "
                "type the same command again to go on"
            ) from None

    def _only(self, column: str) -> Any:
        """All rows, with only this column, and only it fetched where the format allows that."""
        try:
            return self._open(columns=[column])
        except FlasharError:  # only formats stored by column know this option
            return self._open().select_columns([column])
