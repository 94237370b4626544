"""The sample dataset and the small base model that the emulator serves at first."""

import hashlib
import json
from itertools import chain, islice
from pathlib import Path

import jinja2
import pyarrow.parquet as parquet
import pytest
import yaml
from tokenizers import Tokenizer

SEEDS = Path(__file__).parents[2] / "local_azureml" / "seeds"
DATASET = SEEDS / "hub" / "datasets" / "HuggingFaceH4" / "ultrachat_200k"
BASE_MODEL = SEEDS / "base_model"
SPLITS = ["train_sft", "test_sft", "train_gen", "test_gen"]


@pytest.fixture(scope="module")
def splits():
    return {split: parquet.read_table(shard(split)).to_pylist() for split in SPLITS}


@pytest.fixture(scope="module")
def card():
    return yaml.safe_load((DATASET / "README.md").read_text("utf-8").split("---\n")[1])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(BASE_MODEL / "tokenizer.json"))


def shard(split):
    return DATASET / "data" / f"{split}-00000-of-00001.parquet"


def roles(row):
    return [message["role"] for message in row["messages"]]


def test_every_split_has_the_columns_of_ultrachat():
    message = "list<element: struct<content: string, role: string>>"
    columns = [("prompt", "string"), ("prompt_id", "string"), ("messages", message)]
    found = {split: parquet.read_schema(shard(split)) for split in SPLITS}
    shapes = {split: [(field.name, str(field.type)) for field in schema] for split, schema in found.items()}
    assert shapes == dict.fromkeys(SPLITS, columns)


def test_the_card_names_files_rows_and_sizes_and_says_what_it_is_not(card, splits):
    files = [{"split": split, "path": f"data/{split}-*"} for split in SPLITS]
    assert card["configs"] == [{"config_name": "default", "data_files": files}]
    information = card["dataset_info"]
    counts = {split["name"]: split["num_examples"] for split in information["splits"]}
    assert counts == {split: len(rows) for split, rows in splits.items()}
    assert information["download_size"] == sum(shard(split).stat().st_size for split in SPLITS)
    assert information["dataset_size"] == sum(split["num_bytes"] for split in information["splits"])
    assert "This is **not** HuggingFaceH4/ultrachat_200k" in (DATASET / "README.md").read_text("utf-8")


def test_a_row_is_a_prompt_its_hash_and_a_conversation_that_begins_with_it(splits):
    for row in chain(*splits.values()):
        assert row["prompt"] == row["messages"][0]["content"]
        assert row["prompt_id"] == hashlib.sha256(row["prompt"].encode()).hexdigest()
        assert roles(row) == (["user", "assistant"] * len(roles(row)))[: len(roles(row))]


def test_conversations_for_fine_tuning_end_with_the_assistant_and_those_for_generation_with_either(splits):
    ends = {split: {roles(row)[-1] for row in rows} for split, rows in splits.items()}
    assert all(ends[split] == {"assistant"} for split in SPLITS[:2])
    assert all(ends[split] == {"user", "assistant"} for split in SPLITS[2:])


def test_no_prompt_occurs_twice_so_that_no_held_out_row_is_a_copy(splits):
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_no_held_out_prompt_stands_in_the_prose_that_the_base_model_learns_from(splits):
    from tools.sample.prose import write_documents

    held_out = [row["prompt"] for split in ("test_sft", "test_gen") for row in splits[split]]
    prose = "\n".join(islice(write_documents(7), 1000))
    assert [prompt for prompt in held_out if prompt in prose] == []


def test_the_first_five_percent_speak_about_every_field(splits):
    from tools.sample.knowledge import read_fields

    texts = [row["prompt"] for row in splits["train_sft"][:300]]
    for field in read_fields():
        assert any(subject.name in text for subject in field.subjects for text in texts)


def test_the_same_seed_makes_the_same_dataset(splits):
    from tools.sample.conversations import make_splits

    assert {split: rows.to_list() for split, rows in make_splits(7).items()} == splits


def test_the_checkpoint_is_small_and_stored_in_16_bit():
    with (BASE_MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {weight["dtype"] for name, weight in header.items() if name != "__metadata__"} == {"BF16"}
    assert (BASE_MODEL / "model.safetensors").stat().st_size <= 10e6
    assert sum(path.stat().st_size for path in BASE_MODEL.rglob("*")) < 12e6


def test_the_chat_template_is_phi_3s():
    options = {"trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(**options).from_string((BASE_MODEL / "chat_template.jinja").read_text())
    asked = [{"role": "user", "content": "What are bees?"}]
    said = template.render(messages=asked, add_generation_prompt=True)
    assert said == "<|user|>\nWhat are bees?<|end|>\n<|assistant|>\n"


def test_generation_stops_at_the_end_of_a_turn(tokenizer):
    settings = json.loads((BASE_MODEL / "generation_config.json").read_text("utf-8"))
    assert settings["eos_token_id"] == [tokenizer.token_to_id(end) for end in ("<|endoftext|>", "<|end|>")]


def test_the_tokenizer_keeps_every_text(tokenizer):
    text = "Crème brûlée, 味噌汁 and 180 °C 😊"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
