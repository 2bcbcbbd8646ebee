"""Parquet files from outside: every problem with one becomes a FlasharError of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import check_file, open_file

MOST_ROWS_A_BYTE = 8  # a damaged file may claim any number of rows


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """``pyarrow.parquet.ParquetFile``. Raises FlasharError for another file, and for damage that is found while it is
    read in the context.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FlasharError(f"{path} needs the pyarrow package, which comes with datasets; install it") from None
    size = check_file(path)
    try:
        with open_file(path) as content:
            footer = pq.ParquetFile(content)
            num_rows = footer.metadata.num_rows
            if not 0 <= num_rows <= MOST_ROWS_A_BYTE * size:
                raise FlasharError(f"{path} claims {num_rows} rows in {size} bytes; it is damaged, write it again")
            yield footer
    except FlasharError:
        raise
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FlasharError(f"{path} cannot be read as Parquet ({reason}); download or write it again") from None
