"""Compare download-dataset.py with `load_dataset` and with streaming.

Makes a repository of ultrachat_200k's shape (8 parquet files in 4 splits, 1 000 rows a row group, 6.7 and
5.3 kB a row, about half of that when compressed), serves it from the local hub, runs each way in a fresh
process with an empty cache, and prints a table in Markdown: bytes that the server sent, seconds, peak memory.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet

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
ZIPF = 1.15  # how common the common words are; makes the text compress as the real one does
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


def make_repository(root: Path, scale: float) -> None:
    """Write the repository's card and files below `root`."""
    folder = root / "datasets" / REPOSITORY
    (folder / "data").mkdir(parents=True)
    random = numpy.random.default_rng(7)
    text = pseudo_text(random, words=12_000_000)
    card = ["dataset_info:", "  features:", "  - {name: prompt, dtype: string}"]
    card += ["  - {name: prompt_id, dtype: string}", "  - name: messages", "    list:"]
    card += ["    - {name: content, dtype: string}", "    - {name: role, dtype: string}", "  splits:"]
    for split, (rows, _, size) in SPLITS.items():
        rows = round(rows * scale)
        card.append(f"  - {{name: {split}, num_examples: {rows}, num_bytes: {rows * size}}}")
    card += ["configs:", "- config_name: default", "  data_files:"]
    card += [f"  - {{split: {split}, path: data/{split}-*}}" for split in SPLITS]
    (folder / "README.md").write_text("\n".join(["---", *card, "---", "Made-up rows for a benchmark.", ""]))
    for split, (rows, files, size) in SPLITS.items():
        for number in range(files):
            path = folder / "data" / f"{split}-{number:05}-of-{files:05}.parquet"
            first, last = (round(round(rows * scale) * part / files) for part in (number, number + 1))
            write_file(path, text, random, last - first, size, odd="gen" in split)


def pseudo_text(random: numpy.random.Generator, words: int) -> bytes:
    """Words that are as common as in English, long enough that a compressor finds few repetitions."""
    letters = numpy.frombuffer(b"etaoinshrdlucmfwypvbgkqjxz", dtype=numpy.uint8)
    likely = 1 / numpy.arange(2, 28)
    lengths = random.integers(2, 11, 50_000)
    drawn = random.choice(letters, lengths.sum(), p=likely / likely.sum()).tobytes()
    ends = numpy.cumsum(lengths)
    vocabulary = [drawn[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    ranks = numpy.minimum(random.zipf(ZIPF, words) - 1, random.integers(0, 50_000, words))
    return b" ".join([vocabulary[rank] for rank in ranks])


def write_file(path: Path, text: bytes, random, rows: int, size: int, odd: bool) -> None:
    with pyarrow.parquet.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, rows, ROW_GROUP):
            group = conversations(text, random, min(ROW_GROUP, rows - start), size, odd)
            writer.write_table(group, row_group_size=ROW_GROUP)


MESSAGE = pyarrow.struct([("content", pyarrow.string()), ("role", pyarrow.string())])
SCHEMA = pyarrow.schema(
    [("prompt", pyarrow.string()), ("prompt_id", pyarrow.string()), ("messages", pyarrow.list_(MESSAGE))]
)


def conversations(text: bytes, random, rows: int, size: int, odd: bool) -> pyarrow.Table:
    """A row group; the prompt repeats the first message, as in the real one."""
    turns = random.integers(1, TURNS, rows) * 2 - odd
    turns[turns < 2] = 3
    each = (size - 64) / (TURNS + 1)
    lengths = numpy.maximum(random.gamma(2, each / 2, turns.sum()).astype(int), 20)
    starts = random.integers(0, len(text) - lengths.max(), turns.sum())
    contents = [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    first = numpy.concatenate([[0], numpy.cumsum(turns)])
    roles = numpy.tile(["user", "assistant"], turns.max() // 2 + 1)
    messages = pyarrow.StructArray.from_arrays(
        [
            pyarrow.array(contents, pyarrow.binary()).cast(pyarrow.string()),
            pyarrow.array(numpy.concatenate([roles[:count] for count in turns])),
        ],
        fields=list(MESSAGE),
    )
    prompts = pyarrow.array([contents[index] for index in first[:-1]], pyarrow.binary()).cast(
        pyarrow.string()
    )
    identities = pyarrow.array([os.urandom(32).hex() for _ in range(rows)])
    listed = pyarrow.ListArray.from_arrays(pyarrow.array(first, pyarrow.int32()), messages)
    return pyarrow.Table.from_arrays([prompts, identities, listed], schema=SCHEMA)


def serve(root: Path, rate: float | None, port: int, sent) -> None:
    """Run the hub on a link of so many bytes a second, and count the bytes of the files' bodies."""
    import uvicorn

    from local_azureml.data_plane.hub import create_app

    hub, free_at = create_app(root), 0.0

    async def counting(scope, receive, send):
        async def count(message):
            nonlocal free_at
            size = len(message.get("body", b""))
            sent.value += size
            if rate:  # the link, which all answers share
                free_at = max(free_at, time.monotonic()) + size / rate
                await asyncio.sleep(free_at - time.monotonic())
            await send(message)

        await hub(scope, receive, count if scope["type"] == "http" else send)

    uvicorn.run(counting, host="127.0.0.1", port=port, log_level="error")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(command: list[str], port: int, sent, work: Path) -> dict:
    """Run the command in a fresh process with an empty cache, and say what it took."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(work / "cache")}
    before, began = sent.value, time.time()
    command = [sys.executable, "-c", LAUNCH, *command]
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    seconds = time.time() - began
    if ended.returncode:
        raise SystemExit(f"{command} failed:\n{ended.stderr}")
    said = dict(re.findall(r"^(peak|loaded) ([\d.]+)$", ended.stdout, re.MULTILINE))
    loaded = float(said["loaded"]) - began if "loaded" in said else None
    memory = int(said["peak"]) * (1 if sys.platform == "darwin" else 1024)
    return {"bytes": sent.value - before, "seconds": seconds, "memory": memory, "loaded": loaded}


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
    folder, port, sent = root / "datasets" / REPOSITORY, free_port(), multiprocessing.Value("q", lock=False)
    size = sum(path.stat().st_size for path in folder.glob("data/*"))
    rate = options.rate and options.rate * 1e6
    server = multiprocessing.Process(target=serve, args=(root, rate, port, sent), daemon=True)
    server.start()
    try:
        wait_for(port)
        link = f"a link of {options.rate:g} MB/s" if rate else "no limit on the link"
        print(f"{size / 1e6:,.1f} MB of parquet, {link}, {os.cpu_count()} cores\n")
        print("| rows | way | MB | of the row groups | seconds | peak MB |")
        print("|---|---|---|---|---|---|")
        for percent in options.percent:
            groups = bytes_of_groups(folder, percent)
            ways = commands(percent, options)
            rounds = [
                {way: measure(command, port, sent, work) for way, command in ways.items()}
                for _ in range(options.rounds)
            ]
            for way in ways:
                show(percent, way, middle([taken[way] for taken in rounds]), groups)
    finally:
        server.terminate()
        server.join()


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


def wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
