"""Batches of rows of about one length, so that hardly any token is padding."""

import math
from collections.abc import Iterator

import numpy
import torch
from torch.utils.data import DataLoader, Sampler
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

JITTER = 0.1  # rows whose lengths differ by up to this share may meet, so that epochs differ


class LengthBatches(Sampler[list[int]]):
    """One process's share of batches; the rows of a step are the same however many processes share it."""

    def __init__(self, lengths, rows: int, accumulation: int, processes: int, rank: int, seed: int):
        self.lengths = numpy.asarray(lengths)
        self.rows, self.accumulation, self.processes, self.rank = rows, accumulation, processes, rank
        self.seed, self.epoch = seed, 0
        self.step_rows = rows * accumulation * processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, left = divmod(len(self.lengths), self.step_rows)
        return whole * self.accumulation + math.ceil(left / (self.rows * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            parts = math.ceil(len(step) / (self.rows * self.processes))
            shares = numpy.array_split(step, parts * self.processes)
            for part in range(parts):
                yield shares[part * self.processes + self.rank].tolist()

    def steps(self) -> list[numpy.ndarray]:
        """Return the rows of each optimizer step: shuffled buckets, then one short step of what is left."""
        draw = numpy.random.default_rng((self.seed, self.epoch))
        order = draw.permutation(len(self.lengths))
        left = len(order) % self.step_rows
        rest, tail = order[left:], order[:left]
        keys = self.lengths[rest] * (1 + JITTER * draw.random(len(rest)))
        buckets = rest[numpy.argsort(keys, kind="stable")].reshape(-1, self.step_rows)
        steps = list(buckets[draw.permutation(len(buckets))])
        return [*steps, tail[numpy.argsort(self.lengths[tail], kind="stable")]] if left else steps


class EpochLoader(DataLoader):
    """A loader that the Trainer may tell the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.batch_sampler.set_epoch(epoch)


class Collator(DataCollatorForLanguageModeling):
    """Pads a batch to its longest row; what is padding in the rows themselves stays unattended."""

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Return input_ids, labels and attention_mask, each rows × tokens."""
        if not examples:  # this process has no share in an epoch's last, short step
            examples = [{"input_ids": [self.pad_token_id] * 2, "labels": [-100] * 2, "length": 2}]
        batch = super().torch_call(examples)
        lengths = torch.tensor([example["length"] for example in examples])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
        return batch
