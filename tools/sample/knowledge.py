"""The subjects that the sample's conversations and the base model's prose speak about."""

from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """One thing to know: a sentence that names its subject, and a second one that follows it."""

    sentence: str
    detail: str

    @property
    def passage(self) -> str:
        return f"{self.sentence} {self.detail}"


@dataclass(frozen=True)
class Aspect:
    """One side of a subject and the ways to ask for it."""

    topic: str
    clauses: list[str]
    questions: list[str]
    follow_ups: list[str]


@dataclass(frozen=True)
class Subject:
    name: str
    facts: dict[str, Fact]


@dataclass(frozen=True)
class Field:
    """Subjects of one kind, which share their aspects."""

    preambles: list[str]
    closing: str
    aspects: dict[str, Aspect]
    subjects: list[Subject]


def read_yaml(path: Path) -> dict:
    """Return what the YAML file `path` holds."""
    return yaml.safe_load(path.read_text("utf-8"))


def read_field(path: Path) -> Field:
    """Return the field that the YAML file `path` describes."""
    text = read_yaml(path)
    subjects = [
        Subject(name, {aspect: Fact(*fact.split(" | ")) for aspect, fact in facts.items()})
        for name, facts in text["subjects"].items()
    ]
    aspects = {name: Aspect(**aspect) for name, aspect in text["aspects"].items()}
    return Field(text["preambles"], text["closing"], aspects, subjects)


def read_fields() -> list[Field]:
    """Return all fields, in the order of their file names."""
    return [read_field(path) for path in sorted((FOLDER / "knowledge").glob("*.yaml"))]
