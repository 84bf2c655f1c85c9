r"""Feature maps :math:`\phi` of linear attention: they make keys and queries non-negative, and wide enough for many.

A memory of K key dimensions keeps at most K orthogonal keys apart, so the width of :math:`\phi` bounds its capacity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EluPlusOne(nn.Module):
    """The feature map elu(x) + 1, as wide as x.

    Source: Katharopoulos et al. (2020), "Transformers are RNNs", eq. 7.
    """

    def width(self, size: int) -> int:
        """Width of the features of vectors of `size` numbers."""
        return size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., width(D)]``."""
        return F.elu(x) + 1


class SoftmaxFeatures(nn.Module):
    """The feature map softmax(x), as wide as x; the features sum to 1."""

    def width(self, size: int) -> int:
        """Width of the features of vectors of `size` numbers."""
        return size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., width(D)]``."""
        return x.softmax(-1)


class DPFP(nn.Module):
    r"""Deterministic parameter-free projection, of 2 D nu features.

    With :math:`y = [\mathrm{relu}(x), \mathrm{relu}(-x)]`,

    .. math:: \phi(x) = [\, y \odot \mathrm{roll}(y, j) \,]_{j = 1 \ldots \nu}

    A product of two rectified numbers is rarely positive for two different keys at once, so keys become sparse and
    nearly orthogonal.

    Args:
        nu: :math:`\nu`, number of rolls, at least 1 and below 2 D.

    Source: Schlag, Irie and Schmidhuber (2021), "Linear Transformers Are Secretly Fast Weight Programmers", sec. 5.3.
    """

    def __init__(self, nu: int = 1) -> None:
        super().__init__()
        if nu < 1:
            raise ValueError(f"`nu` is the number of rolls, expected at least 1, got {nu}.")
        self.nu = nu

    def width(self, size: int) -> int:
        """Width of the features of vectors of `size` numbers."""
        return 2 * size * self.nu

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., width(D)]``."""
        y = torch.cat([x.relu(), (-x).relu()], -1)
        return torch.cat([y * y.roll(j, -1) for j in range(1, self.nu + 1)], -1)


class FAVOR(nn.Module):
    r"""FAVOR+: positive random features that estimate the softmax kernel, of width 2 m.

    .. math:: \phi(x) = \tfrac{1}{\sqrt{2 m}} \exp\!\big([W x, -W x] - \tfrac12 \|x\|^2\big)

    with m rows W, orthogonal within blocks of D, whose norms are those of Gaussian vectors. In training the rows are
    drawn anew in every call (from torch's global generator, as dropout is), so keys and queries must be mapped in one
    call, as the layers do, and a state carried into the next call holds keys of other rows. In evaluation the last rows
    stay.

    Args:
        size: D, numbers in x.
        features: m.

    Source: Choromanski et al. (2021), "Rethinking Attention with Performers", with the redrawing of the code of Schlag,
    Irie and Schmidhuber (2021).
    """

    rows: Tensor

    def __init__(self, size: int, features: int = 64) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"`features` is the number of random rows, expected at least 1, got {features}.")
        self.size, self.features = size, features
        self.register_buffer("rows", self._draw(torch.empty(0)))

    def width(self, size: int) -> int:
        """Width of the features of vectors of `size` numbers.

        Raises:
            ValueError: `size` is not D.
        """
        if size != self.size:
            raise ValueError(f"FAVOR was built for vectors of {self.size} numbers, here they have {size}.")
        return 2 * self.features

    def _draw(self, like: Tensor) -> Tensor:
        blocks = -(-self.features // self.size)
        gaussian = torch.randn(blocks, self.size, self.size, device=like.device, dtype=torch.float32)
        orthogonal = torch.linalg.qr(gaussian)[0].mT.flatten(0, 1)[: self.features]
        norms = torch.randn(self.features, self.size, device=like.device).norm(dim=1, keepdim=True)
        return (orthogonal * norms).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., D]`` to ``[..., width(D)]``."""
        self.width(x.shape[-1])  # raises where the widths differ
        if self.training:
            self.rows = self._draw(self.rows)
        projected = x @ self.rows.to(x.dtype).mT
        exponent = torch.cat([projected, -projected], -1) - x.square().sum(-1, keepdim=True) / 2
        return exponent.exp() / (2 * self.features) ** 0.5
