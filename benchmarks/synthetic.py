"""What benchmarks train: rows of ultrachat_200k's lengths, and a checkpoint of Phi-3-mini's size."""

import json
import random
from pathlib import Path

import pyarrow.parquet
import torch
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

from local_azureml.identifiers import SEEDS, SMALL_MODEL

SAMPLE = SEEDS / "hub/datasets/HuggingFaceH4/ultrachat_200k/data/train_sft-00000-of-00001.parquet"
SPREAD = 0.5  # standard deviation of a length's logarithm
TOKENS_A_TURN = 32  # of the sample's tokenizer, roughly


def full_size(layers: int, folder: Path) -> Path:
    """Write a checkpoint of Phi-3-mini's widths with random weights in 16 bits."""
    config = Phi3Config(num_hidden_layers=layers, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Phi3ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.cpu().save_pretrained(folder / "full")
    AutoTokenizer.from_pretrained(SMALL_MODEL).save_pretrained(folder / "full")
    return folder / "full"


def write_rows(path: Path, rows: int, median: int, seed: int) -> None:
    """Write conversations whose lengths are log-normal around `median` tokens."""
    draw = random.Random(seed)
    sample = pyarrow.parquet.read_table(SAMPLE)["messages"].to_pylist()
    with path.open("w", encoding="utf-8") as lines:
        for _ in range(rows):
            turns = max(2, round(draw.lognormvariate(0, SPREAD) * median / TOKENS_A_TURN / 2) * 2)
            messages: list[dict] = []
            while len(messages) < turns:
                messages += draw.choice(sample)
            lines.write(json.dumps({"messages": messages[:turns]}) + "\n")
