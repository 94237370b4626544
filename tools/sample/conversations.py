"""Writes the files of the sample dataset: short conversations in ultrachat_200k's schema and splits.

python -m tools.sample.conversations [--seed 7] [--folder FOLDER]
"""

import argparse
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from datasets import Dataset, Features, List, Value, disable_progress_bars

from tools.sample.knowledge import FOLDER, Field, Subject, read_fields, read_yaml

SEEDS = FOLDER.parents[1] / "local_azureml/seeds/hub/datasets/HuggingFaceH4/ultrachat_200k"
ROWS = {"train_sft": 6000, "test_sft": 600, "train_gen": 3000, "test_gen": 600}
ROW_GROUP = 1000  # rows, as in the original's files
DATASET_SEED = 7  # of the splits that are kept in the repository
SCHEMA = Features(
    {
        "prompt": Value("string"),
        "prompt_id": Value("string"),
        "messages": List({"content": Value("string"), "role": Value("string")}),
    }
)
FIELDS = read_fields()
PHRASES = read_yaml(FOLDER / "phrases.yaml")  # which fit every field


def sentence(text: str) -> str:
    """Return `text` with a capital at its start."""
    return text[0].upper() + text[1:]


def maybe(random: Random, share: float, choices: list[str]) -> list[str]:
    """Return one of `choices` in `share` of the calls, else nothing."""
    return [random.choice(choices)] if random.random() < share else []


def ask(random: Random, field: Field, subject: Subject, request: str) -> str:
    """Return a first prompt around `request`: often with a greeting, a reason or a thank-you."""
    preambles = [preamble.format(name=subject.name) for preamble in field.preambles]
    parts = maybe(random, 0.15, PHRASES["greetings"]) + maybe(random, 0.45, preambles)
    return " ".join([*parts, sentence(request), *maybe(random, 0.2, PHRASES["endings"])])


def answer(random: Random, field: Field, text: str) -> str:
    """Return `text` as an answer: sometimes with a friendly word before or after it."""
    return " ".join([*maybe(random, 0.35, PHRASES["openers"]), text, *maybe(random, 0.2, [field.closing])])


def ask_fact(random: Random, field: Field, subject: Subject, aspect: str) -> tuple[str, str]:
    """Return a prompt for one fact, and its answer."""
    asked = field.aspects[aspect]
    direct = random.choice(asked.questions)
    indirect = random.choice(PHRASES["requests"]).format(clause=random.choice(asked.clauses))
    request = random.choice([direct, indirect]).format(name=subject.name)
    return ask(random, field, subject, request), answer(random, field, subject.facts[aspect].passage)


def ask_overview(random: Random, field: Field, subject: Subject, aspect: str) -> tuple[str, str]:
    """Return a prompt for a subject as a whole, and its answer."""
    request = random.choice(PHRASES["overviews"]).format(name=subject.name)
    text = f"{subject.facts['what'].passage} {subject.facts[aspect].sentence}"
    return ask(random, field, subject, request), answer(random, field, text)


def ask_list(random: Random, field: Field, subject: Subject, aspect: str) -> tuple[str, str]:
    """Return a prompt for three facts, and its answer as a numbered list."""
    others = random.sample([name for name in field.aspects if name != aspect], 2)
    lines = [f"{n}. {subject.facts[name].sentence}" for n, name in enumerate([*others, aspect], 1)]
    request = random.choice(PHRASES["lists"]).format(name=subject.name)
    heading = f"Here are three facts about {subject.name}:"
    return ask(random, field, subject, request), "\n".join([heading, *lines])


def ask_comparison(random: Random, field: Field, subject: Subject, aspect: str) -> tuple[str, str]:
    """Return a prompt that compares two subjects of a field, and its answer."""
    other = another(random, field, subject)
    request = random.choice(PHRASES["comparisons"]).format(
        first=subject.name, second=other.name, topic=field.aspects[aspect].topic
    )
    text = f"{subject.facts[aspect].sentence} {other.facts[aspect].sentence}"
    return ask(random, field, subject, request), answer(random, field, text)


def another(random: Random, field: Field, subject: Subject) -> Subject:
    """Return another subject of the same field."""
    return random.choice([other for other in field.subjects if other is not subject])


def follow_up(
    random: Random, field: Field, subject: Subject, aspect: str, new_aspect: str
) -> tuple[tuple[str, str], Subject, str]:
    """Return a later prompt with its answer, and the subject and the aspect that it leads to."""
    kind = random.random()
    if kind < 0.2:
        welcome = f"{random.choice(PHRASES['welcomes'])} {field.closing}"
        return (random.choice(PHRASES["thanks"]), welcome), subject, aspect
    if kind < 0.4:
        other = another(random, field, subject)
        request = random.choice(PHRASES["turns_to_another"]).format(name=other.name)
        return (request, answer(random, field, other.facts[aspect].passage)), other, aspect
    request = random.choice(field.aspects[new_aspect].follow_ups)
    return (request, answer(random, field, subject.facts[new_aspect].passage)), subject, new_aspect


def open_conversation(
    random: Random, field: Field, subject: Subject, aspects: list[str]
) -> tuple[tuple[str, str], str]:
    """Return a first prompt with its answer, and the aspect that it leads to."""
    [kind] = random.choices([ask_fact, ask_overview, ask_list], [78, 11, 11])
    if kind is ask_fact:
        aspect = "what" if random.random() < 0.15 else aspects.pop()
        return ask_fact(random, field, subject, aspect), aspect
    return kind(random, field, subject, aspects.pop()), "what"


def converse(random: Random, turns: int) -> list[dict[str, str]]:
    """Return a conversation of `turns` prompts, each with its answer."""
    field = random.choice(FIELDS)
    subject = random.choice(field.subjects)
    aspects = [name for name in field.aspects if name != "what"]
    random.shuffle(aspects)
    if turns == 1 and random.random() < 0.15:
        return alternate([ask_comparison(random, field, subject, aspects[0])])
    pair, aspect = open_conversation(random, field, subject, aspects)
    pairs = [pair]
    for _ in range(turns - 1):
        pair, subject, aspect = follow_up(random, field, subject, aspect, aspects.pop())
        pairs.append(pair)
    return alternate(pairs)


def alternate(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Return prompts and answers as messages of the user and the assistant."""
    return [
        {"content": content, "role": role}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def draw_messages(random: Random, split: str) -> list[dict[str, str]]:
    """Return a conversation for `split`; half of the `gen` ones end with the user's turn."""
    if split.endswith("_gen") and random.random() < 0.5:
        return converse(random, 2)[:-1]
    [turns] = random.choices([1, 2, 3], [65, 28, 7])
    return converse(random, turns)


def draw_rows(random: Random, split: str, used: set[str]) -> Iterator[dict]:
    """Yield rows of `split`, whose prompts are not among `used`."""
    while True:
        messages = draw_messages(random, split)
        prompt = messages[0]["content"]
        if prompt not in used:
            used.add(prompt)
            prompt_id = hashlib.sha256(prompt.encode()).hexdigest()
            yield {"prompt": prompt, "prompt_id": prompt_id, "messages": messages}


def make_splits(seed: int) -> dict[str, Dataset]:
    """Return the four splits; no prompt occurs twice in all of them."""
    random = Random(seed)
    used: set[str] = set()
    rows = {split: list(islice(draw_rows(random, split, used), count)) for split, count in ROWS.items()}
    return {split: Dataset.from_list(drawn, features=SCHEMA) for split, drawn in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the sample dataset's files.")
    parser.add_argument("--folder", type=Path, default=SEEDS)
    parser.add_argument("--seed", type=int, default=DATASET_SEED)
    options = parser.parse_args()
    disable_progress_bars()
    (options.folder / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in make_splits(options.seed).items():
        rows.to_parquet(options.folder / f"data/{split}-00000-of-00001.parquet", batch_size=ROW_GROUP)
        print(f"{split}: {len(rows)} conversations, {rows.data.nbytes} bytes")  # which the card says too


if __name__ == "__main__":
    main()
