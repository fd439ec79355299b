"""Parquet files. In: a path and columns. Out: rows as dicts, or an error that names the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r1ranker.errors import DataError


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with these columns, a batch of them in memory at a time. Raises DataError."""
    import pyarrow as pa  # here: what reads no such file starts faster without it
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        lacking = [column for column in columns if column not in parquet.schema_arrow.names]
        if lacking:
            raise DataError(f"{file}: has no column {lacking[0]!r}, but {', '.join(parquet.schema_arrow.names)}")
        for batch in parquet.iter_batches(columns=list(columns)):
            yield from batch.to_pylist()
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable parquet file: {error}") from error
