"""Networks that learn a task from the examples that they read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import check_sizes
from algornn.models.attention import check_probabilities
from algornn.models.token_networks import check_factory, output_width


class InContextNetwork(nn.Module):
    """A sequence layer that reads inputs and their classes, and names the class of each; or their numbers.

    A class reaches the layer with the next input; or, `synchronous`, with its own, which then comes twice: first alone,
    to be named, and then with its class. Synchronous labels ask less of a layer: what belongs together arrives
    together, and an input is looked up by itself. So layers that have a method `match_queries` begin with keys that
    like inputs read, and find them from the first step.

    Args:
        input_size: numbers of an input D.
        output_size: number of classes C; 1 for numbers.
        layer: called with `embedding_size`; makes the sequence layer, ``forward(x, state, mask) -> (y, state)``: any
            memory of `algornn`, `FastWeightBlocks`, `LSTM`, `Transformer` or your own.
        embedding_size: width of the linear layer that joins an input and a class.
        synchronous: see above.
        encoder: called with D; makes what inputs ``[B, T, D]`` go through first, such as `ConvEncoder` for images;
            None: nothing.

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
        encoder: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_factory("layer", layer)
        check_factory("encoder", encoder)
        check_sizes(input_size=input_size, output_size=output_size, embedding_size=embedding_size)
        self.input_size = input_size
        self.encoder = nn.Identity() if encoder is None else encoder(input_size)
        with torch.no_grad():  # in evaluation, where it leaves no trace
            seen = self.encoder.eval()(torch.zeros(1, 1, input_size))
        self.encoder.train()
        if not isinstance(seen, Tensor):
            kind = type(self.encoder).__name__
            raise TypeError(f"`encoder` must give a tensor of features, {kind} gives a {type(seen).__name__}.")
        features = seen.shape[-1]
        self.embedding = nn.Linear(
            features + max(output_size, 2), embedding_size
        )  # a number is told with a 1 beside it
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
            y: their classes ``[B, T]``, or real numbers ``[B, T]``; the last one is not looked at.

        Returns:
            Logits ``[B, T, C]``, those of example t from inputs 1 to t and classes 1 to t - 1; numbers ``[B, T, 1]``.
        """
        check_streams(x, y, self.input_size)
        x = self.encoder(x)
        told = as_outputs(y, self.output.out_features).to(x.dtype)
        if told.shape[-1] == 1:
            told = torch.cat([told, torch.ones_like(told)], -1)
        if not self.synchronous:
            told = F.pad(told[:, :-1], (0, 0, 1, 0))
            return self.output(self.layer(self.embedding(torch.cat([x, told], -1)))[0])
        asked = torch.cat([x, torch.zeros_like(told)], -1)
        tokens = torch.stack([asked, torch.cat([x, told], -1)], 2).flatten(1, 2)
        return self.output(self.layer(self.embedding(tokens))[0][:, ::2])


def check_streams(x: Tensor, y: Tensor, D: int) -> None:
    """Raise a ValueError unless there are inputs ``[B, T, D]`` of real numbers and as many classes or numbers."""
    if x.dim() != 3 or x.shape[2] != D or not x.is_floating_point():
        raise ValueError(f"`x` must be real numbers of the shape [B, T, D={D}], got {x.dtype} {list(x.shape)}.")
    if y.shape != x.shape[:2] or not (y.is_floating_point() or y.dtype == torch.long):
        raise ValueError(
            f"`y` must be classes (int64) or real numbers of the shape {list(x.shape[:2])}, as many as there are "
            f"inputs, got {y.dtype} {list(y.shape)}."
        )


def as_outputs(y: Tensor, C: int) -> Tensor:
    """What a perfect network gives, ``[..., C]``: 1 for the class y ``[...]`` and 0 for others, or the number y itself.

    Raises:
        ValueError: numbers for more than one output.
    """
    if not y.is_floating_point():
        return F.one_hot(y, C)
    if C != 1:
        raise ValueError(f"Streams of numbers need a network of one output, `output_size` 1, got {C}.")
    return y[..., None]


def prediction_losses(predicted: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of classes, squared error of numbers: predicted ``[..., C]``, y ``[...]``, losses ``[...]``."""
    if y.is_floating_point():
        return (predicted - as_outputs(y, predicted.shape[-1])).square()[..., 0]
    return F.cross_entropy(predicted.flatten(0, -2), y.flatten(), reduction="none").view_as(y)


class ConvEncoder(nn.Module):
    """Features of images by convolutions ("Conv-4"): in every block a 3 x 3 one, BatchNorm, max pooling by 2, ReLU.

    Args:
        input_size: numbers of an image, C x S x S in one row; C is 1 or 3.
        image_size: S.
        channels: of every block.
        blocks: number of blocks; each halves S, rounding down.
        dropout: probability, in every block before the ReLU.

    In training BatchNorm normalises by all images of the batch, later ones of the same stream among them, as published;
    labels do not pass through it. Its running statistics are every process's own: on several GPUs set
    ``sync_batchnorm: true`` of the trainer.

    Source: Vinyals et al. (2016), "Matching Networks for One Shot Learning"; with dropout as released with Irie et al.
    (2022): 64 channels for Omniglot, 32 for Mini-ImageNet.
    """

    def __init__(
        self, input_size: int, image_size: int = 28, channels: int = 64, blocks: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, image_size=image_size, channels=channels, blocks=blocks)
        check_probabilities(dropout=dropout)
        left = image_size // 2**blocks
        if input_size not in (image_size**2, 3 * image_size**2) or not left:
            raise ValueError(
                f"`image_size` {image_size} must be the width of grey or coloured images of {input_size} numbers, and "
                f"at least {2**blocks} for {blocks} blocks."
            )
        self.shape = (input_size // image_size**2, image_size, image_size)
        widths = pairwise((self.shape[0], *[channels] * blocks))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.MaxPool2d(2), nn.Dropout(dropout), nn.ReLU()
                )
                for a, b in widths
            )
        )
        self.output_size = channels * left**2

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, T, C S S]`` to features ``[B, T, output_size]``."""
        return self.blocks(x.reshape(-1, *self.shape)).reshape(*x.shape[:2], self.output_size)


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
        check_sizes(input_size=input_size, output_size=output_size)
        self.input_size, self.classes = input_size, output_size
        self.log_spread = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """As of `InContextNetwork`."""
        check_streams(x, y, self.input_size)
        if y.is_floating_point():
            raise ValueError(
                "GaussianPosterior says how likely classes are, these streams have numbers: take another model."
            )
        told = F.one_hot(y, self.classes).to(x.dtype)
        before = F.pad(told.cumsum(1)[:, :-1], (0, 0, 1, 0))[..., None]
        sums = (told[..., None] * x[:, :, None]).cumsum(1)
        sums = F.pad(sums[:, :-1], (0, 0, 0, 0, 1, 0))
        precision = before + (-2 * self.log_spread).exp()
        variance = 1 + 1 / precision[..., 0]
        distance = (x[:, :, None] - sums / precision).square().sum(-1)
        return -distance / (2 * variance) - x.shape[-1] / 2 * variance.log()
