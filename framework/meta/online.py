"""The human-made rules beside the learnt ones: a network that gradient descent trains on the stream itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from algornn.learners.checks import check_whole
from algornn.models.in_context import check_streams, prediction_losses

Weights = dict[str, Tensor]
_RULES = ("sgd", "adam")
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class OnlineNetwork(nn.Module):
    r"""A feed-forward network that learns each stream by SGD or Adam, an example at a time, from one set of weights.

    What is trained over many tasks is the logarithm of the learning rate alone: the baseline at its best rate, which
    `algornn.InContextLearner` finds and measures as it does a network that learns in its state. With weights w and
    :math:`g = \nabla_w \ell(f_w(x_t), y_t)`,

    .. math::
        \text{sgd: } w \leftarrow w - \eta g, \qquad
        \text{adam: } w \leftarrow w - \eta\, \hat m / \sqrt{\hat v + \epsilon}

    with the bias-corrected moments of g; :math:`\epsilon = 10^{-8}` stands inside the root, where its derivative is
    finite.

    Args:
        input_size: numbers of an input D.
        output_size: number of classes C; 1 for numbers.
        hidden_sizes: units of the hidden layers, with ReLU.
        rule: "sgd" or "adam".
        learning_rate: where the search begins.
        seed: of the first weights, torch's initialisation; the output layer's are 0.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_sizes: Sequence[int] = (),
        rule: str = "sgd",
        learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rule not in _RULES:
            raise ValueError(f"`rule` must be one of {', '.join(map(repr, _RULES))}, got {rule!r}.")
        for size in (input_size, output_size, *hidden_sizes):
            check_whole(1, size=size)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be above 0, got {learning_rate}.")
        self.rule, self.input_size, self.output_size = rule, input_size, output_size
        self.log_rate = nn.Parameter(torch.tensor(math.log(learning_rate)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
            linear = [nn.Linear(a, b) for a, b in pairwise((input_size, *hidden_sizes, output_size))]
        nn.init.zeros_(linear[-1].weight)
        nn.init.zeros_(linear[-1].bias)
        layers = [part for layer in linear[:-1] for part in (layer, nn.ReLU())]
        self.network = nn.Sequential(*layers, linear[-1]).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from streams of examples, and predict each before its class is told.

        Args:
            x: inputs ``[B, T, D]``.
            y: classes ``[B, T]``, or numbers, whose squared error is the loss; the last one is not looked at.

        Returns:
            Logits ``[B, T, C]``, those of example t from inputs 1 to t and classes 1 to t - 1.
        """
        check_streams(x, y, self.input_size)
        if not x.shape[1]:
            return x.new_zeros(len(x), 0, self.output_size)
        B = len(x)
        weights = {name: p.expand(B, *p.shape) for name, p in self.network.named_parameters()}
        moments: list[Weights] = [{name: torch.zeros_like(w) for name, w in weights.items()} for _ in _BETAS]
        learn = vmap(grad_and_value(self._loss, has_aux=True))
        logits = []
        for t in range(x.shape[1]):
            slope, (_, score) = learn(weights, x[:, t], y[:, t])  # also under no_grad, which torch.func overrides
            logits.append(score)
            weights = self._step(weights, slope, moments, t + 1)
        return torch.stack(logits, 1)

    def _loss(self, weights: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        """The loss of one example, and its logits beside it."""
        score = functional_call(self.network, weights, (x,))
        return prediction_losses(score[None], y[None])[0], score

    def _step(self, weights: Weights, slope: Weights, moments: list[Weights], t: int) -> Weights:
        """The weights after one step; Adam's moments are replaced in their list."""
        rate = self.log_rate.exp()
        if self.rule == "sgd":
            return {name: w - rate * slope[name] for name, w in weights.items()}
        for k, beta in enumerate(_BETAS):
            moments[k] = {n: beta * m + (1 - beta) * slope[n] ** (k + 1) for n, m in moments[k].items()}
        first, second = (
            {name: m / (1 - beta**t) for name, m in moment.items()}
            for moment, beta in zip(moments, _BETAS, strict=True)
        )
        return {n: w - rate * first[n] / (second[n] + _EPSILON).sqrt() for n, w in weights.items()}
