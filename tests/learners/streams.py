"""An endless stream of tokens in rows, segment by segment, from a loader that can be resumed."""

from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

NO_TARGET = -100
WORDS, LENGTH = 6, 5  # tokens of a segment


class Segment(NamedTuple):
    """The fields of a stream's batch, ``[B, T]`` each."""

    tokens: Tensor
    target: Tensor
    mask: Tensor
    asked: Tensor
    group: Tensor


class Segments(list):
    """Segments in the order of their stream."""

    groups = ("low", "high")


def stream(count, rows=4, seed=0):
    """`count` segments: every row repeats a loop of 4 words of its own; a word 5 asks, a few tokens are padding."""
    draw = torch.Generator().manual_seed(seed)
    length = count * LENGTH + 1
    words = torch.randint(1, WORDS, (rows, 4), generator=draw).repeat(1, length)[:, :length]
    words, following = words[:, :-1], words[:, 1:]
    mask = torch.rand(words.shape, generator=draw) < 0.9
    target = following.masked_fill(~mask | (torch.rand(words.shape, generator=draw) < 0.2), NO_TARGET)
    asked = (words == WORDS - 1) & (target != NO_TARGET)
    fields = (words.masked_fill(~mask, 0), target, mask, asked, (words > 2).long())
    return Segments(Segment(*parts) for parts in zip(*(field.split(LENGTH, 1) for field in fields), strict=True))


def joined(segments):
    """Several segments as one."""
    return Segment(*(torch.cat(parts, 1) for parts in zip(*segments, strict=True)))


class Endless:
    """A loader whose epochs are successive parts of the stream; it goes on where its `state_dict` says."""

    def __init__(self, dataset, epoch):
        self.dataset, self.epoch, self.place = dataset, epoch, 0

    def __len__(self):
        return self.epoch

    def __iter__(self):
        for _ in range(self.epoch - self.place % self.epoch):
            self.place += 1
            yield self.dataset[self.place - 1]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Stream(L.LightningDataModule):
    """Epochs of 4 segments; every process has 2 of the rows of training, and all of them of the rest."""

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        rows = slice(2 * rank, 2 * rank + 2) if world > 1 else slice(None)
        return Endless(Segments(Segment(*(x[rows] for x in segment)) for segment in stream(160)), 4)

    def val_dataloader(self):
        return DataLoader(stream(3, seed=1), batch_size=None)

    def test_dataloader(self):
        return {name: DataLoader(stream(3, seed=seed), batch_size=None) for name, seed in (("test", 1), ("other", 2))}
