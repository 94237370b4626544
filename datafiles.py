"""The files that people have: which there are, and their rows one after another.

A file is JSON Lines, a JSON list, CSV or parquet, plain or gzipped. JSON and CSV are read row by row with
Python's own readers: those that build a typed table take contents that look like dates for dates, and stop at
a field whose type changes.
"""

import codecs
import csv
import difflib
import gzip
import io
import itertools
import json
import math
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow.parquet

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")  # and each with .gz
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
ROLES = {  # what a split is for -> the names that it has
    "train": ("train_sft", "train"),
    "test": ("test_sft", "test", "validation"),
    "unseen": ("test_gen",),
}
BETWEEN = re.compile(r"[\s,]*")  # the elements of a list
BLOCK = 1 << 20  # characters of a JSON list that are read at once


def own_files(dataset: str) -> dict[str, list[Path]]:
    """The files of a dataset that is a path, by split; none for a name of the hub."""
    if not dataset.strip():
        raise RuntimeError(
            "no dataset is named: give owner/name of the hub, or the path of a file or a folder"
        )
    path = Path(dataset).expanduser()
    above = [Path.cwd(), *Path.cwd().parents]  # a notebook may run in a folder of its own, below yours
    there = next((place / path for place in above if (place / path).exists()), None)
    if there is None:
        named = re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", dataset) and not dataset.startswith(".")
        if named and not split_of(path):
            return {}
        raise RuntimeError(f"there is no file {dataset}: {nearby(Path.cwd() / path)}")
    if there.is_file():
        return {"train": [there]}
    files = {}
    for file in sorted(there.iterdir()):
        if split := split_of(file):
            files.setdefault(split.lower(), []).append(file)
    if not files:
        raise RuntimeError(f"there are no data in the folder {there}: it takes {', '.join(SUFFIXES)}")
    used = {split: files[split] for split in roles(files, dataset).values()}
    for split, found in used.items():
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise RuntimeError(f"{there} has several files for {split}: {names}; leave one of them there")
    return used


def split_of(path: Path) -> str:
    """The file's name without its suffixes; "" where it is none of data."""
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def nearby(path: Path) -> str:
    """What there is where a file is not."""
    parent = next(folder for folder in path.parents if folder.is_dir())
    names = sorted(file.name for file in parent.iterdir() if split_of(file) or file.is_dir())
    like = difflib.get_close_matches(path.name, names, 5) or names[:5]
    return f"{parent} has {', '.join(like) or 'no data'}; give a path, or owner/name of the hub"


def roles(splits: Collection[str], dataset: str) -> dict[str, str]:
    """The split to train on, and those there are to test with and to ask about."""
    if len(splits) == 1:
        return {"train": next(iter(splits))}
    known = {role: next((name for name in names if name in splits), "") for role, names in ROLES.items()}
    if not known["train"]:
        raise RuntimeError(f"{dataset} has no split called train to learn from; it has {', '.join(splits)}")
    return {role: name for role, name in known.items() if name}


def read(path: Path) -> Iterator[tuple[int, object]]:
    """Each row of a file with its line or number; a ValueError in its place where it can't be read."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            yield from _rows(file, [suffix.lower() for suffix in path.suffixes])
    except UnicodeDecodeError as error:
        byte, save = error.object[error.start], "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise ValueError(
            f"{path} is not in {error.encoding}, as its byte 0x{byte:02x} shows: {save}"
        ) from None
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV, perhaps since a quote is not closed: {error}") from None
    except (ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} {error}") from None
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _rows(file: io.BufferedIOBase, suffixes: list[str]) -> Iterator[tuple[int, object]]:
    head = file.read(4)
    file.seek(0)
    if head == b"PAR1":
        return _of_parquet(file)
    if head[:2] == b"PK":
        raise ValueError("is an Excel workbook or a zip archive: save it as CSV UTF-8, or unpack it")
    encoding = next((known for mark, known in BOMS.items() if head.startswith(mark)), "utf-8")
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) or (encoding == "utf-8" and b"\0" in head):
        raise ValueError("is neither UTF-8, nor UTF-16 with a byte-order mark: save it as UTF-8")
    text = io.TextIOWrapper(file, encoding, newline="")
    if {".csv", ".tsv"} & set(suffixes):
        return _of_csv(text)
    first, line = text.read(1), 1
    while first.isspace():
        line += first == "\n"
        first = text.read(1)
    if first == "[":
        return _of_list(text)
    begun = first + text.readline()
    if begun.strip() == "{":
        raise ValueError("has JSON that goes over many lines: put one row on each line, or all in one list")
    return _of_lines(itertools.chain([begun], text), line)


def _unique(pairs: list[tuple]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands twice")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _of_lines(lines: Iterator[str], first: int) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, first):
        if line.strip():
            try:
                yield number, DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"it is not JSON: {error}")


def _of_list(file: io.TextIOBase) -> Iterator[tuple[int, object]]:
    """The elements of a JSON list whose bracket has been read, without holding all of them."""
    text, at = "", 0
    for number in itertools.count(1):
        while True:
            at = BETWEEN.match(text, at).end()
            if text[at : at + 1] == "]":
                if text[at + 1 :].strip() or file.read().strip():
                    raise ValueError("goes on after its list: put all rows in one list")
                return
            try:
                row, at = DECODER.raw_decode(text, at)
                break
            except json.JSONDecodeError as error:  # or only the end of what is read so far
                wrong = error.pos + 16 < len(text) and "Unterminated" not in error.msg
                more = "" if wrong else file.read(max(BLOCK, len(text) - at))
                if not more:
                    raise ValueError(f"is no JSON list: row {number}, {error.msg}") from None
                text, at = text[at:] + more, 0
            except (ValueError, RecursionError) as error:
                raise ValueError(f"can't be read: row {number}, {error}") from None
        yield number, row


def _of_csv(text: io.TextIOBase) -> Iterator[tuple[int, object]]:
    csv.field_size_limit(2**31 - 1)
    head = text.readline()
    delimiter = max(",;\t", key=head.count)
    rows = csv.DictReader(itertools.chain([head], text), delimiter=delimiter, strict=True)
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
    if len(set(rows.fieldnames)) < len(rows.fieldnames):
        raise ValueError(f"has two columns of one name: {', '.join(rows.fieldnames)}")
    for row in rows:
        surplus = ValueError(f"it has more fields than the {len(rows.fieldnames)} of the first line")
        yield rows.line_num, surplus if None in row else row


def _of_parquet(file: io.BufferedIOBase) -> Iterator[tuple[int, object]]:
    with tempfile.TemporaryFile() as plain:  # gzip can't be read from its end, where parquet begins
        if isinstance(file, gzip.GzipFile):
            shutil.copyfileobj(file, plain)
        table = pyarrow.parquet.ParquetFile(plain if isinstance(file, gzip.GzipFile) else file)
        batches = (batch.to_pylist() for batch in table.iter_batches(256))
        yield from enumerate(itertools.chain.from_iterable(batches), 1)


def file_groups(paths: list[Path], rows: int | None = None) -> list[tuple]:
    """Each file as a group: its rows, a thousand at a time, or as many as are left of the first `rows`."""
    left = itertools.repeat(None) if rows is None else iter(range(rows))
    groups = []
    for path in paths:
        pairs = (pair for pair, _ in zip(read(path), left, strict=False))
        groups.append(
            (path.name, 0, math.inf, iter(lambda pairs=pairs: list(itertools.islice(pairs, 1000)), []))
        )
    return groups
