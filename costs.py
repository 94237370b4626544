"""What the training of finetune_phi3_ultrachat.ipynb comes to: steps, memory, hours and, at most, dollars.

Of memory and hours it is the least that can be, so that too little is bound to fail; of dollars the most.
"""

import json
import math
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from types import SimpleNamespace

from settings import Check

PRICES = "https://prices.azure.com/api/retail/prices"  # public, without a key
README = {("standard_nc24ads_a100_v4", "dedicated"): 3.70}  # USD an hour in the United States in 2026
CARDS = {  # in a size's name -> GB of each GPU, its teraflops with 16 bits. Source: Azure's pages of sizes
    "t4_v3": (16, 65),
    "nd40rs_v2": (32, 125),
    r"nc\d+r?s_v3": (16, 125),  # V100
    "a10_v5": (24, 125),
    "nd96asr_v4": (40, 312),
    "a100": (80, 312),
    "h100": (94, 990),
    "h200": (141, 990),
    "mi300x": (192, 1307),
}
MODELS = {  # in a model's name -> billions of weights, tokens of its context. Source: the models' cards
    "phi-3.*mini-4k": (3.8, 4096),
    "phi-3.*mini": (3.8, 131072),
    "phi-3-small-8k": (7.4, 8192),
    "phi-3-medium-4k": (14, 4096),
    "phi-4-mini": (3.8, 131072),
    "phi-4$": (14.7, 16384),
}
CHARACTERS = 4  # of English in a token, about


def of_name(table: dict, name: str) -> tuple | None:
    """Return the entry of a table whose pattern is in a name."""
    return next((entry for pattern, entry in table.items() if re.search(pattern, name.lower())), None)


@dataclass(frozen=True)
class Training:
    """What step 5 asks for."""

    model: str
    values: dict  # all inputs of the component
    size: str
    tier: str
    gpus: int  # of each node
    idle_seconds: int  # that the machines stay after the job
    limit: float  # of the job, in minutes
    lengths: list[int]  # characters of each conversation to train on
    tested: int  # conversations to evaluate with

    @classmethod
    def of(cls, now: SimpleNamespace, size: str) -> "Training":
        """Return what the kernel's variables after step 4 come to, on machines of a size."""
        kinds = {"integer": int, "number": float}
        values = {name: known.default for name, known in now.component.inputs.items()} | now.settings
        values = {
            name: kinds.get(now.component.inputs[name].type, str)(value)
            for name, value in values.items()
            if value is not None
        }
        train, test = (now.folder / now.data[role] for role in ("train", "test"))
        with train.open(encoding="utf-8") as lines, test.open("rb") as others:
            talks, tested = [json.loads(line)["messages"] for line in lines], sum(1 for _ in others)
        lengths = [sum(len(message["content"]) for message in talk) for talk in talks]
        gpus = int(now.settings.get("number_of_gpu_to_use_finetuning", now.gpus_per_node))
        tier, idle = now.cluster.tier.lower(), now.cluster.idle_time_before_scale_down
        return cls(now.model.name, values, size, tier, gpus, idle, now.job_limit_minutes, lengths, tested)

    @property
    def nodes(self) -> int:
        return self.values["num_nodes_finetune"]

    @cached_property
    def batch(self) -> int:
        """Return how many rows a pass on all GPUs takes."""
        return self.values["per_device_train_batch_size"] * self.gpus * self.nodes

    @cached_property
    def epoch(self) -> int:
        """Return the steps of an epoch."""
        return math.ceil(len(self.lengths) / self.batch / self.values["gradient_accumulation_steps"])

    @cached_property
    def steps(self) -> int:
        most = self.values["max_steps"]
        return most if most > 0 else self.epoch * self.values["num_train_epochs"]

    @cached_property
    def rows(self) -> int:
        """Return how many rows it learns from, those of a second epoch counted again."""
        return math.ceil(self.steps / self.epoch * len(self.lengths))

    @cached_property
    def evaluations(self) -> int:
        strategy, share = self.values["evaluation_strategy"], self.values["evaluation_steps_interval"]
        every = math.ceil(share * self.epoch) if share else self.values["eval_steps"]
        of_kind = {"disable": 0, "epoch": math.ceil(self.steps / self.epoch), "steps": self.steps // every}
        return of_kind[strategy]

    @cached_property
    def longest(self) -> float:
        """Return the tokens of the longest row, about, as the job cuts it."""
        asked, known = self.values["max_seq_length"], of_name(MODELS, self.model)
        cut = asked if asked > 0 else known[1] if known else math.inf
        return min(max(self.lengths) / CHARACTERS, cut)

    @cached_property
    def tokens(self) -> float:
        """Return how many tokens it learns from, about."""
        cut = [min(length / CHARACTERS, self.longest) for length in self.lengths]
        return self.rows * sum(cut) / len(cut)

    def memory(self, gpus: int) -> float:
        """Return the least GB that each GPU needs, where a node has so many; 0 for a model that is not known.

        LoRA needs the weights; training all of them 14 bytes more for each (6 with adafactor). For each token
        every layer keeps its input, in two bytes a number. These models are some 112 times as wide as deep,
        and have 12 weights a layer for each square of the width.
        """
        if not (known := of_name(MODELS, self.model)):
            return 0
        values, billions = self.values, known[0]
        of_weight = 2 if values["precision"] == "16" else 4
        of_training = 6 if values["optim"] == "adafactor" else 14
        sharing = gpus * self.nodes if values["apply_deepspeed"] == "true" else 1
        weights = of_weight / (sharing if values["deepspeed_stage"] == "3" else 1)
        weights += 0 if values["apply_lora"] == "true" else of_training / sharing
        rows = 1 if values["auto_find_batch_size"] == "true" else values["per_device_train_batch_size"]
        depth = (billions * 1e9 / 12 / 112**2) ** (1 / 3)
        return billions * weights + 2 * rows * self.longest * 112 * depth**2 / 1e9

    def minutes(self) -> float:
        """Return the least time: 4 operations a weight and token, at half of what the cards can do."""
        known, card = of_name(MODELS, self.model), of_name(CARDS, self.size)
        if not known or not card:
            return 0
        return 4e9 * known[0] * self.tokens / (card[1] * 0.5e12 * self.gpus * self.nodes) / 60

    def checks(self, sizes: Iterable) -> Iterator[Check]:
        """Give what decides whether it can succeed, and is of use; `sizes`: the machines to choose from."""
        values, card, known = self.values, of_name(CARDS, self.size), of_name(MODELS, self.model)
        train, lower = len(self.lengths), "lower per_device_train_batch_size"
        needed = f"{self.batch} or more, a batch on each GPU"
        advice = f"{lower}, or raise dataset_split_pc"
        yield Check("training rows", train, needed, train >= self.batch, advice)
        if known:
            length, needed = values["max_seq_length"], f"at most {known[1]}, the context of {self.model}"
            yield Check("max_seq_length", length, needed, length <= known[1], "lower it")
        if known and card:
            least, gpus = self.memory(self.gpus), {size.name: size.gpus for size in sizes}
            cards = {name: of_name(CARDS, name) or (0, 0) for name in gpus}
            fits = [name for name in gpus if 1.25 * self.memory(gpus[name]) <= cards[name][0]]
            advice = f"{f'choose compute_size {fits[0]}, or ' if fits else ''}{lower} or max_seq_length"
            needed = f"{least:.0f} GB or more"
            yield Check("memory of a GPU", f"{card[0]} GB", needed, least <= card[0], advice)
        least, advice = self.minutes(), "raise it, or lower dataset_split_pc or num_train_epochs"
        needed = f"{math.ceil(least)} or more"
        yield Check("job_limit_minutes", self.limit, needed, self.limit >= least, advice)
        most = max(1, 3 * self.rows // max(1, self.tested))  # to evaluate a row costs a third
        needed = f"at most {most}, or they cost more than the training"
        advice = "raise eval_steps or evaluation_steps_interval"
        yield Check("evaluations", self.evaluations, needed, self.evaluations <= most, advice)
        if values["evaluation_strategy"] == "steps" and not values["evaluation_steps_interval"]:
            fine, needed = self.evaluations > 0, f"at most {self.steps}, the steps of the training"
            yield Check("eval_steps", values["eval_steps"], needed, fine, "lower it, or evaluate each epoch")
        if values["apply_early_stopping"] == "true":
            patience, needed = values["early_stopping_patience"], f"less than {self.evaluations} evaluations"
            fine = patience < self.evaluations
            yield Check("early_stopping_patience", patience, needed, fine, "evaluate more often, or lower it")

    def at_most(self, region: str, instance_type: str, instances: int) -> str:
        """Return a line with what it can cost, and what an answering machine costs for each hour."""
        hours = (self.limit + self.idle_seconds / 60) / 60
        listed = prices(region, {self.size, instance_type})
        source = (
            f"Azure's price list of today, {region}" if listed else "the README's figure, for the US in 2026"
        )
        training = price(listed, self.size, self.tier)
        answering = price(listed, instance_type, "dedicated")
        tokens = float(f"{self.tokens:.2g}")
        return (
            f"Training costs at most {dollars(training, self.nodes * hours)}: {self.nodes} x {self.size} for"
            f" {hours:.1f} h (job_limit_minutes, which this kernel enforces, and the idle time), for about"
            f" {tokens:,.0f} tokens, at {CHARACTERS} characters each. Answering costs"
            f" {dollars(answering, instances)} an hour: {instances} x {instance_type}. Prices: {source}."
        )


def dollars(price: float | None, hours: float) -> str:
    return f"{price * hours:,.2f} USD" if price else "an unknown price"


def price(listed: dict, size: str, tier: str) -> float | None:
    """Return the dollars for an hour, of a dedicated machine where the tier's are not listed."""
    listed = listed or README
    return listed.get((size.lower(), tier)) or listed.get((size.lower(), "dedicated"))


def prices(region: str, sizes: Iterable[str], address: str = PRICES) -> dict[tuple[str, str], float]:
    """Return the dollars for an hour by size and tier; none where Azure's list doesn't answer within 2 s."""
    names = " or ".join(f"armSkuName eq '{size}'" for size in sizes)
    wanted = (
        f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}'"
    )
    query = urllib.parse.urlencode({"$filter": f"{wanted} and ({names})"})
    found = {}

    def ask() -> None:
        with suppress(OSError, HTTPException, ValueError, LookupError, TypeError):
            with urllib.request.urlopen(f"{address}?{query}", timeout=2) as answer:
                items = json.loads(answer.read(1 << 20))["Items"]
            for item in items:
                tier = "low_priority" if "Low Priority" in item["skuName"] else "dedicated"
                if "Windows" not in item["productName"] and "Spot" not in item["skuName"]:
                    found[item["armSkuName"].lower(), tier] = float(item["retailPrice"])

    asking = threading.Thread(target=ask, daemon=True)  # the time limit of urllib leaves names out
    asking.start()
    asking.join(2)
    return dict(found)
