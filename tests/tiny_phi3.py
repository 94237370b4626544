"""A random checkpoint of the Phi-3 architecture and chats to train it on, small enough for a test."""

import json
import random
from pathlib import Path

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
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


def make_checkpoint(folder: Path, shards: bool = False, **overrides) -> Path:
    """Write a random Phi-3 checkpoint of some 50 000 parameters to `folder` and return it."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast
    from trl.chat_template_utils import phi3_chat_template

    bytewise = ByteLevelBPETokenizer()
    texts = [turn["content"] for chat in chats(50) for turn in chat["messages"]]
    bytewise.train_from_iterator(texts, vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise._tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=phi3_chat_template,
        model_max_length=256,
    )
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 256,
    }
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = Phi3Config(**{**sizes, "sliding_window": None, "tie_word_embeddings": False, **tokens, **overrides})
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 5], pad_token_id=2)
    model.save_pretrained(folder, max_shard_size="30KB" if shards else "5GB")
    tokenizer.save_pretrained(folder)
    return folder
