"""Reading conversations from the formats that the component takes."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
from pyarrow import csv, parquet
from pyarrow import json as jsonlines

from local_azureml.engine.processes import UserError

COLUMNS = ("messages", "tools")  # the others are dropped


def _read_jsonl(path: Path) -> pyarrow.Table:
    return jsonlines.read_json(path, read_options=jsonlines.ReadOptions(block_size=1 << 26))


def _read_json(path: Path) -> pyarrow.Table:
    """Return the rows of a JSON list, or of JSON Lines under this name."""
    text = path.read_text(encoding="utf-8")
    return pyarrow.Table.from_pylist(json.loads(text)) if text.lstrip().startswith("[") else _read_jsonl(path)


def _read_csv(path: Path) -> pyarrow.Table:
    return _parsed(csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True)))


def _read_tsv(path: Path) -> pyarrow.Table:
    return _parsed(
        csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t", newlines_in_values=True))
    )


FORMATS: dict[str, Callable[[Path], pyarrow.Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": parquet.read_table,
}


def read(path: Path) -> pyarrow.Table:
    """Return the file's `messages` (and `tools`) columns."""
    try:
        table = FORMATS[path.suffix](path)
    except (pyarrow.ArrowException, ValueError, AttributeError) as error:
        raise UserError(f"{path.name} can't be read: {str(error).splitlines()[0]}") from error
    _require_messages(path, table.column_names)
    return table.select([name for name in COLUMNS if name in table.column_names])


def read_head(path: Path) -> None:
    """Raise where the file's first row shows that it can't be used; cheap for JSON Lines and parquet."""
    if path.suffix == ".parquet":
        _require_messages(path, _schema(path).names)
    elif path.suffix == ".jsonl":
        _require_messages(path, list(_first_row(path)))
    else:
        read(path)


def _schema(path: Path) -> pyarrow.Schema:
    try:
        return parquet.read_schema(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path.name} can't be read: {str(error).splitlines()[0]}") from error


def _first_row(path: Path) -> dict:
    with path.open(encoding="utf-8") as lines:
        first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UserError(f"{path.name} is empty; it has to hold one conversation a line")
    try:
        row = json.loads(first)
    except ValueError as error:
        raise UserError(f"{path.name} can't be read: line 1 is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{path.name}: line 1 is not a JSON object; it has to be one with a list `messages`")
    return row


def _parsed(table: pyarrow.Table) -> pyarrow.Table:
    """Return the table with its `messages` column read from JSON text, as csv and tsv hold it."""
    if "messages" not in table.column_names:
        return table
    column = table.column_names.index("messages")
    parsed = [json.loads(cell) if cell else None for cell in table["messages"].to_pylist()]
    return table.set_column(column, "messages", pyarrow.array(parsed))


def _require_messages(path: Path, columns: list[str]) -> None:
    if "messages" not in columns:
        raise UserError(
            f"{path.name} has no column `messages`; its columns are {', '.join(columns) or 'none'}"
        )
