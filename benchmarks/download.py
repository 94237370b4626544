"""Compare download-dataset.py with `load_dataset` and with streaming.

Makes a repository of ultrachat_200k's shape (8 parquet files in 4 splits, 1 000 rows a row group, 6.7 and
5.3 kB a row, half of that when compressed), serves it from the local hub, runs each way in a fresh
process with an empty cache, and prints a table in Markdown: bytes that the server sent, seconds, peak memory.
"""

import argparse
import asyncio
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import uvicorn
import yaml

from local_azureml.data_plane.hub import create_app

REPOSITORY = "HuggingFaceH4/ultrachat_200k"
SCRIPT = Path(__file__).parents[1] / "download-dataset.py"
SPLITS = {  # name: rows, files, bytes a row in memory
    "train_sft": (207_865, 3, 6721),
    "test_sft": (23_110, 1, 6694),
    "train_gen": (256_032, 3, 5263),
    "test_gen": (28_304, 1, 5239),
}
ROW_GROUP = 1000
TURNS = 6  # messages a row, on average
NAMES = {
    "script": "`download-dataset.py`",
    "ordinary": "`load_dataset`, `to_json`",
    "streaming": "streaming",
}
ORDINARY = """
import sys, time
from datasets import ReadInstruction, load_dataset
repository, percent, *splits = sys.argv[1:]
parts = {split: ReadInstruction(split, to=float(percent), unit="%") for split in splits}
loaded = {split: load_dataset(repository, split=part) for split, part in parts.items()}
print("loaded", time.time())
for split, rows in loaded.items():
    rows.to_json(f"{split}.jsonl")
"""
# A process inherits its parent's peak memory, so a small one starts what is measured.
LAUNCH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print("peak", usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
STREAMING = """
import json, os, sys
from datasets import load_dataset, load_dataset_builder
repository, percent, *splits = sys.argv[1:]
sizes = load_dataset_builder(repository).info.splits
for split in splits:
    wanted = round(sizes[split].num_examples * float(percent) / 100)
    with open(f"{split}.jsonl", "w") as file:
        for row in load_dataset(repository, split=split, streaming=True).take(wanted):
            file.write(json.dumps(row, ensure_ascii=False) + "\\n")
os._exit(0)  # its threads crash an orderly end
"""


MESSAGE = pyarrow.struct([("content", pyarrow.string()), ("role", pyarrow.string())])
SCHEMA = pyarrow.schema(
    [("prompt", pyarrow.string()), ("prompt_id", pyarrow.string()), ("messages", pyarrow.list_(MESSAGE))]
)


def make_repository(root: Path, scale: float) -> None:
    """Write the repository's card and files below `root`."""
    folder, draw = root / "datasets" / REPOSITORY, random.Random(7)
    (folder / "data").mkdir(parents=True)
    counts = {split: round(rows * scale) for split, (rows, *_) in SPLITS.items()}
    sizes = [
        {"name": split, "num_examples": count, "num_bytes": count * SPLITS[split][2]}
        for split, count in counts.items()
    ]
    paths = [{"split": split, "path": f"data/{split}-*"} for split in SPLITS]
    texts = [{"name": name, "dtype": "string"} for name in ("prompt", "prompt_id", "content", "role")]
    features = [*texts[:2], {"name": "messages", "list": texts[2:]}]
    card = {"dataset_info": {"features": features, "splits": sizes}}
    card["configs"] = [{"config_name": "default", "data_files": paths}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\nMade-up rows for a benchmark.\n")
    for split, (_, files, size) in SPLITS.items():
        for number in range(files):
            path = folder / "data" / f"{split}-{number:05}-of-{files:05}.parquet"
            first, last = (round(counts[split] * part / files) for part in (number, number + 1))
            with pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
                for start in range(first, last, ROW_GROUP):
                    writer.write_table(row_group(draw, min(ROW_GROUP, last - start), size, "gen" in split))


def row_group(draw: random.Random, rows: int, size: int, odd: bool) -> pyarrow.Table:
    """Rows of so many bytes on average, of which zstd saves half; the prompt repeats the first message."""
    made, each = [], (size - 64) / (TURNS + 1)
    for _ in range(rows):
        turns = max(2 + odd, draw.randrange(1, TURNS) * 2 - odd)
        texts = [draw.randbytes(max(10, int(draw.gammavariate(2, each / 4)))).hex() for _ in range(turns)]
        messages = [
            {"content": text, "role": ("user", "assistant")[turn % 2]} for turn, text in enumerate(texts)
        ]
        made.append({"prompt": texts[0], "prompt_id": draw.randbytes(32).hex(), "messages": messages})
    return pyarrow.Table.from_pylist(made, SCHEMA)


class Link:
    """The hub on a link of so many bytes a second, and how many of the files' bodies it has sent."""

    def __init__(self, root: Path, rate: float | None):
        self.hub, self.rate, self.sent, self.free_at = create_app(root), rate, 0, 0.0

    async def __call__(self, scope, receive, send):
        async def count(message):
            size = len(message.get("body", b""))
            self.sent += size
            if self.rate:  # all answers share it
                self.free_at = max(self.free_at, time.monotonic()) + size / self.rate
                await asyncio.sleep(self.free_at - time.monotonic())
            await send(message)

        await self.hub(scope, receive, count)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Give the address at which it answers."""
        server = uvicorn.Server(uvicorn.Config(self, port=0, lifespan="off", log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def run_measured(command: list[str], folder: Path, **variables: str) -> tuple[float, int, str]:
    """Run a command in a fresh process; return its seconds, the most bytes that it held, and what it said."""
    began = time.monotonic()
    command = [sys.executable, "-c", LAUNCH, *command]
    ended = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if ended.returncode:
        raise SystemExit(f"{command} failed:\n{ended.stderr}")
    peak = int(re.search(r"^peak (\d+)$", ended.stdout, re.MULTILINE)[1])
    return seconds, peak * (1 if sys.platform == "darwin" else 1024), ended.stdout


def measure(command: list[str], link: Link, address: str, work: Path) -> dict:
    """Run the command with an empty cache, and say what it took."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    before, began = link.sent, time.time()
    seconds, memory, said = run_measured(command, work, HF_ENDPOINT=address, HF_HOME=str(work / "cache"))
    loaded = re.search(r"^loaded ([\d.]+)$", said, re.MULTILINE)
    until_loaded = float(loaded[1]) - began if loaded else None
    return {"bytes": link.sent - before, "seconds": seconds, "memory": memory, "loaded": until_loaded}


def middle(measured: list[dict]) -> dict:
    """The median of each thing measured; None where it was not."""
    return {
        name: None if measured[0][name] is None else statistics.median(taken[name] for taken in measured)
        for name in measured[0]
    }


def bytes_of_groups(folder: Path, percent: float) -> int:
    """The compressed size of the row groups that hold the first rows of each split."""
    total = 0
    for split in SPLITS:
        footers = [pyarrow.parquet.read_metadata(path) for path in sorted(folder.glob(f"data/{split}-*"))]
        left = round(sum(footer.num_rows for footer in footers) * percent / 100)
        groups = [footer.row_group(number) for footer in footers for number in range(footer.num_row_groups)]
        for group in groups:
            if left > 0:
                total += sum(group.column(index).total_compressed_size for index in range(group.num_columns))
            left -= group.num_rows
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.05, help="1 is the real size, 1.6 GB (%(default)s)")
    parser.add_argument("--rate", type=float, help="speed of the link in MB/s (no limit)")
    parser.add_argument("--percent", type=float, nargs="+", default=[5, 100], help="(5 100)")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many (%(default)s)")
    parser.add_argument("--ways", nargs="+", default=[*NAMES], choices=[*NAMES])
    parser.add_argument("--folder", type=Path, help="keep the repository here, and use it again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = options.folder or Path(place, "root")
        if not root.exists():
            make_repository(root, options.scale)
        compare(root, Path(place, "work"), options)


def compare(root: Path, work: Path, options: argparse.Namespace) -> None:
    folder, link = root / "datasets" / REPOSITORY, Link(root, options.rate and options.rate * 1e6)
    size = sum(path.stat().st_size for path in folder.glob("data/*"))
    limit = f"a link of {options.rate:g} MB/s" if options.rate else "no limit on the link"
    print(f"{size / 1e6:,.1f} MB of parquet, {limit}, {os.cpu_count()} cores\n")
    print("| rows | way | MB | of the row groups | seconds | peak MB |\n|---|---|---|---|---|---|")
    with link.served() as address:
        for percent in options.percent:
            groups, ways = bytes_of_groups(folder, percent), commands(percent, options)
            rounds = [
                {way: measure(command, link, address, work) for way, command in ways.items()}
                for _ in range(options.rounds)
            ]
            for way in ways:
                show(percent, way, middle([taken[way] for taken in rounds]), groups)


def commands(percent: float, options: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of each way."""
    run, rest = [sys.executable, "-c"], [REPOSITORY, str(percent), *SPLITS]
    known = {"ordinary": [*run, ORDINARY, *rest], "streaming": [*run, STREAMING, *rest]}
    script = [sys.executable, str(SCRIPT), "--dataset_split_pc", str(percent), "--download_dir", "out"]
    script += ["--splits", *SPLITS]
    return {way: {**known, "script": script}[way] for way in options.ways}


def show(percent: float, way: str, taken: dict, groups: int) -> None:
    size, share, memory = taken["bytes"] / 1e6, taken["bytes"] / groups, taken["memory"] / 1e6
    seconds = f"{taken['seconds']:.1f}" + (f" ({taken['loaded']:.1f} to load)" if taken["loaded"] else "")
    print(
        f"| {percent:g} % | {NAMES[way]} | {size:,.1f} | {share:.2f} | {seconds} | {memory:,.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
