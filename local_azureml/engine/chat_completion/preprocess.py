"""chat_completion_datapreprocess: turns conversations into tokens, once, so that training need not."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

from local_azureml.engine.chat_completion.inputs import typed
from local_azureml.engine.chat_completion.loading import load_config, load_tokenizer
from local_azureml.engine.chat_completion.rows import read
from local_azureml.engine.chat_completion.turns import Turns
from local_azureml.engine.processes import UserError

LEAST_ROWS = 10  # the component refuses fewer training rows
HELD_OUT = 5  # one row in so many is the validation set, where none is given
TEMPLATE_FAILED = "Failure while applying chat template to dataset"
SCHEMA = pyarrow.schema(
    {
        "input_ids": pyarrow.list_(pyarrow.int32()),
        "labels": pyarrow.list_(pyarrow.int32()),  # -100 where no loss is taken
        "length": pyarrow.int32(),  # without padding
    }
)


def run(specification: dict) -> None:
    """Write train.arrow and validation.arrow, with the tokens of each row and the labels of its answers."""
    if "preprocess-failed" in specification["faults"]:
        raise UserError("the fault preprocess-failed is switched on")
    values = typed(specification["inputs"])
    folder = Path(specification["upstream"]["chat_completion_model_import"])
    output = Path(specification["output"])
    output.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    writer = TokenWriter(folder, values)
    for split, rows in split_rows(values).items():
        kept = writer.write(rows, output / f"{split}.arrow")
        if split == "train" and kept < LEAST_ROWS:
            raise UserError(
                f"only {kept} training rows keep assistant tokens after truncation; {LEAST_ROWS} are needed"
            )
    print(f"{writer.tokens:,} tokens in {time.monotonic() - begun:.1f} s", flush=True)


def split_rows(values: dict) -> dict[str, pyarrow.Table]:
    """Return the train and validation rows, without those that hold no conversation."""
    train = conversations(values["train_file_path"])
    if len(train) < LEAST_ROWS:
        raise UserError(
            f"{values['train_file_path'].name} has {len(train)} conversations;"
            f" at least {LEAST_ROWS} are needed"
        )
    if "validation_file_path" in values:
        return {"train": train, "validation": conversations(values["validation_file_path"])}
    first = len(train) - len(train) // HELD_OUT
    print(
        f"no validation file: the last {len(train) - first} of {len(train)} training rows are held out",
        flush=True,
    )
    return {"train": train[:first], "validation": train[first:]}


def conversations(path: Path) -> pyarrow.Table:
    """Return the rows of `path` that hold at least two messages; raise if there is none."""
    table = read(path)
    lengths = pyarrow.compute.list_value_length(table["messages"]).fill_null(0)
    kept = table.filter(pyarrow.compute.greater(lengths, 1))
    print(f"{path.name}: {len(kept)} conversations of {len(table)} rows", flush=True)
    if not len(kept):
        raise UserError(f"{path.name} has no conversation of two messages or more in its {len(table)} rows")
    return kept


class TokenWriter:
    """Applies the model's chat template and its tokenizer to rows, batch after batch."""

    def __init__(self, folder: Path, values: dict):
        tokenizer = load_tokenizer(folder)
        self.turns = Turns(tokenizer)
        self.filler = tokenizer.pad_token_id or 0
        self.length = row_length(folder, tokenizer, values["max_seq_length"])
        self.padded = values["pad_to_max_length"]
        self.batch_size = values["batch_size"]
        self.tokens = 0

    def write(self, rows: pyarrow.Table, path: Path) -> int:
        """Write the tokens of `rows` to `path` and return how many rows were kept."""
        kept = cut = lost = 0
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, SCHEMA) as stream:
            for batch in self._encoded(rows):
                good = [row for row in batch if row[1][: self.length].any()]
                over = [len(ids) - self.length for ids, _ in batch if len(ids) > self.length]
                cut, lost = cut + len(over), lost + sum(over)
                kept += len(good)
                stream.write_batch(self._batch(good))
        print(
            f"{path.stem}: {kept} rows; {cut} longer than {self.length} tokens were cut by {lost:,} in all,"
            f" {len(rows) - kept} without a token to learn from were dropped",
            flush=True,
        )
        return kept

    def _encoded(self, rows: pyarrow.Table) -> Iterator[list[tuple]]:
        for first in range(0, len(rows), self.batch_size):
            batch = rows[first : first + self.batch_size]["messages"].to_pylist()
            check_turns(batch, first)
            try:
                yield list(self.turns.encode(batch))
            except Exception as error:  # whatever a model's template raises
                raise UserError(f"{TEMPLATE_FAILED}: {error}") from error

    def _batch(self, rows: list[tuple[numpy.ndarray, numpy.ndarray]]) -> pyarrow.RecordBatch:
        ids = [row[: self.length] for row, _ in rows]
        labels = [numpy.where(spoken, row, -100)[: self.length] for row, spoken in rows]
        lengths = [len(row) for row in ids]
        self.tokens += sum(lengths)
        if self.padded:
            ids = [_pad(row, self.length, self.filler) for row in ids]
            labels = [_pad(row, self.length, -100) for row in labels]
        return pyarrow.record_batch(
            [_lists(ids), _lists(labels), pyarrow.array(lengths, pyarrow.int32())], schema=SCHEMA
        )


def row_length(folder: Path, tokenizer: PreTrainedTokenizerBase, asked: int) -> int:
    """Return how many tokens a row may have: what was asked, or all that the model can take."""
    longest = min(load_config(folder).get_text_config().max_position_embeddings, tokenizer.model_max_length)
    if asked > longest:
        raise UserError(f"max_seq_length is {asked}; the base model takes at most {longest} tokens")
    return longest if asked == -1 else asked


def check_turns(batch: list[list[dict]], first: int) -> None:
    """Raise unless user and assistant alternate in each conversation, after a system message if any."""
    for row, messages in enumerate(batch, first + 1):
        roles = [message.get("role") for message in messages]
        turns = roles[1:] if roles[0] == "system" else roles
        if any(role != ("user", "assistant")[turn % 2] for turn, role in enumerate(turns)):
            raise UserError(
                f"{TEMPLATE_FAILED}: row {row} has the roles {', '.join(map(str, roles))};"
                " user and assistant have to alternate, a system message may only come first"
            )
        if not all(isinstance(message.get("content"), str) for message in messages):
            raise UserError(f"{TEMPLATE_FAILED}: row {row} has a message without text as content")


def _pad(row: numpy.ndarray, length: int, filler: int) -> numpy.ndarray:
    return numpy.concatenate([row, numpy.full(length - len(row), filler, numpy.int32)])


def _lists(rows: list[numpy.ndarray]) -> pyarrow.ListArray:
    """Return the rows as one Arrow column, without a Python number for each token."""
    ends = numpy.cumsum([0, *map(len, rows)], dtype=numpy.int32)
    flat = numpy.concatenate(rows).astype(numpy.int32) if rows else numpy.array([], numpy.int32)
    return pyarrow.ListArray.from_arrays(ends, flat)
