"""The Fast Weight Memory: tensor-product keys, a delta rule with a clamped norm, and chained reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import Associations, check_sizes, clear_masked
from algornn.triton_kernels import TensorMemory, tensor_memory
from algornn.triton_kernels.arguments import keep_valid


class FastWeightMemory(nn.Module):
    r"""Fast weights ``F [E, R, V]`` that a controller's output z writes and reads at every token.

    With :math:`e, r, v = \tanh` of the write head, :math:`\beta = \sigma(b + 1)` and :math:`F(e, r) = F^\top (e \otimes
    r)`:

    .. math::
        F' &= F_{t-1} + e \otimes r \otimes \tfrac{\beta}{c} (v - F_{t-1}(e, r)), \qquad
        F_t = F' / \max(1, \|F'\|_F) \\
        n_0 &= n, \quad n_j = \mathrm{LN}(F_t(n_{j-1}, \rho_j)) \text{ for } j = 1 \ldots N, \qquad
        y = W_o n_N \;(+\; z)

    with LN without affine parameters. V = E, for what is read becomes the entity of the next read.

    The release has three cells that differ in details. They are, as arguments of this class:

    | experiment | scale_write | tanh_entity | tanh_roles | residual | sizes             |
    |------------|-------------|-------------|------------|----------|-------------------|
    | catbAbI    | True        | False       | True       | False    | z 256, E = R = 32 |
    | PTB, WT2   | False       | True        | True       | True     | z 400, E = R = 32 |
    | meta-RL    | True        | False       | False      | True     | z 32, E = R = 16  |

    Args:
        input_size: width of the controller's output z, and of y.
        entity_size: E.
        role_size: R.
        reads: N, chained reads per token.
        scale_write: divide the write strength by c = V; otherwise c = 1.
        tanh_entity: squash the first read entity n; otherwise it is as the read head gives it.
        tanh_roles: squash the read roles.
        residual: add z to the output.

    Source: Schlag, Munkhdalai and Schmidhuber (2021), "Learning Associative Inference Using Fast Weight Memory", eq. 3
    to 10, and the released code, which gives the details above.
    """

    def __init__(
        self,
        input_size: int,
        entity_size: int = 32,
        role_size: int = 32,
        reads: int = 3,
        scale_write: bool = True,
        tanh_entity: bool = False,
        tanh_roles: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, entity_size=entity_size, role_size=role_size, reads=reads)
        E, R = entity_size, role_size
        self.write_sizes, self.read_sizes = [E, R, E, 1], [E] + [R] * reads
        self.write_head = nn.Linear(input_size, sum(self.write_sizes))
        self.read_head = nn.Linear(input_size, sum(self.read_sizes))
        self.output = nn.Linear(E, input_size)
        bound = (6 / (input_size + E)) ** 0.5
        for head in (self.write_head, self.read_head):
            nn.init.uniform_(head.weight, -bound, bound)
        self.write_scale = 1 / E if scale_write else 1.0
        self.tanh_entity, self.tanh_roles, self.residual = tanh_entity, tanh_roles, residual

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Write every token, then let it read the state after its own write.

        Args:
            x: the controller's outputs z ``[B, T, D]``.
            state: carried fast weights ``[B, E, R, E]``; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs y ``[B, T, D]`` and the new state ``[B, E, R, E]``.
        """
        x = clear_masked(x, mask, self.write_head.in_features)
        memory = remember(*self._associations(x), state, mask)
        n, *roles = self.read_head(x).split(self.read_sizes, -1)
        n = n.tanh() if self.tanh_entity else n
        y = self.output(recall(memory, n, [role.tanh() for role in roles] if self.tanh_roles else roles))
        return keep_valid(x + y if self.residual else y, mask), memory.state

    def _associations(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return e ``[B, T, E]``, r ``[B, T, R]``, v ``[B, T, E]`` and the write strength ``[B, T]``."""
        e, r, v, b = self.write_head(x).split(self.write_sizes, -1)
        return e.tanh(), r.tanh(), v.tanh(), (b[..., 0] + 1).sigmoid() * self.write_scale

    @torch.no_grad()
    def match_queries(self) -> None:
        """Make the entity and the role that are written those of the first read, until training parts them."""
        read = sum(self.read_sizes[:2])
        self.write_head.weight[:read] = self.read_head.weight[:read]
        self.write_head.bias[:read] = self.read_head.bias[:read]

    def fast_weights(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written: per token e r -> v."""
        associations = self._associations(clear_masked(x, mask, self.write_head.in_features))
        memory = remember(*associations, state, mask)
        e, r, v, beta = (keep_valid(y, mask) for y in associations)
        return Associations((e[..., None] * r[..., None, :]).flatten(2), v, beta, memory.state.flatten(1, 2))


def remember(e: Tensor, r: Tensor, v: Tensor, beta: Tensor, state: Tensor | None, mask: Tensor | None) -> TensorMemory:
    """Write v ``[B, T, V]`` at e ``[B, T, E]``, r ``[B, T, R]`` with the strength beta ``[B, T]``, norm clamped."""
    e, r, v, beta = (x.unsqueeze(2) for x in (e, r, v, beta))
    return tensor_memory((e, r), v, beta=beta, clamp=True, initial_state=state, mask=mask)


def recall(memory: TensorMemory, n: Tensor, roles: Sequence[Tensor]) -> Tensor:
    """Read in a chain at every token: from the entity n ``[B, T, E]``, a normalised read for each of the roles."""
    for role in roles:
        n = F.layer_norm(memory.read(n, role, causal=True), n.shape[-1:])
    return n
