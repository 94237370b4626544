"""download-dataset.py, by its command line, against the local hub over a link that can misbehave."""

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from conftest import served
from download_script import GOOD, SCRIPT, sentence, warm_script
from filelock import FileLock
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from local_azureml.data_plane.hub import create_app


class Link:
    """The hub, and what is between it and us: notes each request, and does harm where it is told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.hub = root, create_app(root)
        self.requests: list[dict] = []
        self.harms: list[tuple[str, list]] = []
        self.busy = self.busiest = 0

    async def __call__(self, scope, receive, send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        request = {"method": scope["method"], "path": scope["path"], "headers": headers, "sent": 0}
        self.requests.append(request)
        self.busy += 1
        self.busiest = max(self.busy, self.busiest)

        async def count(message) -> None:
            request["sent"] += len(message.get("body", b""))
            await send(message)

        try:
            await (self.harm(scope) or self.hub)(scope, receive, count)
        finally:
            self.busy -= 1

    def harm(self, scope):
        for part, left in self.harms:
            span = dict(scope["headers"]).get(b"range", b"").decode()
            if part in f"{scope['method']} {scope['path']} {span}" and left:
                harm = left.pop(0)
                return harm and harm(self.hub)
        return None

    def fetched(self) -> list[tuple[str, int, int]]:
        """The ranges of parquet files that were asked for, in order of place."""
        ranges = []
        for request in self.requests:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", request["headers"].get("range", ""))
            if span and request["path"].endswith(".parquet"):
                ranges.append((request["path"], int(span[1]), int(span[2]) + 1))
        return sorted(ranges)


def answering(status: int, body: bytes = b"{}", **headers: str):
    """A harm: this answer instead of the hub's."""

    async def answer(scope, receive, send) -> None:
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        named.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    return lambda hub: answer


def slow(seconds: float):
    """A harm: the answer comes late."""

    def wait(hub):
        async def answer(scope, receive, send) -> None:
            await asyncio.sleep(seconds)
            await hub(scope, receive, send)

        return answer

    return wait


@pytest.fixture(scope="module")
def link(tmp_path_factory) -> Iterator[Link]:
    link = Link(tmp_path_factory.mktemp("hub"))
    with served(link) as port:
        link.address = f"http://127.0.0.1:{port}"
        yield link


@pytest.fixture(autouse=True)
def _calm(link) -> None:
    link.requests, link.harms, link.busiest = [], [], 0


@pytest.fixture(scope="module")
def environment(link, tmp_path_factory) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = tmp_path_factory.mktemp("cache")
    return own | {"HF_ENDPOINT": link.address, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def warm(environment):
    with warm_script(environment) as run:
        yield run


@pytest.fixture
def run(warm, tmp_path):
    """Run the script in an empty folder, in a process whose imports are done."""
    return lambda *arguments, folder=tmp_path: warm(folder, *arguments)


def write_repository(
    root: Path, name: str, splits: dict, files: int = 1, group: int = 10, card: str = ""
) -> Path:
    """A dataset repository of parquet files, each split's rows spread over `files`."""
    folder = root / "datasets" / name
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
        for number in range(files):
            first, last = (len(table) * part // files for part in (number, number + 1))
            path = folder / "data" / f"{split}-{number:05}-of-{files:05}.parquet"
            pyarrow.parquet.write_table(table.slice(first, last - first), path, row_group_size=group)
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n")
    return folder


def chats(count: int, **columns) -> list[dict]:
    return [{"prompt": f"question {number}", "messages": GOOD} | columns for number in range(count)]


def manifest_in(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def loaded(folder: Path, split: str, percent: float, cache: Path) -> list[dict]:
    """The rows by `datasets` itself, which refuses where there is none."""
    import datasets

    part = datasets.ReadInstruction(split, to=percent, unit="%")
    try:
        return list(datasets.load_dataset(str(folder), split=part, cache_dir=str(cache)))
    except ValueError as error:
        assert "corresponds to no data" in str(error)
        return []


def texts_of(rows: int, size: int) -> pyarrow.Table:
    """Rows of text that does not compress."""
    letters = numpy.random.default_rng(3).integers(97, 123, rows * size, dtype=numpy.uint8).tobytes().decode()
    return pyarrow.table({"text": [letters[start : start + size] for start in range(0, rows * size, size)]})


# The rows

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "content": st.one_of(
                texts, st.sampled_from(["", " \n", "a\u2028b\r\n\x85", '"\\', "\x00\x1b\x7f"])
            ),
            "role": st.sampled_from(["user", "assistant", "system", "tool", "user", "assistant"]),
        }
    ),
    max_size=5,
)
rows = st.fixed_dictionaries(
    {
        "prompt": st.none() | texts,
        "messages": messages | st.just(GOOD),
        "score": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "tags": st.none() | st.lists(st.none() | texts, max_size=3),
        "count": st.none() | st.integers(-(2**62), 2**62),
        "seen": st.booleans(),
    }
)
MESSAGE = pyarrow.struct([("content", pyarrow.string()), ("role", pyarrow.string())])
SCHEMA = pyarrow.schema(
    {
        "prompt": pyarrow.string(),
        "messages": pyarrow.list_(MESSAGE),
        "score": pyarrow.float64(),
        "tags": pyarrow.list_(pyarrow.string()),
        "count": pyarrow.int64(),
        "seen": pyarrow.bool_(),
    }
)


@st.composite
def repositories(draw) -> dict:
    """Splits of a few different rows repeated to any length, row groups and files of any size."""
    drawn = draw(st.lists(rows, min_size=1, max_size=4))
    splits, files = {}, draw(st.integers(1, 3))
    for split in draw(st.sampled_from([["train"], ["train_sft"], ["test", "a.b"]])):
        length = draw(st.integers(files, 250))
        repeated = (drawn * length)[:length]
        splits[split] = pyarrow.Table.from_pylist(repeated, schema=SCHEMA)
    return {"splits": splits, "files": files, "group": draw(st.integers(1, 260))}


percentages = st.integers(0, 100) | st.floats(0, 100).map(lambda value: round(value, 2))
numbers = itertools.count()


def fits(messages: list[dict]) -> bool:
    """Whether the training component takes the conversation."""
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in spoken]
    due = (["user", "assistant"] * len(roles))[: len(roles)]
    return "assistant" in roles and roles == due and all(message["content"].strip() for message in messages)


@settings(max_examples=80, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(repository=repositories(), percent=percentages, dropping=st.booleans())
def test_the_rows_are_those_of_load_dataset(repository, percent, dropping, link, run):
    folder = write_repository(link.root, f"made/any{next(numbers)}", **repository)
    with tempfile.TemporaryDirectory() as place:
        arguments = ["--dataset_split_pc", percent, "--download_dir", place]
        manner = ["--drop_bad_rows", "--splits", *repository["splits"]] if dropping else ["--no_check"]
        ended = run("--dataset", f"made/{folder.name}", *manner, *arguments)
        assert (ended.status, ended.err) == (0, "")
        for split in repository["splits"]:
            wanted = loaded(folder, split, percent, Path(place, "cache"))
            kept = [{"messages": row["messages"]} for row in wanted if fits(row["messages"])]
            expected = kept if dropping else wanted
            assert read(Path(place, f"{split}.jsonl")) == expected
    shutil.rmtree(folder)


# The bytes


def test_only_footers_and_the_row_groups_of_the_rows_are_fetched(link, run):
    folder = write_repository(link.root, "made/long", {"train": texts_of(20_000, 1000)}, files=2, group=1000)
    assert run("--dataset", "made/long", "--no_check", "--dataset_split_pc", 45).status == 0
    footer = pyarrow.parquet.read_metadata(min(folder.glob("data/*")))
    groups = sum(footer.row_group(number).column(0).total_compressed_size for number in range(9))
    assert groups < sum(end - start for _, start, end in link.fetched()) <= 1.05 * groups


def test_several_ranges_are_fetched_at_once(link, run):
    write_repository(link.root, "made/wide", {"train": texts_of(12_000, 1000)}, group=1000)
    link.harms = [(".parquet", [slow(0.1)] * 9)]
    assert run("--dataset", "made/wide", "--no_check", "--dataset_split_pc", 100).status == 0
    assert link.busiest >= 3


def test_memory_stays_below_400_mb_for_a_row_group_that_is_larger(link, environment, tmp_path):
    pool = texts_of(1, 8 << 20)["text"][0].as_py()
    starts = numpy.random.default_rng(4).integers(0, len(pool) - 2000, 250_000).tolist()
    table = pyarrow.table({"text": [pool[start : start + 2000] for start in starts]})
    folder = write_repository(link.root, "made/large", {"train": table}, group=250_000)
    assert memory_of("made/large", environment, tmp_path / "out") < 400e6
    assert next(folder.glob("data/*")).stat().st_size > 400e6
    assert (tmp_path / "out" / "train.jsonl").stat().st_size > 500e6


def test_memory_stays_below_400_mb_where_a_small_file_says_a_long_text_in_each_row(
    link, environment, tmp_path
):
    table = pyarrow.table({"text": ["x" * 100_000] * 4000})
    folder = write_repository(link.root, "made/said-again", {"train": table}, group=1000)
    assert memory_of("made/said-again", environment, tmp_path / "out") < 400e6
    assert next(folder.glob("data/*")).stat().st_size < 1e6
    assert (tmp_path / "out" / "train.jsonl").stat().st_size > 400e6


def memory_of(dataset: str, environment: dict, folder: Path) -> int:
    """Return the bytes that the program takes at most while it gets a whole dataset."""
    arguments = ["--dataset", dataset, "--no_check", "--dataset_split_pc", "100"]
    command = [sys.executable, str(SCRIPT), *arguments, "--download_dir", str(folder)]
    code = f"import resource, subprocess; subprocess.run({command}, check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return int(ended.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)


# Other formats and splits of the hub


def write_files(root: Path, name: str, files: dict[str, str]) -> Path:
    """A dataset repository of text files."""
    folder = root / "datasets" / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


ALPACA = [{"instruction": f"Sum up {number}", "input": "", "output": "Ahoy!"} for number in range(400)]
OTHERS = {
    "csv": {"train.csv": "instruction,input,output\n" + "".join(f"Sum up {n},,Ahoy!\n" for n in range(400))},
    "parts": {
        f"data/train-{part}.jsonl": "".join(json.dumps(row) + "\n" for row in ALPACA[part::2])
        for part in (0, 1)
    },
}


@pytest.mark.parametrize("form", OTHERS)
def test_a_dataset_in_another_format_gives_the_first_rows_of_its_splits(form, link, run, tmp_path):
    write_files(link.root, f"made/{form}", OTHERS[form])
    ended = run("--dataset", f"made/{form}", "--dataset_split_pc", 10, "--download_dir", "out")
    assert (ended.status, ended.err) == (0, "")
    manifest = manifest_in(tmp_path / "out")
    assert {name: entry["rows"] for name, entry in manifest["splits"].items()} == {"train": 36, "test": 4}
    rows = read(tmp_path / "out/train.jsonl") + read(tmp_path / "out/test.jsonl")
    first = ALPACA[0:80:2] if form == "parts" else ALPACA[:40]
    assert sorted(row["messages"][0]["content"] for row in rows) == sorted(
        row["instruction"] for row in first
    )
    assert manifest["recognised"].startswith("40 conversations in Alpaca's form")


def test_what_is_neither_parquet_json_nor_csv_is_refused_with_the_way_to_a_parquet_copy(link, run):
    write_files(link.root, "made/text", {"train.txt": "words\n"})
    assert "--revision refs/convert/parquet" in sentence(run("--dataset", "made/text"))


def test_the_splits_train_and_validation_are_found_and_only_messages_written(link, run, tmp_path):
    said = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    shared = [{"conversations": said, "id": number} for number in range(50)]
    splits = {"train": shared, "validation": shared[:20], "other": [{"x": 1}]}
    write_repository(link.root, "made/validated", splits)
    ended = run("--dataset", "made/validated", "--dataset_split_pc", 50, "--download_dir", "out")
    assert (ended.status, ended.err) == (0, "")
    assert visible(tmp_path / "out") == ["manifest.json", "train.jsonl", "validation.jsonl"]
    assert read(tmp_path / "out" / "validation.jsonl") == [{"messages": GOOD}] * 10


def test_a_later_file_may_have_more_fields_in_a_message(link, run, tmp_path):
    write_repository(link.root, "made/grown", {"train": chats(30)})
    more = [turn | {"weight": None, "name": "me"} for turn in GOOD]
    later = pyarrow.Table.from_pylist([{"prompt": "Why?", "messages": more}] * 30)
    folder = link.root / "datasets" / "made" / "grown" / "data"
    pyarrow.parquet.write_table(later, folder / "train-00001-of-00002.parquet")
    ended = run("--dataset", "made/grown", "--dataset_split_pc", 100, "--download_dir", "out")
    assert (ended.status, ended.err) == (0, "")
    rows = read(tmp_path / "out" / "train.jsonl") + read(tmp_path / "out" / "test.jsonl")
    assert rows == [{"messages": GOOD}] * 60
    assert "; not used: " in ended.out and "messages.name" in ended.out


def test_rows_of_ultrachat_are_written_whole(link, run, tmp_path):
    rows = [{"prompt": "Why?", "prompt_id": str(number), "messages": GOOD} for number in range(20)]
    write_repository(link.root, "made/whole", {"train_sft": rows, "test_sft": rows})
    run("--dataset", "made/whole", "--dataset_split_pc", 100, "--download_dir", "out")
    assert read(tmp_path / "out" / "train_sft.jsonl") == rows


def test_too_few_rows_are_one_sentence_with_what_to_change(chat, run, tmp_path):
    said = sentence(run("--dataset", chat, "--dataset_split_pc", 1, "--download_dir", "out"))
    assert f"{chat} has 4 conversations to train with, and 10 or more are needed" in said
    assert "raise dataset_split_pc, which is 1" in said
    assert visible(tmp_path / "out") == []


def test_a_changed_hub_gives_new_rows(link, run, tmp_path):
    manifests = []
    for count in (40, 45):
        shutil.rmtree(link.root / "datasets" / "made" / "moving", ignore_errors=True)
        write_repository(link.root, "made/moving", {"train": chats(count), "test": chats(5)})
        run("--dataset", "made/moving", "--dataset_split_pc", 100, "--download_dir", "out")
        manifests.append(manifest_in(tmp_path / "out"))
    first, second = manifests
    assert (first["splits"]["train"]["rows"], second["splits"]["train"]["rows"]) == (40, 45)
    assert first["commit"] != second["commit"] and first["sha256"] != second["sha256"]


def test_without_a_network_the_state_that_is_there_is_used_and_named(chat, environment, tmp_path, run):
    run("--dataset", chat, "--download_dir", "out")
    commit = manifest_in(tmp_path / "out")["commit"]
    process = start(
        environment | {"HF_HUB_OFFLINE": "1"}, tmp_path, "--dataset", chat, "--download_dir", "out"
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert f"this is commit {commit}, downloaded on " in out and "Nothing to do" in out


# Nothing half-done


@pytest.fixture
def chat(link, request) -> str:
    """A repository of its own with four splits of good rows."""
    name = f"made/chat{next(numbers)}"
    splits = {split: chats(400) for split in ("train_sft", "test_sft", "train_gen", "test_gen")}
    write_repository(link.root, name, splits)
    return name


USED = ("test_gen", "test_sft", "train_sft")


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))


def test_files_and_a_manifest_of_them_appear(chat, run, link, tmp_path):
    ended = run("--dataset", chat, "--dataset_split_pc", 10, "--download_dir", "out")
    assert visible(tmp_path / "out") == ["manifest.json", *(f"{split}.jsonl" for split in USED)]
    manifest = manifest_in(tmp_path / "out")
    assert manifest["request"]["dataset"] == chat and manifest["request"]["dataset_split_pc"] == 10
    assert manifest["commit"] == link.hub.state.hub.snapshot(chat).commit
    entry = manifest["splits"]["train_sft"]
    text = (tmp_path / "out" / "train_sft.jsonl").read_bytes()
    assert (entry["rows"], entry["of"], entry["bytes"]) == (40, 400, len(text))
    assert re.search(r"120 of 1,200 rows in out: [\d,]+ bytes, [\d.]+ s$", ended.out)


def test_a_second_run_asks_for_the_commit_alone_and_says_so(chat, run, link, tmp_path):
    run("--dataset", chat, "--download_dir", "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    link.requests = []
    ended = run("--dataset", chat, "--download_dir", "out")
    assert "Nothing to do: out holds these 60 rows" in ended.out
    assert [request["path"] for request in link.requests] == [f"/api/datasets/{chat}/revision/main"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_changed_argument_starts_over(chat, run, tmp_path):
    run("--dataset", chat, "--download_dir", "out")
    run("--dataset", chat, "--download_dir", "out", "--dataset_split_pc", "50", "--splits", "test_gen")
    assert len(read(tmp_path / "out" / "test_gen.jsonl")) == 200
    assert list(manifest_in(tmp_path / "out")["splits"]) == ["test_gen"]


def test_a_file_of_another_size_is_fetched_again(chat, run, tmp_path):
    run("--dataset", chat, "--download_dir", "out")
    file = tmp_path / "out" / "test_gen.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    assert run("--dataset", chat, "--download_dir", "out").status == 0
    assert file.read_text() == whole


def start(environment: dict, folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_an_interrupted_run_goes_on_after_the_row_groups_that_are_written(link, environment, run, tmp_path):
    folder = write_repository(link.root, "made/broken", {"train": texts_of(30_000, 1000)}, group=1000)
    footer = pyarrow.parquet.read_metadata(next(folder.glob("data/*")))
    arguments = ["--dataset", "made/broken", "--no_check", "--dataset_split_pc", "100"]
    arguments += ["--download_dir", str(tmp_path / "out")]
    link.hub.state.hub.bytes_per_second = 10e6
    try:
        process = start(environment, tmp_path, *arguments)
        notes = Path()
        while not notes.is_file() or notes.read_text().count("\n") < 8:
            notes = next(tmp_path.glob("out/.download-dataset/*/train.notes"), Path())
            time.sleep(0.01)
        process.kill()
        process.communicate()
    finally:
        link.hub.state.hub.bytes_per_second = None
    written = notes.read_text().count("\n")
    assert visible(tmp_path / "out") == []
    link.requests = []
    assert run(*arguments).status == 0
    assert 8 <= written < 30
    assert link.fetched()[0][1] == footer.row_group(written).column(0).dictionary_page_offset
    assert read(tmp_path / "out" / "train.jsonl") == texts_of(30_000, 1000).to_pylist()


def test_a_second_run_in_one_folder_is_refused_while_the_first_goes_on(chat, run, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".download-dataset.lock"):
        assert "could not be acquired" in sentence(run("--dataset", chat, "--download_dir", "out"))
    assert run("--dataset", chat, "--download_dir", "out").status == 0


def test_a_progress_bar_shows_in_a_terminal_only(chat, environment, run, tmp_path):
    assert run("--dataset", chat, "--download_dir", "quiet").err == ""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    command = [sys.executable, str(SCRIPT), "--dataset", chat, "--download_dir", "shown"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while block := os.read(ours, 10_000):
            shown += block
    os.close(ours)
    assert process.wait() == 0
    assert b"row groups" in shown


# The check

USER, ASSISTANT, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
BAD = {
    "no_messages": None,
    "too_short": [USER],
    "not_a_message": [USER, {"role": "assistant", "content": None}],
    "empty_content": [USER, {"role": "assistant", "content": " \n"}],
    "unknown_role": [USER, {"role": "critic", "content": "x"}],
    "late_system": [USER, ASSISTANT, SYSTEM],
    "not_alternating": [USER, ASSISTANT, ASSISTANT],
}


def test_a_bad_row_stops_the_run_and_is_quoted_with_its_line(link, run, tmp_path):
    splits = {"train": [*chats(3), {"prompt": "", "messages": BAD["late_system"]}], "test": chats(4)}
    write_repository(link.root, "made/bad", splits)
    said = sentence(run("--dataset", "made/bad", "--dataset_split_pc", 100, "--download_dir", "out"))
    assert "1 of 8 rows fail the check (1 late_system); the first is train.jsonl:4: late_system: " in said
    assert "--drop_bad_rows" in said
    assert visible(tmp_path / "out") == []


def test_a_system_message_first_and_the_users_last_word_are_fine(run, tmp_path):
    fine = [[SYSTEM, USER, ASSISTANT], [USER, ASSISTANT, USER], [USER, ASSISTANT] * 9]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in fine * 4))
    assert run("--check", "own.jsonl").status == 0


def test_dropping_bad_rows_after_an_error_fetches_nothing_again(link, run, tmp_path):
    rows = [*chats(5), *({"prompt": "bad", "messages": messages} for messages in BAD.values()), *chats(5)]
    write_repository(link.root, "made/mixed", {"train": rows})
    arguments = ["--dataset", "made/mixed", "--dataset_split_pc", "100", "--download_dir", "out"]
    arguments += ["--splits", "train"]
    assert run(*arguments).status == 1
    link.requests = []
    ended = run(*arguments, "--drop_bad_rows")
    assert ended.status == 0
    assert "10 of 17 rows in out" in ended.out
    assert read(tmp_path / "out" / "train.jsonl") == [{"messages": GOOD}] * 10
    assert len(link.fetched()) == 1  # the footer
    manifest = manifest_in(tmp_path / "out")
    assert manifest["splits"]["train"]["bad_rows"] == dict.fromkeys(BAD, 1)


def test_ones_own_file_is_checked_in_the_same_way(run, tmp_path):
    lines = [json.dumps({"messages": messages}) for messages in [GOOD, *BAD.values()]]
    (tmp_path / "own.jsonl").write_text("\n".join([*lines, '{"broken', "", "[1]"]) + "\n")
    ended = run("--check", "own.jsonl")
    assert ended.status == 1
    assert "9 of 10 rows fail the check" in ended.err and "1 unreadable" in ended.err
    assert "the first is own.jsonl:2: no_messages: " in ended.err


def test_five_bad_rows_are_quoted_and_all_are_counted(run, tmp_path):
    (tmp_path / "own.jsonl").write_text("{}\n" * 8)
    *quotes, last = run("--check", "own.jsonl").err.splitlines()
    assert [quote.split()[0] for quote in quotes] == [f"own.jsonl:{line}:" for line in range(1, 6)]
    assert "8 of 8 rows fail the check (8 no_messages); the first is own.jsonl:1: no_messages: " in last


def test_a_file_that_is_too_small_to_train_on_does_not_pass_the_check(run, tmp_path):
    (tmp_path / "own.jsonl").write_text((json.dumps({"messages": GOOD}) + "\n") * 10)
    said = "10 conversations are too few to train on, which takes 11 or more"
    assert said in sentence(run("--check", "own.jsonl"))


def test_turns_and_lengths_are_shown_in_a_table(link, run):
    rows = [{"messages": GOOD * turns} for turns in (1, 1, 1, 5)]
    write_repository(link.root, "made/table", {"train": rows})
    ended = run("--dataset", "made/table", "--dataset_split_pc", 100, "--splits", "train")
    head, under, line = ended.out.splitlines()[:3]
    assert head.split() == ["turns"] * 3 + ["characters"] * 3
    assert under.split() == ["good", "bad", *["median", "95%", "up", "to", "most"] * 2]
    assert line.split() == ["train", "4", "0", "2", "10", "10", "12", "60", "60"]


def test_a_dataset_without_messages_is_refused_before_its_rows_are_fetched(link, run):
    write_repository(link.root, "made/plain", {"train": [{"text": "x", "label": 1}] * 100})
    said = sentence(run("--dataset", "made/plain"))
    assert "no conversations in the columns text, label; known are `messages`" in said


# Faults


def test_a_passing_failure_of_any_request_is_survived(chat, link, run):
    parts = ["GET /api/datasets", "HEAD /datasets", "/tree/", "GET /datasets"]
    link.harms = [(part, [answering(503)]) for part in parts]
    assert run("--dataset", chat, "--download_dir", "out").status == 0
    assert not any(left for _, left in link.harms)


def test_a_server_that_keeps_failing_is_asked_as_often_as_wanted(chat, link, run, tmp_path):
    link.harms = [("/revision/", [answering(500)] * 99)]
    ended = run("--dataset", chat, "--download_dir", "out", "--retries", 1)
    assert "answers with status 500" in sentence(ended)
    assert len(link.requests) == 2
    assert not (tmp_path / "out").exists()


def test_a_server_that_does_not_answer_in_time_is_reported(chat, link, run, tmp_path):
    link.harms = [("/revision/", [slow(5)] * 9)]
    said = sentence(run("--dataset", chat, "--retries", 0, "--download_dir", "out"))
    assert re.search("cannot reach .*: timed out; check the network", said)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_parquet_is_reported(link, run):
    folder = write_repository(link.root, "made/torn", {"train": chats(3)})
    next(folder.glob("data/*")).write_bytes(b"PAR1 torn")
    assert "not a parquet file" in sentence(run("--dataset", "made/torn"))


NOT_THERE = {
    "not made/nowhere. Give the path of a file of your own, or start the": ["--dataset", "made/nowhere"],
    "has no split 'dev'; it has test_gen, test_sft, train_gen": ["--dataset", "CHAT", "--splits", "dev"],
    "Invalid rev id: v9": ["--dataset", "CHAT", "--revision", "v9"],
    "No such file or directory: 'none.jsonl'": ["--check", "none.jsonl"],
}


@pytest.mark.parametrize("said", NOT_THERE)
def test_what_is_not_there_is_said_in_one_sentence(said, chat, run, tmp_path):
    arguments = [chat if argument == "CHAT" else argument for argument in NOT_THERE[said]]
    assert said in sentence(run(*arguments, "--download_dir", "out"))
    assert not (tmp_path / "out").exists()


def test_one_of_several_configurations_is_named_after_a_colon(link, run, tmp_path):
    files = "- config_name: {0}\n  data_files: [{{split: train, path: data/{0}-*}}]\n"
    card = "configs:\n" + files.format("long") + files.format("short")
    write_repository(link.root, "made/two", {"long": chats(20), "short": chats(30)}, card=card)
    for unknown in ("made/two", "made/two:medium"):
        said = "the dataset comes as 'long', 'short': name one of these, as in owner/name:configuration"
        assert said in sentence(run("--dataset", unknown))
    assert run("--dataset", "made/two:short", "--dataset_split_pc", 100).status == 0
    assert len(read(tmp_path / "two-short_dataset" / "train.jsonl")) == 27  # and 3 to test with


def test_a_percentage_outside_0_to_100_is_a_usage_error(run):
    for percent in ("-1", "100.1", "nan"):
        ended = run("--dataset_split_pc", percent)
        assert (ended.status, ended.out) == (2, "") and "percentage" in ended.err.splitlines()[-1]


def test_checking_never_drops(run):
    assert run("--check", "own.jsonl", "--drop_bad_rows").status == 2


def test_a_gated_dataset_is_reported_with_the_way_in(chat, link, run):
    link.harms = [("/resolve/", [answering(401, x_error_code="GatedRepo")] * 99)]
    said = sentence(run("--dataset", chat))
    assert f"'{chat}' is a gated dataset" in said and "`hf auth login`" in said


def test_a_token_is_sent_to_the_hub_alone_and_never_printed(chat, link, environment, tmp_path):
    storage = Link(link.root)
    with served(storage) as port:

        def elsewhere(hub):
            async def answer(scope, receive, send) -> None:
                place = f"http://127.0.0.1:{port}{scope['path']}?signature=s3cret"
                await answering(302, location=place)(hub)(scope, receive, send)

            return answer

        link.harms = [(".parquet", [elsewhere] * 99)]
        storage.harms = [("test_gen", [answering(418)] * 99)]
        secret = environment | {"HF_TOKEN": "hf_s3cret"}
        arguments = ["--dataset", chat, "--download_dir", "out"]
        process = start(secret, tmp_path, *arguments)
        out, err = process.communicate()
    assert "answers with status 418" in err and process.returncode == 1
    tokens = {request["headers"].get("authorization") for request in link.requests if chat in request["path"]}
    assert tokens == {"Bearer hf_s3cret"}
    assert {request["headers"].get("authorization") for request in storage.requests} == {None}
    assert "s3cret" not in out + err


def test_a_folder_that_cannot_be_written_is_reported(chat, run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert "Not a directory: 'taken/out" in sentence(run("--dataset", chat, "--download_dir", "taken/out"))


def test_a_disk_that_takes_no_more_is_reported_and_leaves_no_half_file(link, environment, tmp_path):
    write_repository(link.root, "made/big", {"train": texts_of(2000, 1000)}, group=500)
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); "
    place = f"sys.path.insert(0, {str(SCRIPT.parent)!r}); sys.argv[0] = {str(SCRIPT)!r}; "
    code = limit + place + "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["--dataset", "made/big", "--no_check", "--dataset_split_pc", "100", "--download_dir", "out"]
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "download-dataset.py: [Errno 27] File too large\n")
    assert visible(tmp_path / "out") == []
