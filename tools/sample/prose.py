"""Running prose about the same subjects: what the base model learns from. No chat turns occur in it."""

from collections.abc import Iterator
from random import Random

from tools.sample.conversations import (
    DATASET_SEED,
    FIELDS,
    PHRASES,
    another,
    ask_comparison,
    ask_fact,
    ask_list,
    ask_overview,
    make_splits,
    sentence,
)
from tools.sample.knowledge import FOLDER, Field, Subject, read_yaml

FRAMES = read_yaml(FOLDER / "frames.yaml")


def frame(random: Random, kind: str, **words: str) -> str:
    """Return one of the frames of `kind` with `words` filled in."""
    return sentence(random.choice(FRAMES[kind]).format(**words))


def entry(random: Random, field: Field, subject: Subject) -> str:
    """Return an encyclopaedia's entry: what the subject is, then some of its facts."""
    others = random.sample([name for name in field.aspects if name != "what"], random.randint(1, 4))
    return " ".join(subject.facts[name].passage for name in ["what", *others])


def column(random: Random, field: Field, subject: Subject) -> str:
    """Return a piece of a magazine's column: what people ask, and what is known about it."""
    name = random.choice(list(field.aspects))
    clause = random.choice(field.aspects[name].clauses).format(name=subject.name)
    return f"{frame(random, 'columns', clause=clause)} {subject.facts[name].passage}"


def survey(random: Random, field: Field, subject: Subject) -> str:
    """Return one aspect of two or three subjects, side by side."""
    name = random.choice(list(field.aspects))
    others = random.sample([other for other in field.subjects if other is not subject], random.randint(1, 2))
    return " ".join(one.facts[name].sentence for one in [subject, *others])


def summary(random: Random, field: Field, subject: Subject) -> str:
    """Return some facts about a subject, as a list on a page of notes."""
    names = random.sample(list(field.aspects), 3)
    lines = [f"{n}. {subject.facts[name].sentence}" for n, name in enumerate(names, 1)]
    return "\n".join([frame(random, "summaries", name=subject.name), *lines])


def letter(random: Random, field: Field, subject: Subject) -> str:
    """Return the story of a letter that asked for something, of what came back and how it ended."""
    [kind] = random.choices([ask_fact, ask_overview, ask_list, ask_comparison], [70, 10, 10, 10])
    first, second = random.sample([name for name in field.aspects if name != "what"], 2)
    asked, answered = kind(random, field, subject, first)
    other = another(random, field, subject).name
    told = frame(random, "letters", asked=asked, name=subject.name, other=other)
    ending = random.choice([second_letter(random, field, subject, second), farewell(random, field), ""])
    return f"{told} {answered} {ending}".strip()


def second_letter(random: Random, field: Field, subject: Subject, name: str) -> str:
    """Return how a letter's story goes on with another fact."""
    asked = random.choice(field.aspects[name].follow_ups)
    return f"{frame(random, 'second_letters', asked=asked)} {subject.facts[name].passage}"


def farewell(random: Random, field: Field) -> str:
    """Return how a letter's story ends."""
    thanks, welcome = random.choice(PHRASES["thanks"]), random.choice(PHRASES["welcomes"])
    return frame(random, "farewells", thanks=thanks, welcome=welcome, closing=field.closing)


KINDS = {entry: 15, column: 35, survey: 5, summary: 5, letter: 40}  # percent of the paragraphs


def paragraph(random: Random) -> str:
    """Return a paragraph about any subject."""
    field = random.choice(FIELDS)
    [kind] = random.choices(list(KINDS), list(KINDS.values()))
    return kind(random, field, random.choice(field.subjects))


def held_out_prompts() -> set[str]:
    """Return the first prompts of the sample dataset's test splits."""
    splits = make_splits(DATASET_SEED)
    return {prompt for split in ("test_sft", "test_gen") for prompt in splits[split]["prompt"]}


def write_documents(seed: int) -> Iterator[str]:
    """Yield documents of one to three paragraphs, without end; none quotes a held-out prompt."""
    random, held_out = Random(seed), held_out_prompts()
    while True:
        document = "\n".join(paragraph(random) for _ in range(random.randint(1, 3)))
        if not any(prompt in document for prompt in held_out):
            yield document
