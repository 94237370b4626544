"""Batches whose rows lie end to end: as many rows a step as were asked for, and no padding."""

import math
from collections.abc import Iterator

import numpy
import torch
from torch.utils.data import DataLoader, Sampler


class DistributedBatchSampler(Sampler[list[int]]):
    """One process's share of each step's rows; a step's rows are the same however many processes share it."""

    def __init__(self, lengths, rows: int, accumulation: int, processes: int, rank: int, seed: int):
        self.lengths = numpy.asarray(lengths)
        self.rows, self.accumulation, self.processes, self.rank = rows, accumulation, processes, rank
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, left = divmod(len(self.lengths), self.rows * self.accumulation * self.processes)
        return whole * self.accumulation + self._parts(left)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            by_length = step[numpy.argsort(self.lengths[step], kind="stable")]
            parts = self._parts(len(step))
            for part in range(parts):  # dealt like cards, so that all shares take about as long
                yield by_length[part * self.processes + self.rank :: parts * self.processes].tolist()

    def steps(self) -> list[numpy.ndarray]:
        """Return the rows of each optimizer step, in random order."""
        order = numpy.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))
        size = self.rows * self.accumulation * self.processes
        return [order[first : first + size] for first in range(0, len(order), size)]

    def largest(self, epochs: int) -> list[int]:
        """Return the lengths of the rows of the batch with the most tokens in so many epochs."""
        most: list[int] = []
        for epoch in range(epochs):
            self.set_epoch(epoch)
            most = max(most, *(self.lengths[batch].tolist() for batch in self), key=sum)
        return most

    def _parts(self, rows: int) -> int:
        return math.ceil(rows / (self.rows * self.processes))


class EpochLoader(DataLoader):
    """A loader that the Trainer may tell the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`."""
        self.batch_sampler.set_epoch(epoch)


class FlatteningCollator:
    """Lays the rows of a batch end to end."""

    def __init__(self, filler: int):
        self.filler = filler  # a token for the process that has no share in an epoch's last, short step

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor | list[int]]:
        """Return input_ids, position_ids and labels, each 1 by tokens, and the rows' lengths."""
        rows = rows or [{"input_ids": [self.filler] * 2, "labels": [-100] * 2}]
        lengths = [len(row["input_ids"]) for row in rows]
        return {
            "input_ids": _joined([row["input_ids"] for row in rows]),
            "labels": _joined(
                [[-100, *row["labels"][1:]] for row in rows]
            ),  # a row's first token follows none
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "row_lengths": lengths,
        }


def _joined(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row])[None]
