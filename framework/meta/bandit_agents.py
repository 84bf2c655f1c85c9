"""Agents for bandits of any number of arms: a learnt rule that is the same for every arm, and a human-made one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from algornn.meta.vsml import VSML, Cells, Messages

_GATE_BIAS = 1.0  # an episode is short: the cells' states move from its first pulls on
_SHARPNESS = 10.0  # of the policies at first
_FEW = 1e-6


class SymmetricAgent(nn.Module):
    """An agent whose weights are the cells of `VSML`: what it learns about one arm it can do with any number of them.

    One layer leads from two units, the last reward and a 1, to an output for every arm and one for the value. Each is
    told whether it was pulled last and what it is: 1 an arm, 0 a place without one, -1 the value. All cells begin with
    the same state, so that the order of the arms does not matter. Its parameters do not depend on their number. Logits
    are the scores of VSML times a trained number, at first 10: states that begin at 0 say little.

    Args:
        input_size: numbers of an observation, 2 A + 1 (`BanditWorld`).
        output_size: number of arms A, places without one included.
        state_size: numbers of a cell's state.
        message_size: numbers of a message, at least 2.

    Source: Kirsch, Flennerhag, van Hasselt, Friesen, Oh and Chen (2022), "Introducing Symmetries to Black Box Meta
    Reinforcement Learning", https://arxiv.org/abs/2109.10781, section 3. Deviations: trained by `ActorCritic`, for
    which it has a value, there by evolution strategies; the reward is told to the cells of one unit, there to all.
    """

    def __init__(self, input_size: int, output_size: int, state_size: int = 16, message_size: int = 8) -> None:
        super().__init__()
        check_sizes(input_size, output_size)
        self.rule = VSML(2, output_size + 1, (), state_size, message_size, gate_bias=_GATE_BIAS)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))

    def forward(self, x: Tensor, state: Cells | None = None, mask: Any = None) -> tuple[Tensor, Tensor, Cells]:
        """Act on a sequence.

        Args:
            x: observations ``[B, T, 2 A + 1]``.
            state: the cells' states; None: the first ones.
            mask: not used; episodes have one length.

        Returns:
            Logits of the arms ``[B, T, A]``, values ``[B, T]`` and the cells' new states.
        """
        B, A = len(x), x.shape[2] // 2
        if state is None:
            c = x.new_zeros(B, 2, A + 1, self.rule.state_size)
            state = Cells(torch.zeros_like(c), c)
        is_arm, pulled, paid = x.split([A, A, 1], -1)
        told = torch.stack([pulled, is_arm], -1)
        told = torch.cat([told, told.new_tensor([0.0, -1.0]).expand(*told.shape[:2], 1, 2)], 2)
        inputs, cells, scores = torch.cat([paid, torch.ones_like(paid)], -1), [state], []
        messages = Messages([], [told])
        for t in range(x.shape[1]):
            scores.append(self.rule.tick(cells, messages, inputs[:, t], told[:, t]))
        score = torch.stack(scores, 1)
        return self.log_sharpness.exp() * score[..., :-1], score[..., -1], cells[0]


class UpperConfidenceBound(nn.Module):
    r"""The human-made rule: pull what has paid well or has hardly been tried.

    .. math:: \pi(a) \propto \exp\left( b \left( \hat p_a + c \sqrt{\frac{\log(t + 1)}{n_a + 1}} \right) \right)

    over the arms, with :math:`n_a` pulls so far, :math:`\hat p_a = (r_a + 1/2) / (n_a + 1)` of :math:`r_a` times paid.
    Trained are b, c and a constant value alone: the rule at its best numbers.

    Args:
        input_size: numbers of an observation, 2 A + 1 (`BanditWorld`).
        output_size: number of arms A, places without one included.

    Source: Auer, Cesa-Bianchi and Fischer (2002), "Finite-time Analysis of the Multiarmed Bandit Problem", section 2,
    where b is infinite and c the root of 2.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        check_sizes(input_size, output_size)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))
        self.log_bonus = nn.Parameter(torch.tensor(math.log(0.5)))
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, state: Any = None, mask: Any = None) -> tuple[Tensor, Tensor, Any]:
        """As of `SymmetricAgent`; the state is the numbers of pulls and of times paid, ``[B, A]`` each."""
        A = x.shape[2] // 2
        _, pulled, paid = x.split([A, A, 1], -1)
        pulls, pays = pulled.cumsum(1), (pulled * paid).cumsum(1)
        if state is not None:
            pulls, pays = pulls + state[0][:, None], pays + state[1][:, None]
        mean = (pays + 0.5) / (pulls + 1)
        time = pulls.sum(-1, keepdim=True)
        bound = mean + self.log_bonus.exp() * ((time + 1).log() / (pulls + 1) + _FEW).sqrt()
        return self.log_sharpness.exp() * bound, self.value.expand(x.shape[:2]), (pulls[:, -1], pays[:, -1])


def check_sizes(input_size: int, output_size: int) -> None:
    """Raise a ValueError where observations are not those of bandits with that many arms."""
    if input_size != 2 * output_size + 1:
        raise ValueError(f"Observations of {output_size} arms have {2 * output_size + 1} numbers, got {input_size}.")
