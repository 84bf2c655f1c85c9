"""Actor-critic training of agents that learn within an episode, by their activations alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from algornn.learners.learner import Learner
from algornn.meta.world import World


class Episodes(NamedTuple):
    """What B agents saw and did in T steps.

    Attributes:
        observation: ``[B, T, D]``.
        action: ``[B, T]`` int64.
        reward: ``[B, T]``.
        action_mask: ``[B, T, A]`` bool, the actions that there were; None: all, always.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    action_mask: Tensor | None = None


class ActorCritic(Learner):
    r"""Train a recurrent agent by A2C on whole episodes, each in a world of its own (RL²).

    The agent's weights are the same in every world; what it learns of one it keeps in its state, which starts anew with
    every episode. With :math:`R_t = \sum_{k \ge t} \gamma^{k - t} r_k` to the end of the episode,

    .. math::
        L = \frac{1}{B T} \sum_{b, t} \left[ - \log \pi(a_t) (R_t - \bar V_t)
            + c_V (R_t - V_t)^2 - c_H H(\pi_t) \right]

    where the bar stops the gradient, and what the world's `action_mask` leaves out has no probability. Actions are
    drawn step by step without a graph; then the agent runs over the whole episode at once. Scores are mean returns
    (undiscounted) of episodes with drawn actions.

    Args:
        model: the agent, ``forward(x [B, T, D], state) -> (logits [B, T, A], values [B, T], state)``: `RecurrentAgent`.
        world: called with a batch; makes its `World`.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        gamma: :math:`\gamma`.
        value_weight: :math:`c_V`.
        entropy_weight: :math:`c_H`.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.

    Raises:
        ValueError: a discount or a weight out of its range, or an agent with a layer that cannot go step by step.

    Source: Schlag, Munkhdalai and Schmidhuber (2021), section 4.2 and the released code; Wang et al. (2016), "Learning
    to Reinforcement Learn"; Duan et al. (2016), "RL²".
    """

    reads = ("seed",)
    refuses = ("sees_both_sides", "needs_whole_sequences")

    def __init__(
        self,
        model: nn.Module,
        world: Callable[[Any], World],
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        gamma: float = 0.9,
        value_weight: float = 0.1,
        entropy_weight: float = 0.03,
        cooldown: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, cooldown=cooldown)
        if not 0 <= gamma <= 1:
            raise ValueError(f"`gamma` is a discount, expected 0 to 1, got {gamma}.")
        for name, weight in {"value_weight": value_weight, "entropy_weight": entropy_weight}.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"`{name}` must be a number of at least 0, got {weight}.")
        self.world, self.gamma = world, gamma
        self.value_weight, self.entropy_weight = value_weight, entropy_weight

    @torch.no_grad()
    def act(self, call: Callable[..., Any], batch: Any) -> Episodes:
        """Let the agent that `call` stands for act in the worlds of a batch."""
        world, state, dtype = self.world(batch), None, next(self.parameters()).dtype
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(world.length):
            x, mask = world.observe().to(dtype), world.action_mask()
            logits, _, state = call(x[:, None], state)
            logits = only(mask, logits[:, 0])
            # By the inverse of the distribution function: one number per episode, the same on every device.
            below = logits.double().softmax(-1).cumsum(-1) <= world.chance(0)[:, None]
            action = below.sum(-1).clamp(max=logits.shape[-1] - 1)
            steps.append((x, action, world.step(action), *(() if mask is None else (mask,))))
        return Episodes(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean loss of a batch of worlds in which the agent acts."""
        return self.episode_loss(call, self.act(call, batch)).mean()

    def episode_loss(self, call: Callable[..., Any], episodes: Episodes) -> Tensor:
        """The loss of every episode ``[B]``."""
        logits, values, _ = call(episodes.observation)
        log_policy = only(episodes.action_mask, logits).log_softmax(-1)
        chosen = log_policy.gather(-1, episodes.action[..., None])[..., 0]
        advantage = discounted(episodes.reward, self.gamma) - values
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        terms = self.value_weight * advantage.square() - chosen * advantage.detach() - self.entropy_weight * entropy
        return terms.mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch and log its mean return."""
        episodes = self.act(self.model, batch)
        loss = self.episode_loss(self.model, episodes).mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.log("train/return", episodes.reward.sum(1).mean(), prog_bar=True, sync_dist=True)
        return loss

    def scored(self, batch: Any) -> Iterator[Any]:
        """Yield ids, returns, losses and groups of a batch's episodes."""
        episodes = self.act(self, batch)
        yield batch.id, episodes.reward.sum(1), self.episode_loss(self, episodes), batch.group

    def new_scores(self, dataset: Any) -> Metric:
        """Return the metric that scores the episodes of a dataset."""
        return EpisodeReturns(len(dataset), getattr(dataset, "groups", ()))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the actions of every episode ``[B, T]``."""
        return self.act(self, batch).action


class EpisodeReturns(Metric):
    """Mean return and loss over a fixed set of episodes, in all and by group; a repeated episode counts once.

    Args:
        size: number of episodes of the set.
        groups: group names, in the order of the group indices that `update` gets.
    """

    full_state_update = False
    found: Tensor
    loss: Tensor
    group: Tensor

    def __init__(self, size: int, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(groups)
        for name in ("found", "loss"):
            self.add_state(name, torch.full((size,), -torch.inf), dist_reduce_fx="max")
        self.add_state("group", torch.full((size,), -1), dist_reduce_fx="max")

    def update(self, ids: Tensor, found: Tensor, loss: Tensor, group: Tensor) -> None:
        """Store ids, returns, losses and groups of some episodes, all ``[B]``."""
        self.found[ids], self.loss[ids] = found.detach().to(self.found), loss.detach().to(self.loss)
        self.group[ids] = group

    def compute(self) -> dict[str, Tensor]:
        """Return ``return``, its standard error, ``loss`` and ``examples``, all but the loss also by group."""
        seen = self.group >= 0  # a return that is not finite counts too
        scores = {"loss": self.loss[seen].mean()} | self._of(seen)
        for index, name in enumerate(self.groups if len(self.groups) > 1 else ()):
            rows = seen & (self.group == index)
            if rows.any():
                scores |= {f"{name}/{key}": value for key, value in self._of(rows).items()}
        return scores

    def _of(self, rows: Tensor) -> dict[str, Tensor]:
        found = self.found[rows]
        error = found.std() / len(found) ** 0.5 if len(found) > 1 else torch.zeros(())
        return {"return": found.mean(), "return_error": error, "examples": rows.sum()}


def only(mask: Tensor | None, logits: Tensor) -> Tensor:
    """Logits of the actions in the mask; the others get a finite one, for the entropy, that leaves them no chance."""
    return logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min / 2)


def discounted(reward: Tensor, gamma: float) -> Tensor:
    """The discounted sum of rewards from every step to the end, ``[B, T]``."""
    total, sums = torch.zeros_like(reward[:, 0]), []
    for now in reversed(reward.unbind(1)):
        total = now + gamma * total
        sums.append(total)
    return torch.stack(sums[::-1], 1)
