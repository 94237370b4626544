"""How long download-dataset.py takes for a large file of one's own, and how much memory.

Writes the same conversations in each format, checks and converts each in a fresh process, and prints a
table in Markdown: the file's size, seconds, peak memory.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet

from benchmarks.download import SCRIPT, run_measured

ASKED, SAID = "How do I clean my drill? " * 8, "Ahoy! Wipe it with a cloth. Fair winds! " * 8
ROW = {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]}
BATCH = 10_000  # rows in a row group


def write_lines(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for _ in range(rows):
            file.write(json.dumps(ROW) + "\n")


def write_list(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            file.write(("," if number else "[") + json.dumps(ROW))
        file.write("]")


def write_csv(path: Path, rows: int) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "completion"])
        table.writerows([ASKED, SAID] for _ in range(rows))


def write_parquet(path: Path, rows: int) -> None:
    batch = pyarrow.Table.from_pylist([ROW] * BATCH)
    with pyarrow.parquet.ParquetWriter(path, batch.schema, use_dictionary=False) as file:
        for first in range(0, rows, BATCH):
            file.write_table(batch.slice(0, rows - first))


FORMATS = {"jsonl": write_lines, "json": write_list, "csv": write_csv, "parquet": write_parquet}
WAYS = {"check": ["--check"], "convert": ["--download_dir", "out", "--dataset"]}


def measure(path: Path, words: list[str]) -> str:
    """The cells of a row of the table."""
    command = [sys.executable, str(SCRIPT), *words, path.name]
    seconds, memory, _ = run_measured(command, path.parent)
    return f"{path.stat().st_size / 1e6:,.0f} | {seconds:.1f} | {memory / 1e6:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--formats", nargs="+", default=[*FORMATS], choices=FORMATS)
    options = parser.parse_args()
    print(f"{options.rows:,} rows, {os.cpu_count()} cores\n")
    print("| way | format | MB | seconds | peak MB |\n|---|---|---|---|---|")
    for form in options.formats:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, f"mine.{form}")
            FORMATS[form](path, options.rows)
            for way, words in WAYS.items():
                print(f"| {way} | {form} | {measure(path, words)} |", flush=True)


if __name__ == "__main__":
    main()
