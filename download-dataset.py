"""Fetch the first N percent of a dataset's splits from the Hugging Face hub as JSON Lines, and check them.

  python download-dataset.py --dataset HuggingFaceH4/ultrachat_200k --dataset_split_pc 5
  python download-dataset.py --dataset my/chats --revision v2 --splits train --drop_bad_rows
  python download-dataset.py --check my-conversations.jsonl

The rows are those of `load_dataset(split="<split>[0%:N%]")`. A parquet file says in its footer where its row
groups lie, so only the footers and the row groups that hold the rows are fetched. An interrupted run goes on
after the last row group that is written. Each row is checked against what chat fine-tuning demands.
A private or gated dataset needs a token: `hf auth login`, or the environment variable HF_TOKEN.
"""

import argparse
import contextlib
import errno
import json
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pyarrow.parquet
from filelock import FileLock
from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from tqdm import tqdm

AHEAD = 40 << 20  # decoded bytes of row groups that are fetched ahead; a larger group is streamed
BATCH = 2 << 20  # decoded bytes of rows that are written at once
QUOTED_ROWS = 5  # bad rows quoted for each file; all are counted
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=lambda date: date.isoformat())
HEADS = (("", "", *["turns"] * 3, *["characters"] * 3), ("good", "bad", *["median", "95% up to", "most"] * 2))
FAILURES = (OSError, ValueError, TypeError, RuntimeError, httpx.HTTPError, pyarrow.ArrowException)


def main() -> None:
    parser = command_line()
    options = parser.parse_args()
    if not 0 <= options.dataset_split_pc <= 100:
        parser.error(f"--dataset_split_pc {options.dataset_split_pc} is not a percentage from 0 to 100")
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # gives back what is freed
    for attempt in range(max(0, options.retries) + 1):
        try:
            return check_files(options.check) if options.check else download(options)
        except FAILURES as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            if attempt >= options.retries or not (status >= 429 or isinstance(error, httpx.TransportError)):
                sys.exit(f"download-dataset.py: {explain(error, status)}")
        except KeyboardInterrupt:
            sys.exit("download-dataset.py: interrupted; the same command goes on where it stopped")
        time.sleep(min(8, 2**attempt))


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="HuggingFaceH4/ultrachat_200k", help="owner/name on the hub (%(default)s)")
    add("--dataset_subset", metavar="NAME", help="configuration, where the dataset has several")
    add("--dataset_split_pc", type=float, default=5, metavar="N", help="percent of each split (%(default)s)")
    add("--download_dir", type=Path, metavar="FOLDER", help="where the files go (<name>_dataset)")
    add("--splits", nargs="+", metavar="SPLIT", help="only these splits (all)")
    add("--revision", default="main", help="branch, tag or commit (%(default)s)")
    add("--no_check", action="store_true", help="take every row, where the dataset has no conversations")
    add("--retries", type=int, default=5, metavar="N", help="tries after a network failure (%(default)s)")
    one_of = parser.add_mutually_exclusive_group().add_argument  # a check never changes your file
    one_of("--drop_bad_rows", action="store_true", help="leave out rows that fail the check; do not stop")
    one_of("--check", nargs="+", type=Path, metavar="FILE", help="only check JSON Lines files of your own")
    return parser


class Check:
    """What is found in the rows of a file, or of a part of it that begins after `before` rows."""

    def __init__(self, name: str, before: int = 0) -> None:
        self.name, self.before, self.rows = name, before, 0  # rows that pass
        self.turns, self.characters, self.quotes, self.bad_rows = [], [], [], Counter()

    def passes(self, row: object) -> bool:
        """Whether the row is fit for training; either way it is counted."""
        messages = row.get("messages") if isinstance(row, dict) else None
        if fault := find_fault(messages):
            self.reject(*fault)
        else:
            self.rows += 1
            self.turns.append(len(messages))
            self.characters.append(sum(len(message["content"]) for message in messages))
        return not fault

    def reject(self, category: str, reason: str) -> None:
        self.bad_rows[category] += 1
        if len(self.quotes) < QUOTED_ROWS:
            line = self.before + self.rows + self.bad_rows.total()
            self.quotes.append(f"{self.name}:{line}: {category}: {reason}")


def find_fault(messages: object) -> tuple[str, str] | None:
    """The category and the reason why a conversation can't be trained on, or None."""
    if not isinstance(messages, list):
        return "no_messages", f"'messages' is {'missing' if messages is None else 'not a list'}"
    if len(messages) < 2:
        return "too_short", f"{len(messages)} message(s), where a conversation has two or more"
    due = "user"
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
        if not isinstance(role, str) or not isinstance(content, str):
            return "not_a_message", f"message {number} has no role or no content that is a string"
        if not content or content.isspace():
            return "empty_content", f"message {number}, the {role}'s, is empty"
        if role != due and (role, number) != ("system", 1):
            categories = {"user": "not_alternating", "assistant": "not_alternating", "system": "late_system"}
            return categories.get(role, "unknown_role"), f"message {number} is by {role!r}, not by {due!r}"
        due = "assistant" if role == "user" else "user"
    return None


def summary(parts: list[dict]) -> dict:
    """What is found in all parts of a file, with median, 95th percentile and maximum of the lengths."""
    found = {"rows": sum(part["rows"] for part in parts)}
    found["bad_rows"] = dict(sum((Counter(part["bad_rows"]) for part in parts), Counter()))
    found["quotes"] = [quote for part in parts for quote in part["quotes"]][:QUOTED_ROWS]
    for name in ("turns", "characters"):
        lengths = [length for part in parts for length in part[name]] or [0]
        quantiles = numpy.quantile(lengths, [0.5, 0.95, 1], method="inverted_cdf")
        found[name] = dict(zip(("median", "95%", "most"), quantiles.tolist(), strict=True))
    return found


def check_files(paths: list[Path]) -> None:
    """Check the user's own files and print what was found."""
    found = {}
    for path in paths:
        check = Check(str(path))
        with path.open("rb") as file:
            for line in file:
                try:
                    check.passes(json.loads(line))
                except ValueError as error:
                    check.reject("not_json", str(error) if line.strip() else "the line is blank")
        found[check.name] = summary([vars(check)])
    show(found, advice="mend or remove them before training")
    if empty := [name for name, entry in found.items() if not entry["rows"]]:
        raise RuntimeError(f"there are no rows in {', '.join(empty)}")


def show(found: dict[str, dict], advice: str = "") -> None:
    """Print rows, turns and lengths, a line for each file; with advice, stop where rows failed the check."""
    width = max(map(len, found))
    print(*(" ".join([" " * width, *map("{:>10}".format, titles)]) for titles in HEADS), sep="\n")
    for name, entry in found.items():
        counts = [entry["rows"], sum(entry["bad_rows"].values())]
        counts += [*entry["turns"].values(), *entry["characters"].values()]
        print(name.ljust(width), *map("{:>10,}".format, counts))
    bad = sum((Counter(entry["bad_rows"]) for entry in found.values()), Counter())
    if bad and advice:
        print(*(quote for entry in found.values() for quote in entry["quotes"]), sep="\n", file=sys.stderr)
        rows = bad.total() + sum(entry["rows"] for entry in found.values())
        categories = ", ".join(f"{count:,} {category}" for category, count in bad.most_common())
        raise RuntimeError(f"{bad.total():,} of {rows:,} rows fail the check ({categories}); {advice}")


def needed_groups(hub: HfFileSystem, footers: dict, rows: int, schema: pyarrow.Schema) -> Iterator[tuple]:
    """The row groups that hold the first `rows` rows: how many, the bytes they take, and tables to read."""
    for path, footer in footers.items():
        for number in range(footer.num_row_groups):
            group, file = footer.row_group(number), hub.open(path, cache_type="none")
            if held := min(rows, group.num_rows):
                yield held, group.total_byte_size, read_group(file, footer, number, held, schema)
            rows -= held


def read_group(file, footer, number: int, rows: int, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """The first `rows` rows of a row group as `datasets` has them, a few megabytes at a time."""
    from datasets.table import table_cast

    size = footer.row_group(number).total_byte_size
    step = max(1, BATCH * footer.row_group(number).num_rows // max(1, size))
    reader = pyarrow.parquet.ParquetFile(file, metadata=footer, pre_buffer=size <= AHEAD, buffer_size=BATCH)
    batches = reader.iter_batches(step, row_groups=[number])
    while rows:
        batch = next(batches).slice(0, rows)
        rows -= len(batch)
        yield table_cast(pyarrow.Table.from_batches([batch]), schema)


def read_ahead(groups: list[tuple]) -> Iterator[Iterable[pyarrow.Table]]:
    """The tables of each group, in order; the next are read meanwhile, unless one is too large to hold."""
    waiting, coming = deque(groups), deque()
    with ThreadPoolExecutor() as pool:
        while waiting or coming:
            while waiting and (not coming or sum(size for size, _ in coming) + waiting[0][1] <= AHEAD):
                _, size, tables = waiting.popleft()
                coming.append((size, pool.submit(list if size <= AHEAD else iter, tables)))
            yield coming.popleft()[1].result()


def save_split(path: Path, groups: list[tuple], no_check: bool) -> dict:
    """Write the rows that pass, after those of the groups that an earlier run finished; say what is found."""
    notes = path.with_suffix(".notes")  # a line for each finished group
    lines = notes.read_text().splitlines(keepends=True) if path.exists() and notes.exists() else []
    parts = [json.loads(line) for line in lines if line.endswith("\n")]
    parts = [part for part in parts if part["end"] <= path.stat().st_size]  # bytes that reached the disk
    shown = {"desc": path.stem, "unit": " row groups", "initial": len(parts), "total": len(groups)}
    with path.open("ab") as file, notes.open("w") as journal:
        file.truncate(parts[-1]["end"] if parts else 0)
        journal.writelines(json.dumps(part) + "\n" for part in parts)
        for tables in tqdm(read_ahead(groups[len(parts) :]), **shown, disable=None):
            check = Check(path.name, before=sum(rows for rows, _, _ in groups[: len(parts)]))
            for rows in (table.to_pylist() for table in tables):
                fit = rows if no_check else list(filter(check.passes, rows))
                check.rows += len(fit) if no_check else 0
                file.write("".join(map(json_line, fit)).encode())
            file.flush()
            parts.append(vars(check) | {"end": file.seek(0, 2)})
            print(json.dumps(parts[-1]), file=journal, flush=True)
    return {"file": path.name, "bytes": path.stat().st_size} | summary(parts)


def json_line(row: dict) -> str:
    """The row as JSON, with null for NaN and the infinities."""
    try:
        return ENCODER.encode(row) + "\n"
    except AttributeError as error:
        raise TypeError(f"a column holds values that JSON Lines cannot carry: {error}") from error
    except ValueError:
        text = json.dumps(row, default=ENCODER.default)
        return ENCODER.encode(json.loads(text, parse_constant=lambda name: None)) + "\n"


def find_dataset(options: argparse.Namespace) -> tuple[str, dict[str, list[str]], dict | None]:
    """The dataset's commit, the parquet files of each split, and the columns, if its card states them."""
    from datasets import load_dataset_builder  # over a second, so not at the top
    from datasets.packaged_modules.parquet.parquet import Parquet

    patience = constants.HF_HUB_DOWNLOAD_TIMEOUT
    info = HfApi().dataset_info(options.dataset, revision=options.revision, timeout=patience)
    builder = load_dataset_builder(info.id, name=options.dataset_subset, revision=info.sha)
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    if not files:  # `datasets` takes its own cache where the hub fails
        raise RuntimeError(f"{constants.ENDPOINT} does not list the files of {info.id}; run again later")
    if not isinstance(builder, Parquet) or builder.config.columns or builder.config.filters is not None:
        copy = "the hub keeps a parquet copy of public datasets: --revision refs/convert/parquet"
        raise RuntimeError(f"{info.id} is not plain parquet, and other formats are not read; {copy}")
    for split in options.splits or files:
        if split not in files or Path(split).name != split:
            raise RuntimeError(f"{info.id} has no split {split!r}; it has {', '.join(files)}")
    return info.sha, files, builder.info.features


def plan(options: argparse.Namespace, files: dict[str, list[str]], features: dict | None) -> Iterator[tuple]:
    """Each split, how many rows it has, and the row groups that hold the wanted ones."""
    from datasets import Features, ReadInstruction

    hub, first = HfFileSystem(), next(iter(files.values()))[0]  # whose columns count for all files
    splits = {split: files[split] for split in options.splits or files}
    opened = {path: hub.open(path, cache_type="none") for path in sum(splits.values(), [first])}
    with ThreadPoolExecutor() as pool:
        footers = dict(zip(opened, pool.map(pyarrow.parquet.read_metadata, opened.values()), strict=True))
    schema = (features or Features.from_arrow_schema(footers[first].schema.to_arrow_schema())).arrow_schema
    if "messages" not in schema.names and not options.no_check:
        raise RuntimeError(f"no column 'messages', only {', '.join(schema.names)} (see --no_check)")
    for split, paths in splits.items():
        held = sum(footers[path].num_rows for path in paths)
        rows = ReadInstruction(split, to=options.dataset_split_pc, unit="%").to_absolute({split: held})[0].to
        yield split, held, list(needed_groups(hub, {path: footers[path] for path in paths}, rows, schema))


def download(options: argparse.Namespace) -> None:
    """Gather the rows in a hidden folder, then put the files and a manifest of them in place."""
    began = time.monotonic()
    folder = options.download_dir or Path(f"{options.dataset.rpartition('/')[2]}_dataset")
    manifest, hidden = folder / "manifest.json", folder / ".download-dataset"
    asked = {name: value for name, value in vars(options).items() if name not in ("download_dir", "retries")}
    asked["hub"] = constants.ENDPOINT
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none, or not one of ours
        known = json.loads(manifest.read_text("utf-8"))
        entries = known["splits"].values()
        whole = all((folder / entry["file"]).stat().st_size == entry["bytes"] for entry in entries)
        if whole and known["request"] == asked:
            show(known["splits"])
            return print(f"Nothing to do: {folder} holds these {sum(one['rows'] for one in entries):,} rows.")
    commit, files, features = find_dataset(options)
    work = hidden / f"{commit}-{options.dataset_subset}-{options.dataset_split_pc}-{options.no_check}"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".download-dataset.lock", timeout=0):
        found = {}
        for split, held, groups in plan(options, files, features):
            found[split] = {"of": held} | save_split(work / f"{split}.jsonl", groups, options.no_check)
        show(found, "" if options.drop_bad_rows else "nothing is written; --drop_bad_rows leaves them out")
        manifest.unlink(missing_ok=True)
        for entry in found.values():
            (work / entry["file"]).replace(folder / entry["file"])
        note = {"request": asked, "commit": commit, "splits": found}
        (work / "manifest.json").write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (work / "manifest.json").replace(manifest)
        shutil.rmtree(hidden)
    rows, total, size = (sum(entry[name] for entry in found.values()) for name in ("rows", "of", "bytes"))
    print(f"{rows:,} of {total:,} rows in {folder}: {size:,} bytes, {time.monotonic() - began:.1f} s")


def explain(error: Exception, status: int) -> str:
    """The failure in one line: what the libraries say, and what to do next."""
    hub, said = constants.ENDPOINT, " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RepositoryNotFoundError) or "gated dataset" in said:
        return f"{said} Log in with `hf auth login`, or set HF_TOKEN"
    if status and not isinstance(error, RevisionNotFoundError):  # what it says may hold a signed address
        return f"{hub} answers with status {status}; run again later, which goes on from here"
    if isinstance(error, httpx.TransportError):
        return f"cannot reach {hub}: {said}; check the network and run again, which goes on from here"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run again, which goes on from here"
    return said


if __name__ == "__main__":
    main()
