"""Networks that learn a task from the examples that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.models.token_networks import check_factory, output_width


class InContextNetwork(nn.Module):
    """A sequence layer that reads inputs and their classes, and names the class of each.

    A class reaches the layer with the next input; or, `synchronous`, with its own, which then comes twice: first alone,
    to be named, and then with its class. Synchronous labels ask less of a layer: what belongs together arrives
    together, and an input is looked up by itself. So layers that have a method `match_queries` begin with keys that are
    their queries, where like inputs find each other from the first step.

    Args:
        input_size: numbers of an input D.
        output_size: number of classes C.
        layer: called with `embedding_size`; makes the sequence layer, ``forward(x, state, mask) -> (y, state)``: any
            memory of `algornn`, `FastWeightBlocks`, `LSTM`, `Transformer` or your own.
        embedding_size: width of the linear layer that joins an input and a class.
        synchronous: see above.

    Raises:
        ValueError: the layer sees both sides, and so a class before it is asked for.

    Source: Hochreiter, Younger and Conwell (2001), "Learning to Learn Using Gradient Descent"; Irie, Schlag, Csordas
    and Schmidhuber (2022), "A Modern Self-Referential Weight Matrix That Learns to Modify Itself", section 4.2, for
    both ways to tell classes. Deviation: there a stream has one input without its class, at the end.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        layer: Callable[[int], nn.Module],
        embedding_size: int = 256,
        synchronous: bool = False,
    ) -> None:
        super().__init__()
        check_factory("layer", layer)
        self.embedding = nn.Linear(input_size + output_size, embedding_size)
        self.layer = layer(embedding_size)
        self.output = nn.Linear(output_width(self.layer, embedding_size), output_size)
        self.synchronous = synchronous
        for module in self.layer.modules():
            if getattr(module, "sees_both_sides", False):
                kind = type(module).__name__
                raise ValueError(f"`layer` must not see what comes later, where the classes are told, as {kind} does.")
            match: Any = getattr(module, "match_queries", None)
            if synchronous and match is not None:
                match()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Name classes.

        Args:
            x: inputs ``[B, T, D]``.
            y: their classes ``[B, T]``; the last one is not looked at.

        Returns:
            Logits ``[B, T, C]``, those of example t from inputs 1 to t and classes 1 to t - 1.
        """
        told = F.one_hot(y, self.output.out_features).to(x.dtype)
        if not self.synchronous:
            told = F.pad(told[:, :-1], (0, 0, 1, 0))
            return self.output(self.layer(self.embedding(torch.cat([x, told], -1)))[0])
        asked = torch.cat([x, torch.zeros_like(told)], -1)
        tokens = torch.stack([asked, torch.cat([x, told], -1)], 2).flatten(1, 2)
        return self.output(self.layer(self.embedding(tokens))[0][:, ::2])


class GaussianPosterior(nn.Module):
    r"""What is best for streams of Gaussian clusters: the posterior of the class, given all examples so far.

    With :math:`n_c` examples of class c, of mean :math:`\bar x_c`, before the one that is asked for,

    .. math::
        m_c = \frac{n_c s^2}{n_c s^2 + 1} \bar x_c, \qquad v_c = \frac{s^2}{n_c s^2 + 1}, \qquad
        p(c \mid x) \propto N(x; m_c, (1 + v_c) I)

    Trained is s alone, which begins at 1: where it finds the data's, no learner does better.

    Args:
        input_size: numbers of an input D.
        output_size: number of classes C.

    Source: Bishop (2006), "Pattern Recognition and Machine Learning", section 2.3.6.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.classes = output_size
        self.log_spread = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As of `InContextNetwork`."""
        told = F.one_hot(y, self.classes).to(x.dtype)
        before = F.pad(told.cumsum(1)[:, :-1], (0, 0, 1, 0))[..., None]
        sums = (told[..., None] * x[:, :, None]).cumsum(1)
        sums = F.pad(sums[:, :-1], (0, 0, 0, 0, 1, 0))
        precision = before + (-2 * self.log_spread).exp()
        variance = 1 + 1 / precision[..., 0]
        distance = (x[:, :, None] - sums / precision).square().sum(-1)
        return -distance / (2 * variance) - x.shape[-1] / 2 * variance.log()
