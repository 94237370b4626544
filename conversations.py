"""Conversations out of rows in the shapes that people have, with the reason where a row can't be one.

A row becomes a list of `{"role", "content"}`, which is all that training reads. What can't be kept is refused
by name: a tool's call, an image, a message that is not to be learned from.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy

from datafiles import DECODER
from terminal import plain

ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=lambda date: date.isoformat())
ULTRACHAT = {"prompt", "prompt_id", "messages"}  # whose rows are written whole
QUOTED_ROWS = 5  # bad rows quoted for each file; all are counted

CONVERSATIONS = {
    "messages": "OpenAI's form",
    **dict.fromkeys(("conversations", "conversation"), "ShareGPT's form"),
}
ASKED, ADDED = ("instruction", "prompt", "question"), ("input", "context")
ANSWERED = ("output", "completion", "response", "answer")
SYSTEM = ("system", "system_prompt")
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "developer": "system",
}
TOOLS = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
UNKEPT = (
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
)
READ = {"role", "from", "content", "value", "weight", "tool_calls", "function_call"}  # fields of a message
TEXTS = ("text", "input_text", "output_text")  # the types of a part of a content
SPECIAL = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>|\[/?INST\]|</?s>")
SHAPES = (
    "`messages`, `conversations`, `instruction` with `output`, `prompt` with `completion` or `response`, "
    "`question` with `answer`"
)


class UnfitError(Exception):
    """Why a row can't be trained on: a category that is counted, and a reason that is quoted."""


@lru_cache(1000)
def shape(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that make a conversation, of those that a row has; none where it has no known shape."""
    if together := [name for name in CONVERSATIONS if name in columns]:
        return tuple(together[:1])
    asked, answered = ([name for name in names if name in columns] for names in (ASKED, ANSWERED))
    added = [name for name in ADDED if name in columns]
    return (asked[0], *added, answered[0]) if asked and answered else ()


def described(columns: tuple[str, ...]) -> str:
    """What a shape is called."""
    known = "Alpaca's form" if columns[0] == "instruction" else "pairs"
    return f"{CONVERSATIONS.get(columns[0], known)} ({', '.join(columns)})"


def conversation(row: object) -> tuple[list[dict], tuple[str, ...]]:
    """A row as messages, and the columns that made them; raises UnfitError where it can't be trained on."""
    if isinstance(row, ValueError):
        raise UnfitError("unreadable", str(row))
    if not isinstance(row, dict):
        raise UnfitError("no_messages", "the row is no object with named columns")
    columns = shape(tuple(row))
    if not columns:
        named = ", ".join(map(str, list(row)[:20])) or "none"
        raise UnfitError("no_messages", f"its columns are {named}, and a conversation has {SHAPES}")
    for name in UNKEPT:
        if row.get(name):
            raise UnfitError("not_kept", f"the column {name!r} can't be trained on: remove it, or the row")
    if len(columns) == 1:
        turns = _listed(row[columns[0]])
    else:
        *asked, answered = columns
        turns = _spoken("user", [row[name] for name in asked]) + _spoken("assistant", [row[answered]])
    messages = [_message(number, turn) for number, turn in enumerate(turns, 1)]
    for name in SYSTEM:
        if isinstance(row.get(name), str) and row[name] and messages[:1] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": row[name]})
    _check(messages)
    return messages, columns


def _listed(value: object) -> list:
    if isinstance(value, str):  # as CSV holds a list
        try:
            value = DECODER.decode(value)
        except (ValueError, RecursionError) as error:
            raise UnfitError("unreadable", str(error)) from None
    if not isinstance(value, list):
        raise UnfitError("no_messages", f"its messages are {'missing' if value is None else 'not a list'}")
    return value


def _spoken(role: str, parts: list) -> list:
    """The turns of one side of a pair: turns as they are, else the texts there as one."""
    if isinstance(parts[0], list):
        return parts[0]
    parts = [part for part in parts if part is not None and part != ""]
    odd = [part for part in parts if not isinstance(part, str)]
    return [{"role": role, "content": odd[0] if odd else "\n\n".join(parts)}]


def _message(number: int, turn: object) -> dict:
    if not isinstance(turn, dict):
        raise UnfitError("not_a_message", f"message {number} has no role or no text as content")
    role, content = (
        turn[name] if name in turn else turn.get(other)
        for name, other in (("role", "from"), ("content", "value"))
    )
    role = ROLES.get(role, role) if isinstance(role, str) else None
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise UnfitError("tool_call", f"message {number} calls a tool or is a tool's answer: remove the row")
    if role == "assistant" and turn.get("weight") == 0:
        every = "has weight 0, and the training learns from every assistant's message: remove the row"
        raise UnfitError("weight_0", f"message {number} {every}")
    if isinstance(content, list):
        content = "\n".join(_text(number, part) for part in content)
    if role is None or not isinstance(content, str):
        raise UnfitError("not_a_message", f"message {number} has no role or no text as content")
    return {"role": role, "content": content}


def _text(number: int, part: object) -> str:
    """The text of a part of a content."""
    kind, text = (part.get("type") or "text", part.get("text")) if isinstance(part, dict) else ("text", part)
    if kind not in TEXTS:
        raise UnfitError(
            "not_kept", f"message {number} has a part of the type {kind!r}, which is no text: remove the row"
        )
    if not isinstance(text, str):
        raise UnfitError("not_a_message", f"message {number} has a part without text")
    return text


def _check(messages: list[dict]) -> None:
    """Raise UnfitError where the training would refuse the conversation, or learn nothing from it."""
    if len(messages) < 2:
        raise UnfitError("too_short", f"{len(messages)} message(s), where a conversation has two or more")
    due = "user"
    for number, message in enumerate(messages, 1):
        role, content = message["role"], message["content"]
        if not content or content.isspace():
            raise UnfitError("empty_content", f"message {number}, the {role}'s, is empty")
        if role != due and (role, number) != ("system", 1):
            known = {"user": "not_alternating", "assistant": "not_alternating", "system": "late_system"}
            raise UnfitError(
                known.get(role, "unknown_role"), f"message {number} is by {role!r}, not by {due!r}"
            )
        due = "assistant" if role == "user" else "user"
        try:
            content.encode()
        except UnicodeEncodeError as error:
            half = f"message {number} has half a character, {ascii(content[error.start])[1:-1]}"
            raise UnfitError("half_character", half) from None
    if messages[-1]["role"] == "user" and len(messages) == 2:
        raise UnfitError("no_answer", "no message is by 'assistant', from whose words the model learns")


class Check:
    """What is found in the rows of a file, or of a part of it."""

    def __init__(self, name: str) -> None:
        self.name, self.rows, self.special = name, 0, 0  # rows that pass; those with a special token
        self.turns, self.characters, self.quotes = [], [], []
        self.bad_rows, self.shapes, self.unused = Counter(), Counter(), Counter()

    def passed(self, line: int, row: object) -> list[dict] | None:
        """The row's messages if it is fit for training; either way it is counted."""
        try:
            messages, columns = conversation(row)
        except UnfitError as unfit:
            category, reason = unfit.args
            self.bad_rows[category] += 1
            if len(self.quotes) < QUOTED_ROWS:
                self.quotes.append(f"{self.name}:{line}: {category}: {reason}")
            return None
        self.rows += 1
        self.shapes[described(columns)] += 1
        turns = row[columns[0]] if isinstance(row[columns[0]], list) else []
        fields = {
            f"{columns[0]}.{name}" for turn in turns for name in turn.keys() - READ if turn[name] is not None
        }
        self.unused.update(
            fields | {name for name in row.keys() - {*columns, *SYSTEM} if row[name] is not None}
        )
        self.turns.append(len(messages))
        self.characters.append(sum(len(message["content"]) for message in messages))
        texts = (text for message in messages if "<" in (text := message["content"]) or "[" in text)
        self.special += any(map(SPECIAL.search, texts))
        return messages


def summary(parts: list[dict]) -> dict:
    """What is found in all parts of a file, with median, 95th percentile and maximum of the lengths."""
    found = {name: sum(part[name] for part in parts) for name in ("rows", "special")}
    for name in ("bad_rows", "shapes", "unused"):
        found[name] = dict(sum((Counter(part[name]) for part in parts), Counter()))
    found["quotes"] = [quote for part in parts for quote in part["quotes"]][:QUOTED_ROWS]
    for name in ("turns", "characters"):
        lengths = [length for part in parts for length in part[name]] or [0]
        quantiles = numpy.quantile(lengths, [0.5, 0.95, 1], method="inverted_cdf")
        found[name] = dict(zip(("median", "95%", "most"), quantiles.tolist(), strict=True))
    return found


def recognised(found: dict[str, dict], held_out: int, dataset: str) -> str:
    """What the rows were taken for, and what is not used of them, in one line."""
    shapes, unused = (
        sum((Counter(entry[name]) for entry in found.values()), Counter()) for name in ("shapes", "unused")
    )
    said = ", ".join(f"{count:,} conversations in {name}" for name, count in shapes.most_common())
    said = f"{said or 'Rows as they are'}, of {dataset}"
    said += f"; {held_out:,} are held out to test with" if held_out else ""
    return plain(said + (f"; not used: {', '.join(list(unused)[:10])}" if unused else ""))


def numbered(tables: Iterable, first: int) -> Iterator[Iterable[tuple[int, object]]]:
    """The rows of each table with their numbers, which those of a file have already."""
    for table in tables:
        yield table if isinstance(table, list) else enumerate(table.to_pylist(), first)
        first += len(table)


def written(check: Check, line: int, row: object, no_check: bool) -> dict | None:
    """What is written of a row: its conversation, and all that ultrachat has; None where it is no fit one."""
    if no_check and isinstance(row, dict):
        check.rows += 1
        return row
    messages = check.passed(line, row)
    if messages is None:
        return None
    return row if row.keys() == ULTRACHAT and row["messages"] == messages else {"messages": messages}


def json_line(row: dict) -> str:
    """The row as JSON, with null for NaN and the infinities."""
    try:
        return ENCODER.encode(row) + "\n"
    except AttributeError as error:
        raise TypeError(f"a column holds values that JSON Lines cannot carry: {error}") from error
    except ValueError:
        text = json.dumps(row, default=ENCODER.default)
        return ENCODER.encode(json.loads(text, parse_constant=lambda name: None)) + "\n"


def hold_out(path: Path, parts: list[dict], folder: Path) -> dict[str, tuple[Path, list[dict]]]:
    """Divide a file's rows between a `train.jsonl` and a `test.jsonl`; say what is found in each."""
    rows = sum(part["rows"] for part in parts)
    chosen = set(random.Random(42).sample(range(rows), min(rows, max(1, rows // 10))))
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    folder.mkdir(exist_ok=True)
    with path.open("rb") as file, train.open("wb") as kept, test.open("wb") as held:
        for number, line in enumerate(file):
            (held if number in chosen else kept).write(line)
    out = vars(Check(test.name)) | {"rows": len(chosen)}
    for what in ("turns", "characters"):
        lengths = [length for part in parts for length in part[what]]
        out[what] = [length for number, length in enumerate(lengths) if number in chosen]
        parts[0][what] = [length for number, length in enumerate(lengths) if number not in chosen]
    for part in parts:  # the counts of shapes and of what is bad stay with the rows to train on
        part |= {"rows": 0} | ({} if part is parts[0] else {"turns": [], "characters": []})
    parts[0]["rows"] = rows - len(chosen)
    return {"train": (train, parts), "test": (test, [out])}
