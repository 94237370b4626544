"""The sample dataset and the small base model that the emulator serves at first."""

import hashlib
import json
from itertools import compress, islice, pairwise
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import yaml

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
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE_MODEL)


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


def test_the_card_names_every_split_with_its_files_and_rows(card, splits):
    files = [{"split": split, "path": f"data/{split}-*"} for split in SPLITS]
    assert card["configs"] == [{"config_name": "default", "data_files": files}]
    counts = {split["name"]: split["num_examples"] for split in card["dataset_info"]["splits"]}
    assert counts == {split: len(rows) for split, rows in splits.items()}


def test_the_card_gives_the_sizes_of_the_files_and_of_the_rows(card):
    information = card["dataset_info"]
    assert information["download_size"] == sum(shard(split).stat().st_size for split in SPLITS)
    assert information["dataset_size"] == sum(split["num_bytes"] for split in information["splits"])


def test_the_card_says_that_it_is_an_emulator():
    assert "This is **not** HuggingFaceH4/ultrachat_200k" in (DATASET / "README.md").read_text("utf-8")


@pytest.mark.parametrize("split", SPLITS)
def test_a_prompt_is_the_first_message_and_its_id_the_hash_of_it(splits, split):
    for row in splits[split]:
        assert row["prompt"] == row["messages"][0]["content"]
        assert row["prompt_id"] == hashlib.sha256(row["prompt"].encode()).hexdigest()


@pytest.mark.parametrize("split", SPLITS)
def test_user_and_assistant_alternate_and_the_user_begins(splits, split):
    for row in splits[split]:
        assert roles(row)[0] == "user"
        assert all(first != second for first, second in pairwise(roles(row)))


@pytest.mark.parametrize("split", ["train_sft", "test_sft"])
def test_conversations_for_fine_tuning_end_with_the_assistant(splits, split):
    assert {roles(row)[-1] for row in splits[split]} == {"assistant"}


@pytest.mark.parametrize("split", ["train_gen", "test_gen"])
def test_conversations_for_generation_end_with_either_side(splits, split):
    assert {roles(row)[-1] for row in splits[split]} == {"user", "assistant"}
    assert min(len(row["messages"]) for row in splits[split] if roles(row)[-1] == "user") == 3


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
    from safetensors import safe_open

    with safe_open(BASE_MODEL / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert (BASE_MODEL / "model.safetensors").stat().st_size <= 10e6
    assert sum(path.stat().st_size for path in BASE_MODEL.rglob("*")) < 12e6


def test_the_checkpoint_loads_as_a_phi_3_model():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    assert type(model).__name__ == "Phi3ForCausalLM"


def test_the_tokenizer_applies_the_chat_template_of_phi_3(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What are bees?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>\nWhat are bees?<|end|>\n<|assistant|>\n"


def test_trl_knows_the_chat_template_and_marks_the_assistants_turns(tokenizer):
    from trl.chat_template_utils import get_training_chat_template

    marked = get_training_chat_template(tokenizer)
    messages = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    kept = list(compress(encoded["input_ids"], encoded["assistant_masks"]))
    assert tokenizer.decode(kept) == "Hello!<|end|>\n<|endoftext|>"


def test_generation_stops_at_the_end_of_a_turn(tokenizer):
    settings = json.loads((BASE_MODEL / "generation_config.json").read_text("utf-8"))
    assert settings["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"])


def test_the_tokenizer_keeps_every_text(tokenizer):
    text = "Crème brûlée, 味噌汁 and 180 °C 😊"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
