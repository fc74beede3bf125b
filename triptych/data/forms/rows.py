"""Parquet whose rows hold the pictures' own bytes: image {bytes, path} and a column of captions, as `datasets` writes it.

Reading it takes pyarrow, an extra: `pip install 'triptych[parquet]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..picture import MOST_BYTES
from . import Fault, Found, Reading, column_of, said

__all__ = ["find", "read", "records"]

AT_ONCE = 64  # rows in memory, while a file is read through


def find(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """Every row of every file, named FILE/ROW. A row without a picture or a caption is a fault."""
    every = [root] if root.is_file() else sorted(path for path in root.rglob("*.parquet") if path.is_file())
    if not every:
        raise ValueError(f"{root} holds no .parquet file")
    for path in every:
        schema = _opened(path).schema_arrow
        image = _image_column(path)
        column = column_of([name for name in schema.names if name != image], how.column, str(path)) if how.captions else ""
        file = path.name if root.is_file() else path.relative_to(root).as_posix()
        for number, row in records(path, [image, *([column] if column else [])]):
            name, captions = f"{file}/{number}", said(row.get(column)) if column else ()
            data = _bytes(row[image])
            if data is None:
                yield Fault(name, f"{image!r} holds no bytes")
            elif len(data) > MOST_BYTES:
                yield Fault(name, f"{len(data)} bytes are more than {MOST_BYTES}")
            elif column and not captions:
                yield Fault(name, f"{column!r} says nothing")
            else:
                yield Found(name, captions, file, number, -2)


def read(path: Path, row: int) -> bytes:
    """A row's picture. Raises ValueError with the reason."""
    first, pictures = _group(path, path.stat().st_mtime_ns, _group_of(path, row))
    data = pictures[row - first] if row - first < len(pictures) else None
    if data is None:
        raise ValueError("it is gone")
    return data


def records(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of a file, a few rows in memory at a time. Raises ValueError for a file that is none."""
    number = 0
    try:
        for batch in _opened(path).iter_batches(batch_size=AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except OSError as error:
        raise ValueError(f"{path} is damaged behind row {number}: {' '.join(str(error).split())[:200]}") from None


def _opened(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet takes pyarrow; install it: pip install 'triptych[parquet]'") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these two
        raise ValueError(f"{path} is no Parquet file that can be read: {' '.join(str(error).split())[:200]}") from None


def _image_column(path: Path) -> str:
    """The column of structs that hold bytes; or of bytes alone."""
    import pyarrow as pa

    schema = _opened(path).schema_arrow
    for field in schema:
        if pa.types.is_struct(field.type) and "bytes" in [field.type.field(i).name for i in range(field.type.num_fields)]:
            return field.name
    for field in schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return field.name
    raise ValueError(f"{path} has no column of pictures (a struct with 'bytes', or bytes); there are: {', '.join(schema.names)}")


def _bytes(cell: Any) -> bytes | None:
    return cell.get("bytes") if isinstance(cell, dict) else cell


def _group_of(path: Path, row: int) -> int:
    metadata, first = _opened(path).metadata, 0
    for group in range(metadata.num_row_groups):
        first += metadata.row_group(group).num_rows
        if row < first:
            return group
    raise ValueError("it is gone")


@lru_cache(maxsize=2)
def _group(path: Path, changed: int, group: int) -> tuple[int, list[bytes | None]]:
    """(number of its first row, pictures) of a row group: what stands together is read together."""
    file, image = _opened(path), _image_column(path)
    first = sum(file.metadata.row_group(i).num_rows for i in range(group))
    return first, [_bytes(cell) for cell in file.read_row_group(group, columns=[image]).column(image).to_pylist()]
