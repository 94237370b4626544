"""Fetch the first N percent of a dataset's splits from the Hugging Face hub as JSON Lines, and check them.

The rows are those of `load_dataset(split="<split>[0%:N%]")`. A parquet file says in its footer where its row
groups lie, so only the footers and the groups that hold the rows are fetched, several ranges at once, into
a hidden folder from which an interrupted run goes on. Any other format comes through the streaming of
`datasets`. Each row is checked against what chat fine-tuning demands. Numbers that JSON lacks (NaN and the
infinities) become null, and dates become text.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import re
import shutil
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from filelock import FileLock, Timeout
from huggingface_hub import DatasetInfo, HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    httpx,
    logging,
    parse_ratelimit_headers,
)
from tqdm import tqdm

EXAMPLES = """examples:
  python download-dataset.py --dataset HuggingFaceH4/ultrachat_200k --dataset_split_pc 5
  python download-dataset.py --dataset HuggingFaceH4/ultrachat_200k --splits train_sft test_sft
  python download-dataset.py --dataset my/chats --revision v2 --dataset_split_pc 0.5 --drop_bad_rows
  python download-dataset.py --check my-conversations.jsonl

A private or gated dataset needs a token: `hf auth login`, or the environment variable HF_TOKEN.
"""
CONNECTIONS = 8
SPAN = 4 << 20  # bytes asked for in one request
BLOCK = 1 << 18  # bytes written, and noted as fetched, at once
BATCH = 2 << 20  # bytes of rows decoded at once
LONGEST_PAUSE = 600  # seconds that a server may ask us to stay away
PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
PASSING_ERRORS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
NETWORK_ERRORS = (HfHubHTTPError, httpx.TransportError)
MANIFEST = "manifest.json"
QUOTED_ROWS = 5  # bad rows quoted for each split; the rest are only counted


class ReportedError(Exception):
    """A failure as one sentence for the person who asked."""


def main() -> None:
    parser = command_line()
    options = parser.parse_args()
    if options.check and options.drop_bad_rows:
        parser.error("--drop_bad_rows does not go with --check, which never changes your file")
    try:
        check_files(options.check) if options.check else Download(options).run()
    except ReportedError as error:
        sys.exit(f"download-dataset.py: {error}")
    except KeyboardInterrupt:
        sys.exit("download-dataset.py: interrupted; the same command goes on where it stopped")


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fetch the first N percent of each split of a dataset as JSON Lines, and check the rows.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default="HuggingFaceH4/ultrachat_200k", help="owner/name on the hub (%(default)s)")
    add("--dataset_subset", metavar="NAME", help="configuration, where the dataset has several")
    add("--dataset_split_pc", type=percentage, default=5, metavar="N", help="percent of each split (5)")
    add("--download_dir", type=Path, metavar="FOLDER", help="where the files go (<name>_dataset)")
    add("--splits", nargs="+", metavar="SPLIT", help="only these splits (all)")
    add("--revision", default="main", help="branch, tag or commit (%(default)s)")
    add("--drop_bad_rows", action="store_true", help="leave rows that fail the check out, rather than stop")
    add("--no_check", action="store_true", help="take every row, where the dataset has no conversations")
    add("--retries", type=int, default=5, metavar="N", help="tries after a network failure (%(default)s)")
    add("--check", nargs="+", type=Path, metavar="FILE", help="only check JSON Lines files of your own")
    return parser


def percentage(text: str) -> int | float:
    """A number from 0 to 100, whole if it can be."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage from 0 to 100")
    return int(value) if value.is_integer() else value


# Checking rows


@dataclass
class Check:
    """What is known of the rows seen so far: how many, how bad, how long."""

    name: str
    rows: int = 0
    bad_rows: Counter = field(default_factory=Counter)
    quotes: list[str] = field(default_factory=list)
    turns: Counter = field(default_factory=Counter)
    characters: Counter = field(default_factory=Counter)  # in begun tens, so that few values occur

    def passes(self, row: object) -> bool:
        """Whether the row is fit for training; either way it is counted."""
        messages = row.get("messages") if isinstance(row, dict) else None
        fault = find_fault(messages)
        if fault:
            self.reject(self.rows + self.bad_rows.total() + 1, *fault)
        else:
            self.accept([len(messages)], [sum(len(message["content"]) for message in messages)])
        return not fault

    def fit(self, rows: pyarrow.StructArray) -> pyarrow.StructArray:
        """The rows that pass; those that are not plainly sound are looked at one by one."""
        measures = measure_conversations(rows)
        if measures is None:
            return rows.filter(pyarrow.array([self.passes(row) for row in rows.to_pylist()], pyarrow.bool_()))
        sound, turns, characters = measures
        first = self.rows + self.bad_rows.total() + 1
        for position in numpy.flatnonzero(~sound):
            fault = find_fault(rows[int(position)]["messages"].as_py())
            if fault:
                self.reject(first + position, *fault)
            sound[position] = not fault
        self.accept(turns[sound].tolist(), characters[sound].tolist())
        return rows if sound.all() else rows.filter(pyarrow.array(sound))

    def accept(self, turns: list[int], characters: list[int]) -> None:
        self.rows += len(turns)
        self.turns.update(turns)
        self.characters.update(-(-count // 10) for count in characters)

    def reject(self, line: int, category: str, reason: str) -> None:
        self.bad_rows[category] += 1
        if len(self.quotes) < QUOTED_ROWS:
            self.quotes.append(f"{self.name}:{line}: {category}: {reason}")

    def summary(self) -> dict:
        """Counts and quantiles, ready for the manifest and the table."""
        return {
            "rows": self.rows,
            "bad_rows": dict(self.bad_rows),
            "quotes": self.quotes,
            "turns": spread(self.turns, unit=1),
            "characters": spread(self.characters, unit=10),
        }


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
        if role == due:
            due = "assistant" if due == "user" else "user"
        elif role in ("user", "assistant"):
            return "not_alternating", f"message {number} is the {role}'s, where the {due}'s is due"
        elif role != "system":
            return "unknown_role", f"message {number} has the role {role!r}, not system, user or assistant"
        elif number > 1:
            return "late_system", f"message {number} is the system's, which only the first may be"
    return None


def measure_conversations(rows: pyarrow.StructArray) -> tuple[numpy.ndarray, ...] | None:
    """For each row: is it plainly sound, its turns, its characters. None where the columns are others."""
    columns = dict(zip(rows.type.names, rows.flatten(), strict=True))
    messages = columns.get("messages")
    if not isinstance(messages, pyarrow.ListArray) or not pyarrow.types.is_struct(messages.type.value_type):
        return None
    bounds = messages.offsets.to_numpy()
    items = messages.values[bounds[0] : bounds[-1]]
    parts = dict(zip(items.type.names, items.flatten(), strict=True))
    role, content = parts.get("role"), parts.get("content")
    if not (isinstance(role, pyarrow.StringArray) and isinstance(content, pyarrow.StringArray)):
        return None
    starts, turns = bounds[:-1] - bounds[0], numpy.diff(bounds)
    place = numpy.arange(len(items)) - numpy.repeat(starts, turns)
    speaker = pyarrow.compute.index_in(role, value_set=pyarrow.array(["user", "assistant"])).fill_null(2)
    length = pyarrow.compute.utf8_length(content).fill_null(0).to_numpy()
    blank = pyarrow.compute.utf8_is_space(content).fill_null(True).to_numpy(zero_copy_only=False)
    wrong = (speaker.to_numpy() != place % 2) | (length == 0) | blank
    known = messages.is_valid().to_numpy(zero_copy_only=False)
    return known & (turns > 1) & (sums(wrong, starts, turns) == 0), turns, sums(length, starts, turns)


def sums(values: numpy.ndarray, starts: numpy.ndarray, counts: numpy.ndarray) -> numpy.ndarray:
    """The sum of each run of values."""
    until = numpy.concatenate([[0], numpy.cumsum(values, dtype=numpy.int64)])
    return until[starts + counts] - until[starts]


def spread(counts: Counter, unit: int) -> dict[str, int]:
    """Median, 95th percentile and maximum of the counted values."""
    shares = {"median": 0.5, "95%": 0.95, "most": 1}
    return {name: quantile(counts, share) * unit for name, share in shares.items()}


def quantile(counts: Counter, share: float) -> int:
    """The smallest value that at least `share` of the counted ones do not exceed, 0 if there are none."""
    due = share * counts.total()
    for value in sorted(counts):
        due -= counts[value]
        if due <= 0:
            return value
    return 0


def check_files(paths: list[Path]) -> None:
    """Check the user's own files and print what was found."""
    found = {str(path): check_file(path) for path in paths}
    show_table(found)
    refuse_bad_rows(found, "mend or remove them before training")


def check_file(path: Path) -> dict:
    check = Check(str(path))
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    check.passes(json.loads(line))
                except ValueError as error:
                    check.reject(number, "not_json", str(error) if line.strip() else "the line is blank")
    except OSError as error:
        raise ReportedError(f"cannot read {path}: {error.strerror}") from error
    return check.summary()


def refuse_bad_rows(found: dict[str, dict], advice: str) -> None:
    """Quote and count the rows that failed, and stop if there are any."""
    counts = sum((Counter(entry["bad_rows"]) for entry in found.values()), Counter())
    if not counts:
        return
    for quote in [quote for entry in found.values() for quote in entry["quotes"]]:
        print(quote, file=sys.stderr)
    if unquoted := counts.total() - sum(len(entry["quotes"]) for entry in found.values()):
        print(f"and {unquoted:,} more", file=sys.stderr)
    rows = sum(entry["rows"] for entry in found.values()) + counts.total()
    categories = ", ".join(f"{count:,} {category}" for category, count in counts.most_common())
    raise ReportedError(f"{counts.total():,} of {rows:,} rows fail the check ({categories}); {advice}")


def show_table(found: dict[str, dict]) -> None:
    """Print rows, turns and lengths, a line for each split or file."""
    lines = [["", "rows", "bad", "turns", "95%", "most", "characters", "95%", "most"]]
    for name, entry in found.items():
        counts = [entry["rows"], sum(entry["bad_rows"].values())]
        counts += [*entry["turns"].values(), *entry["characters"].values()]
        lines.append([name, *(f"{count:,}" for count in counts)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *counts in lines:
        cells = [count.rjust(width) for count, width in zip(counts, widths[1:], strict=True)]
        print(name.ljust(widths[0]), *cells, sep="  ")


# Fetching parts of files


def limit_waiting(request: httpx.Request) -> None:
    """Give the request a timeout, which some of the library's own requests lack."""
    limits = request.extensions.get("timeout", {})
    phases = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {
        phase: limits.get(phase) or constants.HF_HUB_DOWNLOAD_TIMEOUT for phase in phases
    }


def limit_waiting_of_all() -> None:
    """Let `limit_waiting` see all requests; the library replaces its client when a connection fails."""
    client = get_session()
    if limit_waiting not in client.event_hooks["request"]:
        client.event_hooks = {"request": [*client.event_hooks["request"], limit_waiting]}


def patiently(action: Callable, retries: int):
    """The result of `action`, called again after a passing failure and a pause that grows or is asked for."""
    for attempt in range(retries + 1):
        limit_waiting_of_all()
        try:
            return action()
        except PASSING_ERRORS:
            pause = 0.0
            if attempt == retries:
                raise
        except HfHubHTTPError as error:
            pause = wanted_pause(error.response.headers)
            passing = error.response.status_code in PASSING_STATUSES and pause <= LONGEST_PAUSE
            if attempt == retries or not passing:
                raise
        time.sleep(pause or min(8, 0.5 * 2**attempt))


def wanted_pause(headers: httpx.Headers) -> float:
    """The seconds that the server asks us to wait, 0 if it does not."""
    limit = parse_ratelimit_headers(headers)
    if limit and limit.remaining == 0:
        return limit.reset_in_seconds
    retry_after = headers.get("Retry-After", "")
    if retry_after.isdigit():
        return int(retry_after)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


@dataclass
class RemoteFile:
    """A file on the hub, and a sparse copy of it whose journal notes which bytes are here."""

    url: str
    size: int
    copy: Path
    retries: int
    stop: threading.Event
    received: int = 0
    here: list[tuple[int, int]] = field(default_factory=list)
    coming: deque[tuple[int, Future]] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Take up what an earlier run left, as far as it is unharmed."""
        with self.copy.open("ab") as file:
            file.truncate(self.size)
        self.journal = self.copy.with_suffix(".journal")
        self.journal.touch()
        with self.copy.open("rb") as file:
            for note in re.findall(r"^(\d+) (\d+) (\d+)$", self.journal.read_text(), re.MULTILINE):
                start, end, checksum = map(int, note)
                file.seek(start)
                if zlib.crc32(file.read(end - start)) == checksum:
                    self.here.append((start, end))

    def missing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The spans between `start` and `end` that are not here, none longer than a request may be."""
        for here_start, here_end in [*sorted(self.here), (end, end)]:
            while start < min(here_start, end):
                stop = min(here_start, end, start + SPAN)
                yield start, stop
                start = stop
            start = max(start, here_end)

    def fetch(self, start: int, end: int, progress: tqdm) -> None:
        """Bring the bytes from `start` to `end` here; a second try asks only for what is left."""
        position = start

        def receive() -> None:
            nonlocal position
            for block in self.stream(position, end):
                self.store(position, block)
                position += len(block)
                progress.update(len(block))

        patiently(receive, self.retries)

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", self.url, headers=headers) as answer:
            hf_raise_for_status(answer)
            promised = answer.headers.get("Content-Range")
            if promised != f"bytes {start}-{end - 1}/{self.size}":
                asked = f"bytes {start} to {end - 1} of {self.size:,}"
                raise ReportedError(
                    f"{self.url}: asked for {asked}, the server offers {promised}; run again later"
                )
            for block in answer.iter_bytes(BLOCK):
                if self.stop.is_set():
                    return
                start += len(block)
                yield block
        if start != end:
            raise httpx.RemoteProtocolError(f"{end - start} bytes short")

    def store(self, position: int, block: bytes) -> None:
        with self.copy.open("r+b") as file:
            file.seek(position)
            file.write(block)
        with self.lock, self.journal.open("a") as journal:
            journal.write(f"{position} {position + len(block)} {zlib.crc32(block)}\n")
            self.here.append((position, position + len(block)))
            self.received += len(block)

    def wait(self, end: int) -> None:
        """Return when all that was ordered before `end` is here."""
        while self.coming and self.coming[0][0] < end:
            self.coming.popleft()[1].result()

    def footer(self, progress: tqdm) -> pyarrow.parquet.FileMetaData:
        """The parquet footer: the file's last eight bytes tell how long it is."""
        length = footer_guess(self.size)
        for _ in range(2):
            for span in list(self.missing(max(0, self.size - length), self.size)):
                self.fetch(*span, progress)
            with self.copy.open("rb") as file:
                file.seek(max(0, self.size - 8))
                length = int.from_bytes(file.read(4), "little") + 8
        with self.readable():
            return pyarrow.parquet.read_metadata(self.copy)

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Turn a failure to read the copy into a sentence, and drop the copy."""
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            self.copy.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)
            raise ReportedError(f"{self.url} cannot be read: {first_line(error)}") from error


def footer_guess(size: int) -> int:
    """Bytes to ask for at first: enough for most footers, and little beside the file."""
    return min(max(size // 500, 1 << 12), 1 << 16)


def group_spans(group: pyarrow.parquet.RowGroupMetaData) -> list[tuple[int, int]]:
    """Where the columns of a row group lie in the file, neighbours joined."""
    spans = []
    for column in (group.column(index) for index in range(group.num_columns)):
        start = column.data_page_offset
        if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
            start = column.dictionary_page_offset
        spans.append((start, start + column.total_compressed_size))
    return join(spans)


def join(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


@dataclass
class Group:
    """A row group, and how many of its first rows are wanted."""

    file: RemoteFile
    footer: pyarrow.parquet.FileMetaData
    number: int
    rows: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        return group_spans(self.footer.row_group(self.number))


def needed_groups(files: list[tuple[RemoteFile, pyarrow.parquet.FileMetaData]], rows: int) -> Iterator[Group]:
    """The row groups that hold the first `rows` rows of the files."""
    for file, footer in files:
        for number in range(footer.num_row_groups):
            held = min(rows, footer.row_group(number).num_rows)
            if held:
                yield Group(file, footer, number, held)
            rows -= held


def read_group(group: Group, schema: pyarrow.Schema) -> Iterator[pyarrow.StructArray]:
    """The wanted rows of the group as `datasets` would have them, a few megabytes at a time."""
    from datasets.table import table_cast

    for span in group.spans:
        group.file.wait(span[1])
    details, left = group.footer.row_group(group.number), group.rows
    step = max(1, BATCH * details.num_rows // max(1, details.total_byte_size))
    with group.file.readable():
        file = pyarrow.parquet.ParquetFile(group.file.copy, metadata=group.footer, buffer_size=BLOCK)
        for batch in file.iter_batches(min(step, left), row_groups=[group.number]):
            table = pyarrow.Table.from_batches([batch.slice(0, left)])
            left -= len(table)
            yield table_cast(table, schema).to_struct_array().combine_chunks()
            if not left:
                return


def in_batches(rows: Iterable[dict], limit: int | None) -> Iterator[list[dict]]:
    rows = itertools.islice(rows, limit)
    while batch := list(itertools.islice(rows, 100)):
        yield batch


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# Writing JSON Lines


def json_texts(values: pyarrow.Array) -> pyarrow.StringArray:
    """Each value as JSON. Text, lists and structs, which make up a conversation, are written many at once."""
    join = pyarrow.compute.binary_join_element_wise
    if isinstance(values, pyarrow.StringArray):
        texts = join('"', escaped(values), '"', "")
    elif isinstance(values, pyarrow.ListArray):
        items = pyarrow.ListArray.from_arrays(values.offsets, json_texts(values.values))
        texts = join("[", pyarrow.compute.binary_join(items, ", "), "]", "")
    elif isinstance(values, pyarrow.StructArray) and values.type.num_fields:
        names = [json.dumps(name, ensure_ascii=False) for name in values.type.names]
        heads = ["{" + names[0], *(", " + name for name in names[1:])]
        parts = [(f"{head}: ", json_texts(item)) for head, item in zip(heads, values.flatten(), strict=True)]
        texts = join(*itertools.chain(*parts), "}", "")
    else:
        return pyarrow.array([encode(value) for value in values.to_pylist()], pyarrow.string())
    return pyarrow.compute.if_else(values.is_valid(), texts, "null")


def escaped(texts: pyarrow.StringArray) -> pyarrow.StringArray:
    """The texts with a backslash before, or a code for, each character that JSON wants so."""
    data = numpy.frombuffer(texts.buffers()[2] or b"", numpy.uint8)
    special = [ord(character) for character in '\\"' if (data == ord(character)).any()]
    for code in [*special, *numpy.unique(data[data < 32])]:
        texts = pyarrow.compute.replace_substring(texts, chr(code), json.dumps(chr(code))[1:-1])
    return texts


def encode(value: object) -> str:
    try:
        return encoder.encode(value)
    except ValueError:
        return encoder.encode(without_nan(value))


def without_nan(value: object) -> object:
    """The value with null for each number that JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(value: object) -> str:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise ReportedError(f"a column holds {type(value).__name__} values, which JSON Lines cannot carry")


encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=as_text)


def lines(rows: pyarrow.StructArray | list[dict], check: Check | None) -> tuple[int, pyarrow.Buffer | bytes]:
    """How many rows pass, and their lines."""
    if isinstance(rows, list):
        texts = [encode(row) + "\n" for row in rows if check is None or check.passes(row)]
        return len(texts), "".join(texts).encode()
    texts = json_texts(check.fit(rows) if check else rows)
    ended = pyarrow.compute.binary_join_element_wise(texts, "\n", "")
    whole = pyarrow.compute.binary_join(pyarrow.ListArray.from_arrays([0, len(texts)], ended), "")
    return len(texts), whole[0].as_buffer()


def write_rows(batches: Iterable[pyarrow.StructArray | list[dict]], path: Path, check: Check | None) -> dict:
    """Write the rows that pass to `path`, and return how many, how large, and their checksum."""
    rows, size, checksum = 0, 0, hashlib.sha256()
    partial = path.with_suffix(".partial")

    def put(text: pyarrow.Buffer | bytes) -> None:
        file.write(text)
        checksum.update(text)

    with partial.open("wb") as file, ThreadPoolExecutor(1) as writer:
        written = writer.submit(put, b"")
        for batch in batches:
            count, text = lines(batch, check)
            rows, size = rows + count, size + len(text)
            written.result()  # one batch is written while the next is made
            written = writer.submit(put, text)
        written.result()
    partial.replace(path)
    return {"rows": rows, "bytes": size, "sha256": checksum.hexdigest()}


def file_checksum(path: Path) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum.update(block)
    return checksum.hexdigest()


def write_json(path: Path, value: dict) -> None:
    """Write the file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


# The download


class Download:
    """One run: finds the dataset, brings the rows here, checks them, puts the files in place."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = options.download_dir or Path(f"{options.dataset.rpartition('/')[2]}_dataset")
        self.hidden = self.folder / ".download-dataset"
        self.files: dict[str, RemoteFile] = {}
        self.info: DatasetInfo | None = None
        manner = "dropped" if options.drop_bad_rows else "refused"
        manner = "not_checked" if options.no_check else manner
        self.request = {
            "hub": constants.ENDPOINT,
            "dataset": options.dataset,
            "subset": options.dataset_subset,
            "revision": options.revision,
            "percentage": options.dataset_split_pc,
            "only_splits": options.splits,
            "bad_rows": manner,
        }

    def run(self) -> None:
        """Do what the command line asks, or say why not."""
        self.began = time.monotonic()
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # gives back what is freed
        try:
            if self.nothing_to_do():
                return
            self.find()
            self.hidden.mkdir(parents=True, exist_ok=True)
            with self.alone():
                if not self.nothing_to_do():
                    self.fetch_and_publish()
        except Exception as error:
            sentence = self.explain(error)
            if not sentence:
                raise
            raise ReportedError(sentence) from error

    def nothing_to_do(self) -> bool:
        """Whether the folder already holds what is asked for, unharmed; says so if it does."""
        manifest = self.manifest()
        if manifest.get("request") != self.request:
            return False
        for entry in manifest["splits"].values():
            path = self.folder / entry["file"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                return False
            if file_checksum(path) != entry["sha256"]:
                return False
        show_table(manifest["splits"])
        rows = sum(entry["rows"] for entry in manifest["splits"].values())
        print(f"Nothing to do: {self.folder} holds these {rows:,} rows, of commit {manifest['commit'][:12]}.")
        return True

    def manifest(self) -> dict:
        try:
            found = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def alone(self) -> contextlib.AbstractContextManager:
        """Keeps other runs out of the folder; if one is there, waits until it is done."""
        lock = FileLock(self.hidden / "lock")
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            print(f"Waiting for another download into {self.folder}.", file=sys.stderr)
            return lock.acquire()

    # Finding the dataset

    def find(self) -> None:
        """Learn the commit, the configuration and the splits."""
        from datasets import disable_progress_bars, load_dataset_builder  # over a second, so not at the top
        from datasets import logging as datasets_logging

        logging.set_verbosity_error()
        datasets_logging.set_verbosity(datasets_logging.CRITICAL)
        disable_progress_bars()
        self.hub = HfApi()
        self.info = self.ask(self.hub.dataset_info, self.options.dataset, revision=self.options.revision)
        try:
            name, commit = self.options.dataset_subset, self.info.sha
            self.builder = self.ask(load_dataset_builder, self.info.id, name=name, revision=commit)
        except NETWORK_ERRORS:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise ReportedError(self.unreadable(error)) from error
        self.demand_messages(self.builder.info.features)
        known = [str(split) for split in self.builder.config.data_files or ()]
        if not known:  # `datasets` takes its own cache where the hub fails
            raise ReportedError(
                f"{constants.ENDPOINT} does not list the files of {self.info.id}; run again later"
            )
        self.splits = list(dict.fromkeys(self.options.splits or known))
        for split in self.splits:
            if split not in known or Path(split).name != split:
                raise ReportedError(f"{self.info.id} has no split {split!r}; it has {', '.join(known)}")

    def demand_messages(self, columns: Iterable[str] | None) -> None:
        """Stop early where no row can pass."""
        if columns and "messages" not in columns and not self.options.no_check:
            held = f"{self.info.id} has no column 'messages'; it has {', '.join(columns)}"
            raise ReportedError(f"{held} (--no_check takes it all the same)")

    def ask(self, function: Callable, *arguments, **keywords):
        return patiently(functools.partial(function, *arguments, **keywords), self.options.retries)

    def unreadable(self, error: Exception) -> str:
        if self.info.gated or "gated" in str(error):
            return self.gated()
        return f"cannot read {self.info.id} at commit {self.info.sha[:12]}: {first_line(error)}"

    def gated(self) -> str:
        page = f"{constants.ENDPOINT}/datasets/{self.options.dataset}"
        return f"{self.options.dataset} is gated: ask for access at {page}, then log in with `hf auth login`"

    def parquet_paths(self) -> dict[str, list[str]] | None:
        """Each split's files in the repository, or None where `datasets` has to do the reading."""
        from datasets.packaged_modules.parquet.parquet import Parquet

        config, root = self.builder.config, f"hf://datasets/{self.info.id}@{self.info.sha}/"
        files = {str(split): list(files) for split, files in config.data_files.items()}
        inside = all(file.startswith(root) for file in itertools.chain(*files.values()))
        if isinstance(self.builder, Parquet) and inside and not config.columns and config.filters is None:
            return {split: [file.removeprefix(root) for file in files[split]] for split in files}
        return None

    def schema(self, footer: pyarrow.parquet.FileMetaData) -> pyarrow.Schema:
        """The columns as `datasets` has them: by the dataset's card, else by the first file."""
        from datasets import Features

        stated = self.builder.info.features
        return (stated or Features.from_arrow_schema(footer.schema.to_arrow_schema())).arrow_schema

    def count(self, split: str, total: int) -> int:
        """How many rows the percentage is, rounded as `datasets` rounds."""
        from datasets import ReadInstruction

        part = ReadInstruction(split, to=self.options.dataset_split_pc, unit="%")
        return part.to_absolute({split: total})[0].to

    # Bringing it here

    def fetch_and_publish(self) -> None:
        """Fetch, check and write each split in a hidden folder, then move the files into place."""
        self.work = self.hidden / self.key()
        for other in self.hidden.iterdir():
            if other.is_dir() and other != self.work:
                shutil.rmtree(other)
        self.work.mkdir(exist_ok=True)
        paths = self.parquet_paths()
        unit = " rows" if paths is None else "B"
        with tqdm(total=0, unit=unit, unit_scale=True, disable=None) as self.progress:
            found = self.through_datasets() if paths is None else self.through_ranges(paths)
        if not self.options.drop_bad_rows:
            refuse_bad_rows(found, "nothing is written, and --drop_bad_rows leaves them out")
        show_table(found)
        self.publish(found)

    def key(self) -> str:
        """A name for the work, another one when another thing is asked for."""
        name, percent = self.builder.config.name, self.options.dataset_split_pc
        wanted = json.dumps([self.info.id, self.info.sha, name, percent, self.splits])
        return hashlib.sha256(wanted.encode()).hexdigest()[:16]

    def through_ranges(self, paths: dict[str, list[str]]) -> dict[str, dict]:
        """The splits' manifest entries, their rows read from parts of parquet files."""
        stop = threading.Event()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                return self.read_ranges(paths, pool, stop)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def read_ranges(
        self, paths: dict[str, list[str]], pool: ThreadPoolExecutor, stop: threading.Event
    ) -> dict:
        first = next(iter(paths.values()))[0]  # its schema counts for all files
        wanted = [first, *itertools.chain(*(paths[split] for split in self.splits))]
        self.files = self.remote_files(wanted, stop)
        footers = pool.map(lambda file: file.footer(self.progress), self.files.values())
        footers = dict(zip(self.files, footers, strict=True))
        schema, totals, groups = self.schema(footers[first]), {}, {}
        self.demand_messages(schema.names)
        for split in self.splits:
            parts = [(self.files[path], footers[path]) for path in paths[split]]
            totals[split] = sum(footer.num_rows for _, footer in parts)
            groups[split] = list(needed_groups(parts, self.count(split, totals[split])))
        self.order(itertools.chain(*groups.values()), pool)
        rows = {
            split: (batch for group in groups[split] for batch in read_group(group, schema))
            for split in groups
        }
        return {split: self.save(split, totals[split], rows[split]) for split in self.splits}

    def remote_files(self, paths: list[str], stop: threading.Event) -> dict[str, RemoteFile]:
        paths, sizes = list(dict.fromkeys(paths)), {}
        place = {"repo_type": "dataset", "revision": self.info.sha}
        for start in range(0, len(paths), 1000):
            some = self.ask(self.hub.get_paths_info, self.info.id, paths[start : start + 1000], **place)
            sizes |= {file.path: file.size for file in some}
        files = {}
        for number, path in enumerate(paths):
            url = hf_hub_url(self.info.id, path, **place)
            copy = self.work / f"{number:05}.parquet"
            files[path] = RemoteFile(url, sizes[path], copy, self.options.retries, stop)
        return files

    def order(self, groups: Iterable[Group], pool: ThreadPoolExecutor) -> None:
        """Start fetching what is missing of the row groups, in the order in which they will be read."""
        for _, neighbours in itertools.groupby(groups, key=lambda group: id(group.file)):
            neighbours = list(neighbours)
            file = neighbours[0].file
            for span in join(itertools.chain(*(group.spans for group in neighbours))):
                for start, end in list(file.missing(*span)):
                    self.progress.total += end - start
                    file.coming.append((start, pool.submit(file.fetch, start, end, self.progress)))

    def through_datasets(self) -> dict[str, dict]:
        """The splits' manifest entries, their rows streamed by `datasets`."""
        return {split: self.save(split, *self.streamed(split)) for split in self.splits}

    def streamed(self, split: str) -> tuple[int, Iterator[list[dict]]]:
        """The split's size and its wanted rows; if no card tells the size, all rows are read."""
        stated = (self.builder.info.splits or {}).get(split)
        rows = self.stream(split)
        if stated and stated.num_examples:
            return stated.num_examples, in_batches(rows, self.count(split, stated.num_examples))
        spool = self.work / f"{split}.spool"
        total = write_rows(in_batches(rows, None), spool, None)["rows"]
        return total, in_batches(map(json.loads, spool.open("rb")), self.count(split, total))

    def stream(self, split: str) -> Iterator[dict]:
        try:
            for row in self.builder.as_streaming_dataset(split=split):
                self.progress.update()
                yield row
        except NETWORK_ERRORS:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise ReportedError(self.unreadable(error)) from error

    def save(self, split: str, total: int, batches: Iterable[list[dict]]) -> dict:
        """Write the split's rows in the hidden folder, unless that is done, and return its manifest entry."""
        staged = self.staged(split)
        entry = staged.with_suffix(".json")
        if staged.exists() and entry.exists():
            return json.loads(entry.read_text(encoding="utf-8"))
        check = Check(f"{split}.jsonl")
        written = write_rows(batches, staged, None if self.options.no_check else check)
        found = {"file": check.name, "of": total} | check.summary() | written
        write_json(entry, found)
        return found

    def staged(self, split: str) -> Path:
        return self.work / f"{split}.{self.request['bad_rows']}.jsonl"

    def publish(self, found: dict[str, dict]) -> None:
        """Put the files and their manifest in place, and say what was done."""
        files = {entry["file"] for entry in found.values()}
        stale = {entry["file"] for entry in self.manifest().get("splits", {}).values()} - files
        request = {"request": self.request, "commit": self.info.sha}
        write_json(self.work / MANIFEST, request | {"splits": found})
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for split, entry in found.items():
            self.staged(split).replace(self.folder / entry["file"])
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        (self.work / MANIFEST).replace(self.folder / MANIFEST)
        shutil.rmtree(self.work)
        self.say_what_was_done(list(found.values()))

    def say_what_was_done(self, entries: list[dict]) -> None:
        rows, total, size = (sum(entry[name] for entry in entries) for name in ("rows", "of", "bytes"))
        bad = sum(sum(entry["bad_rows"].values()) for entry in entries)
        left_out = f" ({bad:,} bad ones left out)" if bad else ""
        fetched = f"{self.fetched():,} bytes fetched, " if self.files else ""
        took = f"{fetched}{size:,} bytes written, {time.monotonic() - self.began:.1f} s"
        print(f"{rows:,} of {total:,} rows{left_out} in {self.folder}: {took}")

    def fetched(self) -> int:
        return sum(file.received for file in self.files.values())

    # Saying what went wrong

    def explain(self, error: Exception) -> str | None:
        """The failure in a sentence, or None if it is none that is known."""
        name, hub = self.options.dataset, constants.ENDPOINT
        if isinstance(error, ReportedError):
            return str(error)
        if isinstance(error, HFValidationError):
            return f"{name!r} is not the name of a dataset: that is owner/name, as in its address on {hub}"
        if isinstance(error, OfflineModeIsEnabled):
            return f"cannot ask {hub} for {name}, since HF_HUB_OFFLINE is set; unset it and run again"
        if isinstance(error, GatedRepoError):
            return self.gated()
        if isinstance(error, RevisionNotFoundError) and self.info:
            return f"{name} has changed, and commit {self.info.sha[:12]} is gone from {hub}; run again"
        if isinstance(error, RevisionNotFoundError):
            return f"{name} has no revision {self.options.revision!r}; see {hub}/datasets/{name}"
        if isinstance(error, RepositoryNotFoundError):
            login = "`hf auth login` or HF_TOKEN"
            return (
                f"{hub} shows no dataset {name!r}: check the name or, if it is private, log in with {login}"
            )
        if isinstance(error, HfHubHTTPError):
            return self.explain_status(error.response.status_code)
        if isinstance(error, httpx.TimeoutException):
            seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
            return f"no answer from {hub} within {seconds} s; check the network and run again"
        if isinstance(error, httpx.TransportError):
            return f"cannot reach {hub}: {first_line(error)}; check the network and run again"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {self.folder} is full; free some space and run again, which goes on from here"
            )
        if isinstance(error, OSError):
            return f"cannot use {self.folder}: {error.strerror or first_line(error)}"
        return None

    def explain_status(self, status: int) -> str:
        hub = constants.ENDPOINT
        if status in (401, 403):
            return f"{hub} refuses the token ({status}); log in again with `hf auth login` or mend HF_TOKEN"
        tries = f" after {self.options.retries + 1} tries" if status in PASSING_STATUSES else ""
        return f"{hub} answers with status {status}{tries}; run again later, which goes on from here"


if __name__ == "__main__":
    main()
