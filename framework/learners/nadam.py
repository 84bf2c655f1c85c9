"""The Nadam of TensorFlow's contrib package, with which the TPR-RNN was published."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class TFNadam(torch.optim.Optimizer):
    r"""Adam with Nesterov momentum and, unlike `torch.optim.NAdam`, no momentum schedule.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta \leftarrow \theta - \alpha \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)
            \cdot (\beta_1 m + (1 - \beta_1) g) / (\sqrt v + \epsilon)

    Args:
        params: parameters or parameter groups.
        lr: learning rate :math:`\alpha`.
        betas: decay rates of the two moments.
        eps: added to the root, which is not bias-corrected.

    Raises:
        ValueError: lr or eps is negative, or a beta lies outside [0, 1).

    Source: ``tf.contrib.opt.NadamOptimizer``, that is TensorFlow 1.x's kernel ``ApplyAdam`` with ``use_nesterov``.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            came = f"lr={lr}, eps={eps}, betas={betas}"
            raise ValueError(f"TFNadam needs lr >= 0, eps >= 0 and betas in [0, 1), got {came}.")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Make one update; `closure` recomputes and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["betas"], group["eps"])
        return loss

    def _update(self, p: Tensor, g: Tensor, lr: float, betas: tuple[float, float], eps: float) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        state["step"] += 1
        (beta1, beta2), t, m, v = betas, state["step"], state["m"], state["v"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        rate = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        p.addcdiv_(m.mul(beta1).add_(g, alpha=1 - beta1), v.sqrt().add_(eps), value=-rate)
