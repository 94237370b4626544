"""Reading conversations from the formats that the component takes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
from pyarrow import json as jsonlines
from pyarrow import parquet

from local_azureml.engine.processes import UserError

MESSAGE = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})
SCHEMA = pyarrow.schema({"messages": pyarrow.list_(MESSAGE)})  # what else a row has may be of any type


def _read_jsonl(path: Path) -> pyarrow.Table:
    _require_messages(path, list(_first_row(path)))
    typed = jsonlines.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore")
    return jsonlines.read_json(path, jsonlines.ReadOptions(block_size=1 << 26), typed)


def _read_json(path: Path) -> pyarrow.Table:
    """Return the rows of a JSON list, or of JSON Lines under this name."""
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    rows = json.loads(text)
    _require_messages(path, sorted({name for row in rows for name in row}))
    return pyarrow.Table.from_pylist(rows, SCHEMA)


def _read_csv(path: Path, delimiter: str = ",") -> pyarrow.Table:
    """Return the rows of a file whose column `messages` holds JSON text."""
    with path.open(encoding="utf-8-sig", newline="") as text:
        csv.field_size_limit(1 << 30)  # characters; a conversation is long
        table = csv.DictReader(text, delimiter=delimiter)
        _require_messages(path, table.fieldnames or [])
        cells = [row["messages"] for row in table]
    rows = [{"messages": json.loads(cell) if cell else None} for cell in cells]
    return pyarrow.Table.from_pylist(rows, SCHEMA)


def _read_parquet(path: Path) -> pyarrow.Table:
    _require_messages(path, _schema(path).names)
    return parquet.read_table(path, columns=SCHEMA.names)


FORMATS: dict[str, Callable[[Path], pyarrow.Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": lambda path: _read_csv(path, "\t"),
    ".parquet": _read_parquet,
}


def read(path: Path) -> pyarrow.Table:
    """Return the file's column `messages`."""
    try:
        return FORMATS[path.suffix](path)
    except (pyarrow.ArrowException, csv.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path.name} can't be read: {str(error).splitlines()[0]}") from error


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


def _require_messages(path: Path, columns: list[str]) -> None:
    if "messages" not in columns:
        raise UserError(
            f"{path.name} has no column `messages`; its columns are {', '.join(columns) or 'none'}"
        )
