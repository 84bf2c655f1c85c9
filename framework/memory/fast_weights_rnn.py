"""A recurrent network that attends to its recent past through fast weights (Ba et al., 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import Associations, check_sizes, clear_masked, state_or_zeros
from algornn.triton_kernels.arguments import accumulation_dtype, keep_valid

State = tuple[Tensor, Tensor]


class FastWeightsRNN(nn.Module):
    r"""A simple RNN with a decaying Hebbian memory A of its own hidden vectors, asked in an inner loop of every step.

    .. math::
        h^0_t &= f(\mathrm{LN}(W h_{t-1} + C x_t)), \qquad
        h^{s+1}_t = f(\mathrm{LN}(W h_{t-1} + C x_t + A_t h^s_t)), \quad s = 0 \ldots S - 1 \\
        h_t &= h^S_t, \qquad A_{t+1} = \lambda A_t + \eta \, h_t h_t^\top

    with f = ReLU, a bias in C and an affine LN. :math:`W = 0.05 \, I` at first. :math:`A_t` holds
    :math:`h_1 \ldots h_{t-1}`, as in the paper (some ports are a step late).

    Args:
        input_size: width of the input.
        hidden_size: units D, width of the output.
        inner_steps: S.
        decay: :math:`\lambda`.
        rate: :math:`\eta`.
        input_scale: factor on PyTorch's first weights of C. The paper does not give these; at 1 the normalisation
            leaves little of the input beside :math:`A h`, whose length is several times that of h, and training stalls.

    Source: Ba, Hinton, Mnih, Leibo and Ionescu (2016), "Using Fast Weights to Attend to the Recent Past", eq. 1 and 2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 50,
        inner_steps: int = 1,
        decay: float = 0.9,
        rate: float = 0.5,
        input_scale: float = 10.0,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        if inner_steps < 0 or int(inner_steps) != inner_steps:
            raise ValueError(f"`inner_steps` must be a whole number, 0 (no fast weights) or more, got {inner_steps}.")
        self.hidden_size, self.inner_steps, self.decay, self.rate = hidden_size, inner_steps, decay, rate
        self.input = nn.Linear(input_size, hidden_size)
        with torch.no_grad():
            self.input.weight.mul_(input_scale)
        self.recurrent = nn.Parameter(0.05 * torch.eye(hidden_size))
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a sequence, token by token.

        Args:
            x: tokens ``[B, T, input_size]``.
            state: (h ``[B, D]``, A ``[B, D, D]``); None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs h ``[B, T, D]`` and the new state.
        """
        c = self.input(clear_masked(x, mask, self.input.in_features))
        to = accumulation_dtype(c)
        D = self.hidden_size
        h, A = state_or_zeros(state, c, to, h=(D,), A=(D, D))
        hs: list[Tensor] = []
        with torch.autocast(c.device.type, enabled=False):
            W, gain, bias = (y.to(to) for y in (self.recurrent, self.norm.weight, self.norm.bias))
            for t, c_t in enumerate(c.to(to).unbind(1)):
                slow = torch.addmm(c_t, h, W.mT)
                new = F.layer_norm(slow, (D,), gain, bias).relu()
                for _ in range(self.inner_steps):
                    both = torch.baddbmm(slow[..., None], A, new[..., None])[..., 0]
                    new = F.layer_norm(both, (D,), gain, bias).relu()
                new_A = torch.baddbmm(A, new[..., None], new[:, None], beta=self.decay, alpha=self.rate)
                if mask is not None:
                    counts = mask[:, t, None]
                    new, new_A = torch.where(counts, new, h), torch.where(counts[..., None], new_A, A)
                h, A = new, new_A
                hs.append(h)
        y = torch.stack(hs, 1) if hs else c
        return keep_valid(y, mask).to(c.dtype), (h, A)

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written: every hidden vector, to itself, at the rate eta."""
        h, (_, A) = self(x, state, mask)
        return Associations(h, h, torch.full_like(h[..., 0], self.rate), A)
