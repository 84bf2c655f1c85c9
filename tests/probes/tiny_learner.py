"""A tiny trained-in-a-second learner with everything that a careless probe disturbs."""

import random
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from algornn.probes import Probe, ProbeResult
from algornn.probes.fast_weights import FastWeightTrace


class Batch(NamedTuple):
    x: Tensor  # [B, T], 0 pads
    y: Tensor  # [B]
    group: Tensor  # [B]


class Rows(Dataset):
    groups = ("first", "second", "third")

    def __init__(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randint(1, 12, (n, 5), generator=generator)
        self.x[:, 3:] *= torch.randint(0, 2, (n, 2), generator=generator)
        self.y = self.x[:, 0] % 3
        self.group = torch.arange(n) % 3

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], self.group[index]


def collate(rows):
    return Batch(*map(torch.stack, zip(*rows, strict=True)))


def loader(n=67, batch_size=8, seed=0, **kwargs):
    return DataLoader(Rows(n, seed), batch_size, collate_fn=collate, **kwargs)


class Memory(nn.Module):
    """The sum rule: S = sum of k v^T over the tokens; nothing is written at padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.key = nn.Linear(6, 7)
        self.value = nn.Linear(6, 5)

    def forward(self, x):
        return self.fast_weights(x).state

    def fast_weights(self, x):
        e, written = self.embedding(x), (x > 0).unsqueeze(-1)
        keys, values = self.key(e) * written, self.value(e)
        return FastWeightTrace(keys, values, written[..., 0].float(), keys.transpose(1, 2) @ values)


class Learner(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.memory = Memory()
        self.norm = nn.BatchNorm1d(35)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(35, 3)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.memory(x).flatten(1))))

    def loss(self, call, batch):
        return F.cross_entropy(call(batch.x), batch.y)

    def training_step(self, batch, index):
        # Every global generator takes part, so that a probe that moves one of them changes the training.
        return self.loss(self, batch) * (1 + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.rand(()))  # noqa: NPY002

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(self, batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class MeanLoss(Probe):
    """Mean loss plus noise: the smallest probe that uses the model, its data, its randomness and the processes."""

    def measure(self, subject):
        def one(index, generator):
            noise = torch.rand((), generator=generator) + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
            return subject.loss(subject.model, subject.loader[index]) + noise

        losses = torch.stack(subject.map(one, range(len(subject.loader))))
        return ProbeResult({"loss": float(losses.mean())}, {"losses": losses.tolist()})


def snapshot(trainer, learner):
    """Everything that training goes on from, as a flat list of comparable things."""
    state = [value.clone() for value in learner.state_dict().values()]
    state += [parameter.grad.clone() for parameter in learner.parameters() if parameter.grad is not None]
    for slot in trainer.optimizers[0].state_dict()["state"].values():
        state += [torch.as_tensor(value).clone() for _, value in sorted(slot.items())]
    state += [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), repr(random.getstate())]  # noqa: NPY002
    state += [[p.requires_grad for p in learner.parameters()], [m.training for m in learner.modules()]]
    state += [list(learner.state_dict()), [id(p) for p in learner.parameters()], torch.is_grad_enabled()]
    return [*state, sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in learner.modules())]


def same(a, b):
    """Whether two snapshots (without the identities, which differ between runs) agree bit for bit."""
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs if not _identities(x))


def _identities(entry):
    return isinstance(entry, list) and bool(entry) and type(entry[0]) is int


class Recorder(L.Callback):
    """Takes a snapshot after every batch (after the probes, if it stands behind them) and at an exception."""

    def __init__(self):
        self.snapshots, self.at_exception = [], None

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.snapshots.append(snapshot(trainer, pl_module))

    def on_exception(self, trainer, pl_module, exception):
        self.at_exception = snapshot(trainer, pl_module)


def train(probes, root, data=None, recorder=None, ckpt_path=None, learner=None, **settings):
    """Train from one seed and return learner and trainer."""
    L.seed_everything(3, verbose=False)
    learner = Learner() if learner is None else learner
    callbacks = [*probes, *([recorder] if recorder else []), *settings.pop("callbacks", [])]
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "logger": CSVLogger(root, name="logs"), "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, **settings,
    }  # fmt: skip
    trainer = L.Trainer(callbacks=callbacks, default_root_dir=root, **settings)
    data = data or (loader(shuffle=True), loader(31, seed=1))
    trainer.fit(learner, *data, ckpt_path=ckpt_path, weights_only=False)
    return learner, trainer
