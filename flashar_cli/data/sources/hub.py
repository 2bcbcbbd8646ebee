"""A `datasets` id, streamed: nothing is stored, and pictures are decoded by this package alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.sources.base import Columns, Fetch, Wanted, digest, missing_column, read_text
from flashar_cli.data.sources.parquet import picture_bytes
from flashar_cli.errors import FlasharError
from flashar_cli.network import hub_unreachable

DEFAULT_SPLIT = "train"


class HubDataset:
    """One split of a `datasets` id. A first pass lists labels or captions, a second one reads the chosen pictures."""

    def __init__(self, name: str, columns: Columns, wanted: Wanted) -> None:
        self.name, self.columns = name, columns
        self.split = columns.split or DEFAULT_SPLIT
        rows = self._open()
        present = rows.column_names or list(next(iter(rows), {}))
        text = columns.text(wanted)
        if text not in present:
            raise missing_column(f"data set {name}", columns, wanted, present)
        if columns.image not in present:
            raise FlasharError(
                f"data set {name} has no column '{columns.image}'; its columns are {', '.join(present)}; "
                "choose one with --image-column"
            )
        values = [row[text] for row in self._passing(self._only(text))]
        self.ids = np.array([f"{name}:{self.split}:{index:09d}" for index in range(len(values))])
        self.labels, self.captions = read_text(values, f"data set {name}", wanted)
        version = f"{getattr(rows.info, 'version', None)} {getattr(rows.info, 'dataset_size', None)}"
        self.fingerprint = digest([name, self.split, columns.image, version, *map(str, values)])

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """The bytes of each picture, as the stream passes by."""
        if not len(rows):
            return
        from datasets import Image

        stream = self._open().select_columns([self.columns.image]).cast_column(self.columns.image, Image(decode=False))
        wanted, first = set(rows.tolist()), int(rows[0])
        for row, item in enumerate(self._passing(stream.skip(first)), start=first):
            if row in wanted:
                yield picture_bytes(item[self.columns.image])
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
        """The rows of a stream. Raises FlasharError where it breaks off."""
        try:
            yield from stream
        except Exception as error:  # datasets passes on whatever its network and file libraries raise
            reason = " ".join(str(error).split())[:200]
            raise FlasharError(
                f"the stream of data set {self.name} broke off ({type(error).__name__}: {reason}); "
                "type the same command again to go on"
            ) from None

    def _only(self, column: str) -> Any:
        """The rows with this column alone; where the format allows it, nothing else is fetched."""
        try:
            return self._open(columns=[column])
        except FlasharError:  # only formats stored by column know this option
            return self._open().select_columns([column])
