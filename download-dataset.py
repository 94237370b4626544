"""Get conversations to train on, from the Hugging Face hub or from your own files, as JSON Lines; check them.

  python download-dataset.py --dataset HuggingFaceH4/ultrachat_200k --dataset_split_pc 5
  python download-dataset.py --dataset my-conversations.csv
  python download-dataset.py --check my-conversations.jsonl

A file is JSON Lines, a JSON list, CSV or parquet, each also gzipped; a folder holds train.* and, if there is
one, test.* or validation.*. Your own files are taken whole; of a dataset on the hub, the first N percent of
each split. Where no rows are there to test with, a tenth is held out. conversations.py says what is accepted.
Of parquet on the hub only the row groups that hold the rows are fetched, and an interrupted run goes on after
the last one that is written; a second run looks whether the dataset has changed.
A private or gated dataset needs a token: `hf auth login`, or the environment variable HF_TOKEN.
"""

import argparse
import contextlib
import datetime
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
from filelock import FileLock
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars, httpx
from huggingface_hub.utils.sha import sha_fileobj
from tqdm import tqdm

from conversations import SHAPES, Check, hold_out, json_line, numbered, recognised, shape, summary, written
from datafiles import file_groups, own_files, read, roles, split_of
from terminal import plain

AHEAD = 40 << 20  # bytes of row groups that are fetched ahead; a larger group is streamed
BATCH = 2 << 20  # decoded bytes of rows that are written at once
ROWS = 64  # likewise; a text that stands in each row takes next to nothing in a file, and much in memory
MEND = "nothing is written; mend them, or leave them out with --drop_bad_rows"
LEAST = {"train": 10, "test": 1}  # rows; the training component refuses fewer than ten
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
            return check_files(options.check) if options.check else fetch(options)
        except FAILURES as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            if attempt >= options.retries or not (status >= 429 or isinstance(error, httpx.TransportError)):
                sys.exit(f"download-dataset.py: {plain(explain(error, status))}")
        except KeyboardInterrupt:
            sys.exit("download-dataset.py: interrupted; the same command goes on where it stopped")
        time.sleep(min(8, 2**attempt))


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    which = "owner/name or owner/name:configuration on the hub, or a file or folder's path (%(default)s)"
    add("--dataset", default="HuggingFaceH4/ultrachat_200k", metavar="NAME_OR_PATH", help=which)
    percent = "percent of each split of a dataset on the hub (%(default)s)"
    add("--dataset_split_pc", type=float, default=5, metavar="N", help=percent)
    where = "where the files go (<name>_dataset)"
    add("--download_dir", type=lambda folder: folder and Path(folder), metavar="FOLDER", help=where)
    add("--splits", nargs="+", metavar="SPLIT", help="just these splits (those to train and to test with)")
    add("--revision", default="main", help="branch, tag or commit (%(default)s)")
    add("--no_check", action="store_true", help="take every row of every split, conversation or not")
    add("--retries", type=int, default=5, metavar="N", help="tries after a network failure (%(default)s)")
    one_of = parser.add_mutually_exclusive_group().add_argument  # a check never changes your file
    one_of("--drop_bad_rows", action="store_true", help="leave out rows that fail the check; do not stop")
    one_of("--check", nargs="+", type=Path, metavar="FILE", help="only check files of your own")
    return parser


# Checking


def check_files(paths: list[Path]) -> None:
    """Check the user's own files and print what was found."""
    found = {}
    for path in paths:
        check = Check(str(path))
        for line, row in read(path):
            check.passed(line, row)
        found[check.name] = summary([vars(check)])
    show(found, advice="mend or remove them before training")
    print(recognised(found, 0, ", ".join(found)))
    if (rows := sum(entry["rows"] for entry in found.values())) < (least := sum(LEAST.values())):
        raise RuntimeError(f"{rows} conversations are too few to train on, which takes {least} or more")


def show(found: dict[str, dict], advice: str = "") -> None:
    """Print rows, turns and lengths, a line for each file; with advice, stop where rows failed the check."""
    width = max(map(len, found))
    print(*(" ".join([" " * width, *map("{:>10}".format, titles)]) for titles in HEADS), sep="\n")
    for name, entry in found.items():
        counts = [entry["rows"], sum(entry["bad_rows"].values())]
        counts += [*entry["turns"].values(), *entry["characters"].values()]
        print(plain(name).ljust(width), *map("{:>10,}".format, counts))
    if special := sum(entry["special"] for entry in found.values()):
        print(f"Warning: special tokens such as <|end|>, which end a turn, are in {special:,} conversations.")
    bad = sum((Counter(entry["bad_rows"]) for entry in found.values()), Counter())
    if bad and advice:
        first, *others = (plain(quote) for entry in found.values() for quote in entry["quotes"])
        print(*[first] * bool(others), *others, sep="\n", end="\n" * bool(others), file=sys.stderr)
        rows = bad.total() + sum(entry["rows"] for entry in found.values())
        categories = ", ".join(f"{count:,} {category}" for category, count in bad.most_common())
        failed = f"{bad.total():,} of {rows:,} rows fail the check ({categories})"
        raise RuntimeError(f"{failed}; the first is {first}; {advice}")


# Reading and writing


def needed_groups(hub: HfFileSystem, split: str, footers: dict, rows: int, schema) -> Iterator[tuple]:
    """The row groups that hold a split's first `rows` rows: name, rows before it, bytes it takes, tables."""
    before = 0
    for path, footer in footers.items():
        for number in range(footer.num_row_groups):
            group, file = footer.row_group(number), hub.open(path, cache_type="none")
            if held := min(rows - before, group.num_rows):
                tables = read_group(file, footer, number, held, schema)
                yield f"{split}.jsonl", before, group.total_byte_size, tables
            before += held


def read_group(
    file, footer, number: int, rows: int, schema: pyarrow.Schema | None
) -> Iterator[pyarrow.Table]:
    """The first `rows` rows of a row group, as `datasets` has them by a schema, a few megabytes at a time."""
    from datasets.table import table_cast

    size = footer.row_group(number).total_byte_size
    step = max(1, min(ROWS, BATCH * footer.row_group(number).num_rows // max(1, size)))
    reader = pyarrow.parquet.ParquetFile(file, metadata=footer, pre_buffer=size <= AHEAD, buffer_size=BATCH)
    batches = reader.iter_batches(step, row_groups=[number])
    while rows:
        batch = next(batches).slice(0, rows)
        rows -= len(batch)
        table = pyarrow.Table.from_batches([batch])
        yield table_cast(table, schema) if schema else table


def read_ahead(groups: list[tuple]) -> Iterator[tuple[str, int, Iterable]]:
    """The tables of each group, in order; the next are read meanwhile, unless one is too large to hold."""
    waiting, coming, held = deque(groups), deque(), 0
    with ThreadPoolExecutor() as pool:
        while waiting or coming:
            while waiting and (not coming or held + waiting[0][2] <= AHEAD):
                *known, size, tables = waiting.popleft()
                coming.append((*known, size, pool.submit(begun if size <= AHEAD else iter, tables)))
                held += size
            name, before, size, tables = coming.popleft()
            held -= size
            yield name, before, tables.result()


def begun(tables: Iterator) -> Iterator:
    """The same tables, when the first has come; the bytes of all others then come by themselves."""
    return itertools.chain([*itertools.islice(tables, 1)], tables)


def save_split(path: Path, groups: list[tuple], no_check: bool) -> list[dict]:
    """Write the rows that pass, after those of the groups that an earlier run finished; say what is found."""
    notes = path.with_suffix(".notes")  # a line for each finished group
    lines = notes.read_text().splitlines(keepends=True) if path.exists() and notes.exists() else []
    parts = [json.loads(line) for line in lines if line.endswith("\n")]
    parts = [part for part in parts if part["end"] <= path.stat().st_size]  # bytes that reached the disk
    shown = {"desc": plain(path.stem), "unit": " row groups", "initial": len(parts), "total": len(groups)}
    with path.open("ab") as file, notes.open("w") as journal:
        file.truncate(parts[-1]["end"] if parts else 0)
        journal.writelines(json.dumps(part) + "\n" for part in parts)
        for name, before, tables in tqdm(read_ahead(groups[len(parts) :]), **shown, disable=None):
            check = Check(name)
            for rows in numbered(tables, before + 1):
                fit = (written(check, line, row, no_check) for line, row in rows)
                file.write("".join(json_line(row) for row in fit if row is not None).encode())
            file.flush()
            parts.append(vars(check) | {"end": file.seek(0, 2)})
            print(json.dumps(parts[-1]), file=journal, flush=True)
    return parts


# The hub


def newest(options: argparse.Namespace) -> str:
    """The commit that the dataset has now."""
    name, patience = options.dataset.partition(":")[0], constants.HF_HUB_DOWNLOAD_TIMEOUT
    return HfApi().dataset_info(name, revision=options.revision, timeout=patience).sha


def plan(options: argparse.Namespace, commit: str, folder: Path) -> Iterator[tuple]:
    """Each split, how many rows it has, and the groups that hold the wanted ones."""
    from datasets import load_dataset_builder  # over a second, so not at the top
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    name, _, configuration = options.dataset.partition(":")
    builder = load_dataset_builder(name, configuration or None, revision=commit)
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    if not files:  # `datasets` takes its own cache where the hub fails
        raise RuntimeError(f"{constants.ENDPOINT} does not list the files of {options.dataset}; try later")
    narrowed = [name for name in ("columns", "filters", "field") if getattr(builder.config, name, None)]
    if narrowed or not isinstance(builder, (Parquet, Json, Csv)):
        copy = "the hub keeps a parquet copy of public datasets: --revision refs/convert/parquet"
        raise RuntimeError(f"{options.dataset} is not plain parquet, JSON or CSV, and is not read; {copy}")
    for split in options.splits or files:
        if split not in files or Path(split).name != split:
            raise RuntimeError(f"{options.dataset} has no split {split!r}; it has {', '.join(files)}")
    every = options.splits or (options.no_check and files)
    wanted = {split: files[split] for split in every or roles(files, options.dataset).values()}
    planned = of_parquet if isinstance(builder, Parquet) else downloaded
    return planned(wanted, next(iter(files.values()))[0], builder.info.features, options, folder)


def of_parquet(splits: dict, first: str, features: dict | None, options, _: Path) -> Iterator[tuple]:
    """The row groups, by the files' footers; the columns of the file `first` count for all."""
    from datasets import Features

    hub = HfFileSystem()
    opened = {path: hub.open(path, cache_type="none") for path in sum(splits.values(), [first])}
    with ThreadPoolExecutor() as pool:
        footers = dict(zip(opened, pool.map(pyarrow.parquet.read_metadata, opened.values()), strict=True))
    schema = (features or Features.from_arrow_schema(footers[first].schema.to_arrow_schema())).arrow_schema
    if not options.no_check and not shape(tuple(schema.names)):
        columns = ", ".join(schema.names)
        raise RuntimeError(f"no conversations in the columns {columns}; known are {SHAPES} (see --no_check)")
    for split, paths in splits.items():
        held = sum(footers[path].num_rows for path in paths)
        own, rows = {path: footers[path] for path in paths}, first_rows(split, held, options)
        typed = schema if options.no_check else None  # a message may have other fields in another file
        yield split, held, list(needed_groups(hub, split, own, rows, typed))


def downloaded(splits: dict, _: str, features: dict | None, options, folder: Path) -> Iterator[tuple]:
    """The files themselves, since only reading all of them tells how many rows they have."""
    disable_progress_bars()
    for split, addresses in splits.items():
        paths = []
        for place in map(HfFileSystem().resolve_path, addresses):
            source = {"repo_id": place.repo_id, "filename": place.path_in_repo, "revision": place.revision}
            paths.append(Path(hf_hub_download(**source, repo_type="dataset", local_dir=folder)))
        held = sum(1 for path in paths for _ in read(path))
        yield split, held, file_groups(paths, first_rows(split, held, options))


def first_rows(split: str, held: int, options: argparse.Namespace) -> int:
    """How many rows are the wanted percentage, rounded as `datasets` does."""
    from datasets import ReadInstruction

    return ReadInstruction(split, to=options.dataset_split_pc, unit="%").to_absolute({split: held})[0].to


# All of it


def sha256(*paths: Path) -> str:
    """A hash of the files' content, whatever they are called."""
    sums = []
    for path in paths:
        with path.open("rb") as file:
            sums.append(sha_fileobj(file).hex())
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def finished(folder: Path, asked: dict) -> dict | None:
    """The manifest of what lies in the folder, if it is whole and the same was asked for."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none, or not one of ours
        known = json.loads((folder / "manifest.json").read_text("utf-8"))
        files = {folder / entry["file"]: entry["sha256"] for entry in known["splits"].values()}
        if known["request"] == asked and all(sha256(path) == content for path, content in files.items()):
            return known
    return None


def fetch(options: argparse.Namespace) -> None:
    """Put the wanted rows into the folder, unless they lie there and nothing has changed."""
    began, own = time.monotonic(), own_files(options.dataset)
    sources = [path for paths in own.values() for path in paths]
    stem = split_of(Path(options.dataset)) or Path(options.dataset).resolve().name.replace(":", "-")
    folder = options.download_dir or Path(f"{stem}_dataset")
    asked = {name: value for name, value in vars(options).items() if name not in ("download_dir", "retries")}
    asked |= {"hub": constants.ENDPOINT} if not own else {"dataset_split_pc": 100}
    if folder.resolve() in {path.resolve().parent for path in sources}:
        raise RuntimeError(f"{folder} holds your own files, which stay as they are: choose another folder")
    known = finished(folder, asked)
    try:
        state = sha256(*sources) if own else newest(options)
    except (httpx.TransportError, ConnectionError):
        if not known:
            raise
        state = known["state"]
        print(f"Cannot reach {constants.ENDPOINT}: this is commit {state}, downloaded on {known['date']}.")
    if known and known["state"] == state:
        show(known["splits"])
        rows = sum(entry["rows"] for entry in known["splits"].values())
        return print(f"{known['recognised']}\nNothing to do: {folder} holds these {rows:,} rows.")
    manifest, hidden = folder / "manifest.json", folder / ".download-dataset"
    work = hidden / f"{state}-{stem}-{options.dataset_split_pc}-{options.no_check}"
    if own:
        planned = [(split, None, file_groups(paths)) for split, paths in own.items()]
    else:
        planned = plan(options, state, hidden / state)
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".download-dataset.lock", timeout=0):
        saved, of = {}, {}
        for split, held, groups in planned:
            path = work / f"{split}.jsonl"
            saved[split], of[split] = (path, save_split(path, groups, options.no_check)), held
        too_few = "add some" if own else f"raise dataset_split_pc, which is {options.dataset_split_pc:g}"
        note, paths = describe(saved, of, options, too_few)
        note |= {"request": asked, "dataset": options.dataset, "state": state}
        note |= {"commit": None if own else state, "date": datetime.date.today().isoformat()}
        note |= {"name": re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-_") or "data"}
        (work / manifest.name).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", "utf-8")
        manifest.unlink(missing_ok=True)
        for path in [*paths, work / manifest.name]:
            path.replace(folder / path.name)
        shutil.rmtree(hidden)
    rows, total, size = (sum(e[name] for e in note["splits"].values()) for name in ("rows", "of", "bytes"))
    print(f"{rows:,} of {total:,} rows in {folder}: {size:,} bytes, {time.monotonic() - began:.1f} s")


def describe(saved: dict[str, tuple], of: dict, options, too_few: str) -> tuple[dict, list[Path]]:
    """What the manifest says of the files and of what each is for, and where they lie now."""
    trains = not (options.splits or options.no_check)
    use, held_out = roles(saved, options.dataset) if trains else {}, 0
    if trains and "test" not in use:
        path, parts = saved.pop(use["train"])
        divided = hold_out(path, parts, path.parent / "divided")
        held_out, saved = divided["test"][1][0]["rows"], divided | saved
        use |= {"train": "train", "test": "test"}
    found = {}
    for split, (path, parts) in saved.items():
        content = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        found[split] = content | summary(parts)
        found[split]["of"] = of.get(split) or found[split]["rows"] + sum(found[split]["bad_rows"].values())
    show(found, "" if options.drop_bad_rows else MEND)
    note = {"splits": found, "recognised": recognised(found, held_out, options.dataset)}
    print(note["recognised"])
    for role, least in LEAST.items() if trains else ():
        rows = found[use[role]]["rows"]
        if rows < least:
            beside = f", since {held_out} of {rows + held_out} is held out" if held_out and rows else ""
            needed = f"{rows} conversations to {role} with{beside}, and {least} or more are needed"
            raise RuntimeError(f"{options.dataset} has {needed}: {too_few}")
    if trains:
        note |= {role: saved[split][0].name for role, split in use.items()}
        note |= {"unseen": note.get("unseen", note["test"])}
        note |= {"sha256": sha256(*(saved[use[role]][0] for role in LEAST))}
    return note, [path for path, _ in saved.values()]


def explain(error: Exception, status: int) -> str:
    """The failure in one line: what the libraries say, and what to do next."""
    hub, said = constants.ENDPOINT, " ".join(str(error).split()) or type(error).__name__
    missing = isinstance(error, RepositoryNotFoundError)
    told = missing and error.response.headers.get("X-Error-Message")
    if told and told not in ("Invalid username or password.", "Repository not found"):
        return told  # a hub that says more than the real one
    if known := re.search(r"vailable(?: configs)?: \[(.*)\]", said):  # configurations
        return f"the dataset comes as {known[1]}: name one of these, as in owner/name:configuration"
    if missing or "gated dataset" in said:
        return f"{said} Log in with `hf auth login`, or set HF_TOKEN"
    if status and not isinstance(error, RevisionNotFoundError):  # what it says may hold a signed address
        return f"{hub} answers with status {status}; run again later, which goes on from here"
    if isinstance(error, httpx.TransportError):
        return f"cannot reach {hub}: {said}; check the network and run again, which goes on from here"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run again, which goes on from here"
    return said


if __name__ == "__main__":
    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    sys.stdout.flush()
    os._exit(1 if isinstance(status, str) else status or 0)  # an orderly end can crash pyarrow's late reads
