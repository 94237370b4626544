"""Files of one's own through download-dataset.py, by its command line: what is taken, and what is refused."""

import codecs
import csv
import gzip
import io
import json
import os
import re
from collections.abc import Callable

import pyarrow
import pyarrow.parquet
import pytest
from download_script import sentence, warm_script

PAIRS = [(f"How do I clean my lamp number {number}?", f"Ahoy! Dust it, {number}.") for number in range(40)]
WANTED = [
    [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in PAIRS
]
SHAPES: dict[str, tuple[str, Callable[[str, str], dict]]] = {
    "messages": (
        "OpenAI's form (messages)",
        lambda asked, said: {"messages": turns("role", "content", asked, said), "id": 5},
    ),
    "conversations": (
        "ShareGPT's form (conversations)",
        lambda asked, said: {"conversations": turns("from", "value", asked, said)},
    ),
    "instruction": (
        "Alpaca's form (instruction, input, output)",
        lambda asked, said: {"instruction": asked, "input": "", "output": said},
    ),
    "completion": ("pairs (prompt, completion)", lambda asked, said: {"prompt": asked, "completion": said}),
    "response": ("pairs (prompt, response)", lambda asked, said: {"prompt": asked, "response": said}),
    "question": ("pairs (question, answer)", lambda asked, said: {"question": asked, "answer": said, "b": 1}),
    "turns": (
        "pairs (prompt, completion)",
        lambda asked, said: {"prompt": turns("role", "content", asked), "completion": said},
    ),
    "parts": (
        "OpenAI's form (messages)",
        lambda asked, said: {"messages": turns("role", "content", [text(asked)], [text(said)])},
    ),
}


def turns(role: str, content: str, asked, *said) -> list[dict]:
    names = ("human", "gpt") if role == "from" else ("user", "assistant")
    return [{role: name, content: value} for name, value in zip(names, (asked, *said), strict=False)]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    home = {"HF_HOME": str(tmp_path_factory.mktemp("cache")), "HF_ENDPOINT": "http://127.0.0.1:9"}
    with warm_script(os.environ | home) as run:
        yield run


@pytest.fixture
def own(script, tmp_path):
    """A function that writes a file and runs the script on it; how that ended."""

    def own(name: str, content: bytes | str, *options: str):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return script(tmp_path, "--dataset", name, "--download_dir", "out", *options)

    return own


@pytest.fixture
def written(tmp_path):
    """A function that reads what the script wrote: the manifest, and the rows of all its files."""

    def written() -> tuple[dict, list[list[dict]]]:
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        files = [tmp_path / "out" / manifest[role] for role in ("train", "test")]
        lines = [line for file in files for line in file.read_text().splitlines()]
        return manifest, sorted((json.loads(line)["messages"] for line in lines), key=number)

    return written


def number(messages: list[dict]) -> int:
    return int(re.search(r"\d+", messages[0]["content"])[0])


def as_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict], delimiter: str = ",") -> str:
    file = io.StringIO()
    table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def as_parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def rows_of(shape: str) -> list[dict]:
    return [SHAPES[shape][1](*pair) for pair in PAIRS]


LINES, QUESTIONS = as_lines(rows_of("messages")), rows_of("question")
FORMATS = {
    "lines.jsonl": LINES,
    "list.json": json.dumps(rows_of("messages")),
    "indented.json": json.dumps(rows_of("messages"), indent=2),
    "table.csv": as_csv(QUESTIONS),
    "messages.csv": as_csv([{"messages": json.dumps(row["messages"])} for row in rows_of("messages")]),
    "semicolons.csv": as_csv(QUESTIONS, ";"),
    "capitals.csv": as_csv([{"Question": row["question"], " Answer": row["answer"]} for row in QUESTIONS]),
    "table.tsv": as_csv(QUESTIONS, "\t"),
    "table.parquet": as_parquet(rows_of("messages")),
    "windows.jsonl": LINES.replace("\n", "\r\n"),
    "unended.jsonl": LINES.rstrip(),
    "blank.jsonl": "\n" + LINES.replace("\n", "\n\n"),
    "marked.jsonl": codecs.BOM_UTF8 + LINES.encode(),
    "powershell.jsonl": LINES.encode("utf-16"),
    "excel.csv": as_csv(QUESTIONS, "\t").encode("utf-16"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_becomes_messages_and_is_said_in_one_line(shape, own, written):
    ended = own("mine.jsonl", as_lines(rows_of(shape)))
    manifest, rows = written()
    assert (ended.status, rows) == (0, WANTED)
    assert manifest["recognised"] in ended.out
    assert manifest["recognised"].startswith(f"40 conversations in {SHAPES[shape][0]}")


@pytest.mark.parametrize("name", [*FORMATS, "lines.jsonl.gz", "excel.csv.gz"])
def test_each_format_and_encoding_gives_the_same_rows(name, own, written):
    content = FORMATS[name.removesuffix(".gz")]
    content = content if isinstance(content, bytes) else content.encode()
    ended = own(name, gzip.compress(content) if name.endswith(".gz") else content)
    assert (ended.status, ended.err) == (0, "")
    assert written()[1] == WANTED


def test_a_tenth_is_held_out_always_the_same(own, written, tmp_path):
    own("mine.jsonl", LINES)
    manifest, _ = written()
    held_out = (tmp_path / "out" / "test.jsonl").read_bytes()
    sizes = {name: entry["rows"] for name, entry in manifest["splits"].items()}
    assert sizes == {"train": 36, "test": 4}
    assert (manifest["train"], manifest["test"], manifest["unseen"]) == (
        "train.jsonl",
        "test.jsonl",
        "test.jsonl",
    )
    assert "4 are held out" in manifest["recognised"]
    (tmp_path / "out" / "test.jsonl").unlink()
    own("mine.jsonl", LINES)
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == held_out


@pytest.mark.parametrize("second", ["test.csv", "validation.jsonl.gz"])
def test_a_folder_gives_its_own_test_rows(second, script, written, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(rows_of("messages")[:30]))
    rest = as_csv(QUESTIONS[30:]) if second.endswith("csv") else as_lines(QUESTIONS[30:])
    (folder / second).write_bytes(gzip.compress(rest.encode()) if second.endswith("gz") else rest.encode())
    (folder / "notes.txt").write_text("not data")
    ended = script(tmp_path, "--dataset", "mine", "--download_dir", "out")
    manifest, rows = written()
    assert (ended.status, rows) == (0, WANTED)
    assert (manifest["name"], manifest["test"]) == ("mine", second.split(".")[0] + ".jsonl")
    assert {name: entry["rows"] for name, entry in manifest["splits"].items()} == {
        "train": 30,
        second.split(".")[0]: 10,
    }


def test_a_file_is_found_from_a_folder_below_it(script, tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "mine.jsonl").write_text(LINES)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    assert script(tmp_path / "runs" / "one", "--dataset", "examples/mine.jsonl").status == 0
    assert (tmp_path / "runs" / "one" / "mine_dataset" / "train.jsonl").exists()


def test_the_same_content_has_the_same_hash_and_changed_content_another(own, written, tmp_path):
    own("mine.jsonl", LINES)
    first = written()[0]["sha256"]
    (tmp_path / "copy.jsonl").write_text(LINES)
    assert "Nothing to do" in own("mine.jsonl", LINES).out
    own("copy.jsonl", LINES)
    assert written()[0]["sha256"] == first
    ended = own("mine.jsonl", LINES.replace("Ahoy!", "Avast!"))
    assert ended.status == 0 and "Nothing to do" not in ended.out
    assert written()[0]["sha256"] != first


def test_a_system_column_and_an_input_are_kept(own, tmp_path):
    rows = [{"system": "Be a sailor.", "instruction": "Sum up", "input": "a log", "output": "Ahoy!"}] * 20
    assert own("mine.jsonl", as_lines(rows)).status == 0
    assert json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])["messages"] == [
        {"role": "system", "content": "Be a sailor."},
        {"role": "user", "content": "Sum up\n\na log"},
        {"role": "assistant", "content": "Ahoy!"},
    ]


def test_columns_that_are_not_used_are_named(own):
    assert "; not used: b\n" in own("mine.jsonl", as_lines(QUESTIONS)).out


def test_special_tokens_are_a_warning_with_their_count(own):
    rows = rows_of("question")
    rows[3]["answer"] = "It ends<|end|>"
    rows[4]["question"] += "<|user|><|end|>"
    warning = "Warning: special tokens such as <|end|>, which end a turn, are in 2 conversations.\n"
    assert warning in own("mine.jsonl", as_lines(rows)).out


def bad(**changed) -> str:
    return as_lines([*rows_of("messages")[:20], changed])


USER, SAID = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.png"}}]}
REFUSED = {
    "tool_calls": (bad(messages=[USER, CALL]), ":21: tool_call: message 2 calls a tool"),
    "tool": (bad(messages=[USER, {"role": "tool", "content": "4"}]), "tool_call: message 2"),
    "function_call": (bad(messages=[USER, SAID | {"function_call": {"name": "f"}}]), "tool_call: message 2"),
    "tools": (bad(messages=[USER, SAID], tools=[{"name": "f"}]), "not_kept: the column 'tools'"),
    "image": (bad(messages=[PICTURE, SAID]), "not_kept: message 1 has a part of the type 'image_url'"),
    "weight": (bad(messages=[USER, SAID | {"weight": 0}]), "weight_0: message 2 has weight 0"),
    "surrogate": (
        bad(messages=[USER | {"content": "bad \ud83d"}, SAID]).encode("ascii", "backslashreplace"),
        r"half_character: message 1 has half a character, \ud83d",
    ),
    "no answer": (bad(messages=[{"role": "system", "content": "x"}, USER]), "no_answer: no message is by"),
    "twice": (LINES + '{"messages": [], "messages": []}\n', "unreadable: it is not JSON: the key 'messages'"),
    "number": (bad(question="2+2?", answer=4), "not_a_message: message 2 has no role or no text"),
    "shape": (bad(text="x", label=1), "no_messages: its columns are text, label, and a conversation has `"),
    "preferences": (bad(prompt="x", chosen="y", rejected="z"), "no_messages: its columns are prompt, chosen"),
    "broken line": (LINES + '{"messages": [\n', ":41: unreadable: it is not JSON: "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name_and_nothing_is_written(what, own, tmp_path):
    content, said = REFUSED[what]
    refusal = sentence(own("mine.jsonl", content))
    assert said in refusal and " 1 of " in refusal
    assert not (tmp_path / "out" / "manifest.json").exists()


UNREADABLE = {
    "latin.jsonl": (
        LINES.replace("lamp", "Lämp").encode("latin-1"),
        "is not in utf-8, as its byte 0xe4 shows",
    ),
    "unmarked.jsonl": (LINES.encode("utf-16-le"), "is neither UTF-8, nor UTF-16 with a byte-order mark"),
    "wide.jsonl": (LINES.encode("utf-32"), "is neither UTF-8, nor UTF-16 with a byte-order mark"),
    "sheet.xlsx": (b"PK\x03\x04rest", "is an Excel workbook or a zip archive"),
    "pretty.json": (json.dumps(rows_of("messages")[0], indent=1), "has JSON that goes over many lines"),
    "torn.json": (json.dumps(rows_of("messages"))[:-30], "is no JSON list: row 40"),
    "wrong.json": ('[{"messages": nul}, ' + json.dumps(rows_of("messages"))[1:], "is no JSON list: row 1"),
    "more.json": ("[]\n[]", "goes on after its list"),
    "quote.csv": ('question,answer\nHow?,"So\n', "is no CSV, perhaps since a quote is not closed"),
    "twice.csv": ("answer,answer\na,b\n", "has two columns of one name"),
    "torn.jsonl.gz": (gzip.compress(LINES.encode())[:-20], "is damaged"),
    "torn.parquet": (as_parquet(QUESTIONS)[:-9], "Parquet magic bytes not found in footer"),
    "empty.jsonl": ("", "has 0 conversations to train with, and 10 or more are needed"),
    "few.jsonl": (as_lines(QUESTIONS[:10]), "has 9 conversations to train with, since 1 of 10 is held out"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_used_is_one_sentence_that_names_it(name, own, tmp_path):
    content, said = UNREADABLE[name]
    refusal = sentence(own(name, content))
    assert name in refusal and said in refusal
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "given", ["mine.json", "./mine", "none/mine.jsonl", "~/no-such-file.csv", "C:\\mine"]
)
def test_a_path_where_nothing_is_says_what_there_is(given, script, tmp_path):
    (tmp_path / "mine.jsonl").write_text(LINES)
    refusal = sentence(script(tmp_path, "--dataset", given))
    assert f"there is no file {given}: " in refusal
    assert "~" in given or f"{tmp_path} has mine.jsonl" in refusal


def test_a_folder_without_data_or_without_a_split_to_train_on_is_refused(script, tmp_path):
    (tmp_path / "mine").mkdir()
    assert "there are no data in the folder" in sentence(script(tmp_path, "--dataset", "mine"))
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / "mine" / name).write_text(LINES)
    refusal = sentence(script(tmp_path, "--dataset", "mine"))
    assert "mine has no split called train to learn from; it has one, two" in refusal


def test_two_files_for_one_split_are_refused(script, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("train.jsonl", "train.csv", "test.jsonl"):
        (tmp_path / "mine" / name).write_text(LINES)
    refusal = sentence(script(tmp_path, "--dataset", "mine"))
    assert "mine has several files for train: train.csv, train.jsonl; leave one of them there" in refusal


def test_ones_own_files_are_never_written_over(own, script, tmp_path):
    (tmp_path / "train.jsonl").write_text(LINES)
    refusal = sentence(script(tmp_path, "--dataset", "train.jsonl", "--download_dir", "."))
    assert "holds your own files" in refusal
    assert (tmp_path / "train.jsonl").read_text() == LINES


def test_bad_rows_can_be_left_out(own, written):
    content, _ = REFUSED["weight"]
    assert own("mine.jsonl", content, "--drop_bad_rows").status == 0
    assert written()[1] == WANTED[:20]
