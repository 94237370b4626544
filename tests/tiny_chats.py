"""Conversations about what animals say, few and short enough for a test to learn from."""

import json
import random
from pathlib import Path

ANIMALS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink"}


def chats(rows: int, seed: int = 0) -> list[dict]:
    """Return `rows` conversations about what animals say, in ultrachat's schema."""
    draw = random.Random(seed)
    return [_chat(draw, f"{seed}-{row}") for row in range(rows)]


def _chat(draw: random.Random, name: str) -> dict:
    turns = []
    for animal in draw.sample(sorted(ANIMALS), draw.randint(1, 3)):
        turns.append({"role": "user", "content": f"What does the {animal} say?"})
        turns.append({"role": "assistant", "content": f"The {animal} says {ANIMALS[animal]}."})
    return {"prompt": turns[0]["content"], "prompt_id": name, "messages": turns}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write `rows` as JSON Lines and return the path."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
