r"""How many bits do labels cost a receiver who knows the activations?

The online (prequential) code: the labels are sent in portions that end at :math:`t_1 < ... < t_S = n`. The first
portion is sent with the uniform code, each later one with the classifier :math:`\phi_i` fitted on all before it:

.. math:: L = t_1 \log_2 C - \sum_{i=1}^{S-1} \log_2 p_{\phi_i}(y_{t_i + 1 : t_{i+1}} | h_{t_i + 1 : t_{i+1}})

The uniform code takes :math:`n \log_2 C` bits; the compression is :math:`n \log_2 C / L`.

Source: Voita and Titov (2020), EMNLP, https://arxiv.org/abs/2003.12298, section 2.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
Fit = Callable[[Tensor, Tensor], Predict]


def online_codelength(h: Tensor, y: Tensor, ends: Sequence[int], C: int, fit: Fit) -> Tensor:
    """Bits ``[S]`` of every portion; their sum is the codelength L.

    Args:
        h: activations ``[n, d]`` in the order in which the labels are sent.
        y: labels ``[n]``, 0 to C - 1.
        ends: the number of labels up to the end of each portion, t_1 to t_S; 0 as t_1: nothing is sent uniformly.
        C: number of classes.
        fit: the coder: `fit(h[:t], y[:t])` gives a function of activations ``[m, d]`` to probabilities ``[m, C]``.
    """
    bits = [ends[0] * math.log2(C)]
    for start, stop in pairwise(ends):
        p = fit(h[:start], y[:start])(h[start:stop])
        bits.append(-float(p.gather(1, y[start:stop, None]).log2().sum()))
    return torch.tensor(bits, dtype=torch.float64)


class LogisticCoder:
    r"""Multinomial logistic regression on standardised features, with a probability above 0 for every class.

    .. math:: p(y | h) = (t \, p_\phi(y | h) + 1 / C) / (t + 1)

    for t labels seen: one more observation, spread evenly over the classes. Without it the first label of a class that
    has not been seen would cost infinitely many bits. Means and deviations of features are those of the t rows; a
    feature that is constant there is only centred.

    Args:
        C: number of classes.
        l2: weight of the penalty: the negative log-likelihood (nats, summed) plus l2 / 2 times the squared weights.
        max_iter: steps of L-BFGS at most; `unfinished` counts the fits that needed more.
    """

    def __init__(self, C: int, l2: float = 1.0, max_iter: int = 1000) -> None:
        self.C = C
        self.l2 = l2
        self.max_iter = max_iter
        self.unfinished = 0

    def __call__(self, h: Tensor, y: Tensor) -> Predict:
        """Fit activations ``[t, d]`` (float64, on the CPU) to labels ``[t]``; see `online_codelength`."""
        t, seen = len(y), y.unique()
        classifier = self._classifier(h, y) if len(seen) > 1 else None

        def predict(h: Tensor) -> Tensor:
            p = torch.zeros(len(h), self.C, dtype=torch.float64)
            if classifier is not None and len(h):
                p[:, seen] = torch.from_numpy(classifier.predict_proba(h.numpy()))
            else:
                p[:, seen] = 1.0
            return (t * p + 1 / self.C) / (t + 1)

        return predict

    def _classifier(self, h: Tensor, y: Tensor) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(C=1 / self.l2, max_iter=self.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead, and reported once
            warnings.filterwarnings("ignore", "The number of unique classes")  # the first portions are small
            classifier = make_pipeline(StandardScaler(), regression).fit(h.numpy(), y.numpy())
        self.unfinished += int(max(regression.n_iter_) >= self.max_iter)
        return classifier
