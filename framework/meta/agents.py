"""Populations of actor-critic agents, stacked: one step trains all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from algornn.learners.checks import check_shares, check_whole
from algornn.meta.control_networks import Policy, TwinCritics, Weights, adam_step, fresh_weights, leaves, over, unit
from algornn.meta.replay import Replay, Segments, kept
from algornn.meta.world import ContinuousWorld, WorldsTogether, check_world, each, normal, uniform

Rule = Callable[[Weights, Segments], Tensor]
_EPSILON = 1e-8  # the least standard deviation
_CONSTANT = 1e-6  # spread of rewards, relative to the largest, below which only rounding makes them differ
_SMOOTHING, _SMOOTHED = 0.2, 0.5  # noise of the target policy, and where it is cut
_BORN, _EPISODE, _UNIFORM, _NOISE, _SEGMENT, _TARGET = range(6)  # streams of chance
_TURN = 10**6  # between the streams of collections at one time


class Agents:
    r"""N actor-critics in worlds of their own, side by side: policies :math:`\mu_w`, twin critics (TD3), replay.

    Weights have N in front; agents of several worlds are padded to the widest observation and action, whose further
    dimensions are 0. The critics learn by TD3,

    .. math::
        y_t = r_t + \gamma (1 - d_t) \min_k Q_{u'_k}(s_{t+1}, \mu_{w'}(s_{t+1}) + \epsilon), \qquad
        \epsilon \sim N(0, 0.2^2) \text{ within } \pm 0.5

    in rewards of unit variance (over the agent's first episode, where they vary), and w', u' follow w and u. What moves
    the policies is up to the caller: `update` gets rules that give their loss, whose gradient is brought to length 1
    for every agent before Adam takes it. While agents begin with episodes at random, only the critics learn (`rest`).

    Everything random comes from the agents' seeds and their time, so that an agent does not depend on the others.

    Args:
        worlds: for every agent, what makes its world of a batch of seeds.
        seed: ``[N]`` int64.
        hidden_sizes: units of the hidden layers of policies and critics.
        gamma: :math:`\gamma`.
        learning_rates: of Adam, for the policies and for the critics.
        polyak: the share of w' and u' that is kept in an update.
        exploration: standard deviation of the noise on actions.
        every: updates between episodes, or between the times for several ones (`steps_due`).
        segments: (B, T), how many segments an update draws, of how many steps.
        random: how many of these times, at the beginning, have uniform actions.

    Raises:
        TypeError: a world is not a `ContinuousWorld`.
        ValueError: a number out of its range, segments longer than any episode, or a world that gives other shapes.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), appendix A, and the released code; Fujimoto, van Hoof and
    Meger (2018), "Addressing Function Approximation Error in Actor-Critic Methods". Deviations, which `OriginalAgents`
    takes back: the unit variance, the unit length and the rest above; a time limit is not stored as a terminal state, a
    terminal state gives no further reward of 1, the critics' means leave out what pads short segments, and it is one
    episode at a time, however short.
    """

    capacity = 1000  # episodes of the greatest length that a replay buffer has room for
    quirks = False  # those of `OriginalAgents`
    gae_lambda = 0.95  # of generalized advantage estimation
    predictions = 0  # numbers that `PredictingAgents` say of a state
    step: Any = None  # a `LearnedStep` that takes Adam's place for the policies

    def __init__(
        self,
        worlds: Sequence[Callable[[Any], ContinuousWorld]],
        seed: Tensor,
        hidden_sizes: Sequence[int] = (64, 64),
        gamma: float = 0.95,
        learning_rates: tuple[float, float] = (1e-3, 3e-3),
        polyak: float = 0.95,
        exploration: float = 0.3,
        every: int = 10,
        segments: tuple[int, int] = (32, 10),
        random: int = 2,
    ) -> None:
        _check(gamma, learning_rates, exploration, every, segments, random)
        check_shares(polyak=polyak)
        if not len(worlds) == len(seed) > 0:
            raise ValueError(f"Agents need a world and a seed each, got {len(worlds)} worlds and {len(seed)} seeds.")
        self.worlds, self.seed, self.gamma = list(worlds), seed.clone(), gamma
        self.learning_rates, self.polyak, self.exploration = tuple(learning_rates), polyak, exploration
        (self.segments, self.steps), self.every, self.random = segments, every, random
        made = {world: world(SimpleNamespace(seed=seed[:1])) for world in dict.fromkeys(self.worlds)}
        for world in made.values():
            check_world(world)
        self.sizes = [(made[world].observe().shape[1], made[world].action_size) for world in self.worlds]
        self.observation_size, self.action_size = (max(size) for size in zip(*self.sizes, strict=True))
        self.length = max(world.length for world in made.values())
        if self.steps > self.length:
            raise ValueError(f"`segments` have {self.steps} steps, the longest episode has only {self.length}.")
        acting = torch.tensor([[d < D for d in range(self.action_size)] for _, D in self.sizes], device=seed.device)
        self.real = acting.to(torch.get_default_dtype())  # that of the networks
        self.replay = Replay(self.real, self.capacity, self.length, self.observation_size)
        self.nets: dict[str, Policy | TwinCritics] = {
            "w": Policy(self.observation_size, self.action_size, hidden_sizes, self.predictions),
            "u": TwinCritics(self.observation_size, self.action_size, hidden_sizes),
        }
        self._policy = vmap(lambda w, s: functional_call(self.nets["w"], w, (s,)))
        self._critics = vmap(lambda u, s, b: functional_call(self.nets["u"], u, (s, b)))
        self.time = 0
        self.age, self.steps_lived = torch.zeros_like(seed), torch.zeros_like(seed)
        self.scale = torch.ones(len(seed), device=seed.device)
        self.w, self.u = (fresh_weights(net, self.seed + k, self.sizes) for k, net in enumerate(self.nets.values()))
        self.target_w, self.target_u = ({name: x.clone() for name, x in net.items()} for net in (self.w, self.u))
        self.moments = {
            f"{order}_{which}": {name: torch.zeros_like(x) for name, x in getattr(self, which).items()}
            for which in self.nets
            for order in ("first", "second")
        }

    def __len__(self) -> int:
        """N."""
        return len(self.worlds)

    def policy(self, w: Weights, s: Tensor) -> Tensor:
        """Actions of the policies with weights w, ``[N, ..., O]`` to ``[N, ..., D]``."""
        return self._policy(w, s)[..., : self.action_size] * self._acting(s)

    def values(self, u: Weights, s: Tensor, b: Tensor) -> Tensor:
        """What the critics with weights u think of actions, ``[N, ..., 2]``."""
        return self._critics(u, s, b)

    def opinion(self, s: Tensor, b: Tensor) -> Tensor:
        """Q, the first critic's opinion, ``[N, ...]``."""
        return self.values(self.u, s, b)[..., 0]

    # One update.

    def update(self, *rules: tuple[Rule, Tensor | float], expired: Tensor | None = None) -> Tensor | None:
        """Go through an episode where it is time (or several, `steps_due`), teach critics twice, move policies once.

        Args:
            rules: each gives the losses ``[N]`` of policies w on segments, and has a share ``[N]`` in the step.
            expired: ``[N]`` bool, agents that begin anew where it is time for an episode, and with them those whose
                weights are not finite, from which no objective can learn; None: nobody, however it fares.

        Returns:
            Mean returns ``[N]`` of the episodes, where there were any.
        """
        found = None
        if self.time % self.every == 0:
            if expired is not None and (expired := expired | ~self.finite()).any():
                self.renew(expired)
            found = self._live()
        for half in range(2):
            self._teach(self.draw(half), half)
        self._move(rules, self.draw(2))
        for target, weights in ((self.target_w, self.w), (self.target_u, self.u)):
            for name, x in target.items():
                x.lerp_(weights[name], 1 - self.polyak)
        self.time += 1
        self.age += 1
        return found

    def steps_due(self) -> Tensor | int:
        """Steps that an agent must have lived after its next episode, ``[N]``, or goes through further ones."""
        return 0

    def _live(self) -> Tensor:
        """Let agents go through an episode, or as many as are due; give their mean returns ``[N]``."""
        total, number = torch.zeros(2, len(self), device=self.seed.device)
        among, turn = torch.ones_like(self.seed, dtype=torch.bool), 0
        while among.any():
            episodes = self.collect(1, among=among, turn=turn)
            if not (self.quirks or turn):
                self._measure(episodes)
            self.replay.add(episodes._replace(reward=episodes.reward / self.scale[:, None, None]))
            total, number, turn = total + episodes.reward.sum((1, 2)), number + among, turn + 1
            self.steps_lived += episodes.mask.sum((1, 2)).long()
            among = self.replay.lived() < self.steps_due()
        return total / number

    def _measure(self, episodes: Segments) -> None:
        """Take the standard deviation of the rewards of the newborn as their unit, or 1 where these do not vary."""
        for n in (self.age == 0).nonzero()[:, 0].tolist():
            reward = episodes.reward[n][episodes.mask[n] > 0]
            spread = reward.std(correction=min(1, len(reward) - 1))  # a single reward has none
            self.scale[n] = torch.where(spread > _CONSTANT * reward.abs().max(), spread, 1.0)

    def _move(self, rules: Sequence[tuple[Rule, Tensor | float]], segments: Segments) -> None:
        """Move the policies of the agents that do no longer act at random."""
        w = leaves(self.w)
        step = {name: torch.zeros_like(x) for name, x in w.items()}
        for rule, share in rules:
            slope = torch.autograd.grad(rule(w, segments).sum(), list(w.values()))
            share = torch.as_tensor(share, device=self.seed.device)
            each = dict(zip(w, slope, strict=True))
            for name, g in (each if self.quirks else unit(each)).items():
                step[name] += over(share, g) * g
        if self.quirks:
            step = unit(step, self.shortest)
        count = self.policy_steps()
        before, moved = self.w, self._stepped(step, count) if self.step else self._adam("w", step, count)
        moving = self.age >= self.rest
        self.w = {name: torch.where(over(moving, x), x, before[name]) for name, x in moved.items()}
        for order in ("first", "second"):
            for x in self.moments[f"{order}_w"].values():
                x.mul_(over(moving, x))

    @property
    def shortest(self) -> float:
        """The length up to which the gradient of a policy is not brought to length 1: 1.0 with quirks, else 0.0."""
        return 1.0 if self.quirks else 0.0

    @property
    def rest(self) -> int:
        """Updates at the beginning of a life in which only the critics learn."""
        return self.random * self.every

    def policy_steps(self) -> Tensor:
        """Which step of every agent's policy comes next, ``[N]`` from 1 on."""
        return (self.age - self.rest + 1).clamp(min=1)

    def draw(self, index: int, newest: int | None = None) -> Segments:
        """Segments from every agent's replay.

        Args:
            index: tells those of one update apart.
            newest: how many of the newest episodes they come from; None: all.
        """
        return self.replay.draw(self._number(index), self.steps, newest)

    def _number(self, index: int) -> Tensor:
        return uniform(self.seed, self.time, _SEGMENT + 10 * index, (self.segments, 2))

    def density(self, policy: Tensor, action: Tensor) -> Tensor:
        r"""The logarithm of :math:`N(b; \mu, \sigma^2)` with the exploration's :math:`\sigma`, ``[N, ...]``.

        Actions at their bounds count as though nothing had cut them off there.
        """
        spread = max(self.exploration, _EPSILON)
        near = torch.distributions.Normal(policy, spread, validate_args=False).log_prob(action)
        return (near * self._acting(action)).sum(-1)

    def _acting(self, action: Tensor) -> Tensor:
        """1.0 where an action ``[N, ..., D]`` is one of its world, 0.0 where it only pads."""
        return self.real.view(len(self), *[1] * (action.dim() - 2), -1)

    def _teach(self, segments: Segments, half: int) -> None:
        """Move the critics by one step of TD3."""
        s, after = segments.observation[..., :-1, :], segments.observation[..., 1:, :]
        noise = each(normal, self.seed, self.time, _TARGET + 10 * half, segments.action.shape[1:])
        noise = (_SMOOTHING * noise).clamp(-_SMOOTHED, _SMOOTHED)
        with torch.no_grad():
            b = (self.policy(self.target_w, after) + noise).clamp(-1, 1) * self.real[:, None, None]
            worth = self.values(self.target_u, after, b).amin(-1)
            y = segments.reward + self.gamma * (1 - segments.terminal) * worth
            if self.quirks:
                y = y + segments.terminal
        u = leaves(self.u)
        missed = (self.values(u, s, segments.action) - y[..., None]).square().sum(-1) * segments.mask
        number = segments.mask[0].numel() if self.quirks else segments.mask.sum((1, 2))
        loss = (missed.sum((1, 2)) / number).sum()
        slope = torch.autograd.grad(loss, list(u.values()))
        self.u = self._adam("u", dict(zip(u, slope, strict=True)), 2 * self.age + half + 1)

    def _adam(self, which: str, slope: Weights, count: Tensor) -> Weights:
        """The weights after one step of Adam, whose `count` ``[N]`` is every agent's own."""
        rate, m, v = self.learning_rates[list(self.nets).index(which)], f"first_{which}", f"second_{which}"
        return adam_step(getattr(self, which), slope, self.moments[m], self.moments[v], rate, count)

    @torch.no_grad()
    def _stepped(self, slope: Weights, count: Tensor) -> Weights:
        """The policies' weights after one step of the learned optimiser."""
        first, second = self.moments["first_w"], self.moments["second_w"]
        for name, g in slope.items():
            slope[name], first[name], second[name] = self.step(g, first[name], second[name], count)
        return {name: self.w[name] - self.learning_rates[0] * g for name, g in slope.items()}

    # Acting.

    @torch.no_grad()
    def collect(
        self, episodes: int, explore: bool = True, stream: int = _EPISODE, among: Tensor | None = None, turn: int = 0
    ) -> Segments:
        """Let every agent go through episodes, ``[N, episodes, L, ...]``.

        Args:
            episodes: of every agent.
            explore: with noise, and by chance alone in an agent's first collections.
            stream: of chance, for the episodes' seeds.
            among: ``[N]`` bool, who goes; the episodes of the others have no step. None: all.
            turn: tells collections at one time apart.
        """
        E, D, at = episodes, self.action_size, turn * _TURN
        among = torch.ones_like(self.seed, dtype=torch.bool) if among is None else among
        seeds = (uniform(self.seed, self.time, at + stream, (E,)) * 2**62).long()
        worlds = WorldsTogether(self.worlds, seeds, self.observation_size, among)
        at_random = (self.age < self.random * self.every)[:, None, None] & explore
        if explore:
            noise = self.exploration * each(normal, self.seed, self.time, at + _NOISE, (self.length, E, D))
            chance = 2 * each(uniform, self.seed, self.time, at + _UNIFORM, (self.length, E, D)).float() - 1
        alive = among[:, None].to(self.real).expand(-1, E)
        s, steps = worlds.observe(), list[tuple[Tensor, ...]]()
        while (t := len(steps)) < self.length and (alive.any() or not t):
            p = b = self.policy(self.w, s).nan_to_num()  # a diverged agent's experience is still that of its world
            if explore:
                b = torch.where(at_random, chance[:, t], b + noise[:, t]).clamp(-1, 1) * self.real[:, None]
            density = torch.where(at_random[..., 0], -math.log(2) * self.real.sum(-1)[:, None], self.density(p, b))
            reward, terminal = worlds.step(b)
            over = worlds.over[:, None].to(alive)
            terminal = terminal.maximum(over) if self.quirks else terminal
            steps.append((s, b, reward, terminal, alive, density))
            alive = alive * (1 - terminal) * (1 - over)
            s = worlds.observe()
            s = torch.where(alive[..., None] > 0, s, s.nan_to_num(0.0, 0.0, 0.0))  # whatever comes after an end
        observation, *others = (torch.stack(parts, 2) for parts in zip(*steps, strict=True))
        parts, rest = (torch.cat([observation, s[:, :, None]], 2), *others), self.length - len(steps)
        found = Segments(*(F.pad(x, (0, 0) * (x.dim() - 3) + (0, rest)) for x in parts))
        return kept(found, found.mask > 0)

    def scores(self, episodes: int = 16) -> Tensor:
        """Mean returns ``[N]`` of episodes without noise."""
        found = self.collect(episodes, explore=False, stream=_EPISODE + 100)
        return (found.reward * found.mask).sum(-1).mean(-1)

    def unsound(self) -> Tensor:
        r"""Agents that diverged, ``[N]`` bool: with weights that are not finite, or critics that say the impossible.

        That is :math:`|Q|` on average above twice :math:`\max(1, |r|) / (1 - \gamma)` over the rewards of the replay:
        where these are 0 so far, critics may say what they were born with.
        """
        s = self.draw(4).observation
        with torch.no_grad():
            value = self.values(self.u, s, self.policy(self.w, s)).abs().flatten(1).mean(1)
        largest = self.replay.largest().clamp(min=1)
        return ~(self.finite() & (value <= 2 * largest / (1 - self.gamma)))

    def finite(self) -> Tensor:
        """Agents whose weights are finite, ``[N]`` bool."""
        sums = torch.stack([x.flatten(1).sum(1) for net in (self.w, self.u) for x in net.values()]).sum(0)
        return sums.isfinite()

    def statistics(self) -> dict[str, Tensor]:
        """Numbers about the population for its log: how many agents are unsound, and the steps in worlds so far."""
        return {"unsound": self.unsound().sum(), "steps": self.steps_lived.sum()}

    # Birth, and what a checkpoint holds.

    def renew(self, which: Tensor) -> None:
        """Let some agents, ``[N]`` bool, begin anew with other seeds."""
        self.seed[which] = (uniform(self.seed, self.time, _BORN) * 2**62).long()[which]
        self.age[which] = 0
        self.replay.forget(which)
        sizes = [size for size, born in zip(self.sizes, which.tolist(), strict=True) if born]
        for k, (name, net) in enumerate(self.nets.items()):
            for key, x in fresh_weights(net, self.seed[which] + k, sizes).items():
                for weights in (getattr(self, name), getattr(self, f"target_{name}")):
                    weights[key] = weights[key].clone()
                    weights[key][which] = x
                for order in ("first", "second"):
                    self.moments[f"{order}_{name}"][key][which] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """All that changes, agent by agent: tensors ``[N, ...]``; the time is the same for all."""
        nets = {name: getattr(self, name) for name in ("w", "u", "target_w", "target_u")} | self.moments
        weights = {f"{name}.{key}": x for name, net in nets.items() for key, x in net.items()}
        time = torch.full_like(self.age, self.time)
        own = {"time": time, "seed": self.seed, "age": self.age, "steps_lived": self.steps_lived, "scale": self.scale}
        return own | weights | {f"replay.{name}": x for name, x in self.replay.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor], rows: Tensor, places: Tensor) -> None:
        """Take over agents: rows of the state, for places in this population, int64 both."""
        mine = self.state_dict()
        self.replay.load_rows({key[7:]: x for key, x in state.items() if key.startswith("replay.")}, rows, places)
        for key, x in mine.items():
            if not key.startswith("replay."):
                x[places] = state[key][rows].to(x)
        self.time = int(mine["time"][places[0]])


def _check(
    gamma: float, learning_rates: Sequence[float], exploration: float, every: int, segments: Sequence[int], random: int
) -> None:
    if not 0 <= gamma < 1:
        raise ValueError(f"`gamma` is a discount, expected 0 or more and below 1, got {gamma}.")
    if len(learning_rates) != 2 or not all(0 <= rate < math.inf for rate in learning_rates):
        raise ValueError(
            "`learning_rates` are two, of the policies and of the critics, expected 0 or more, got "
            f"{tuple(learning_rates)}."
        )
    if not 0 <= exploration < math.inf:
        raise ValueError(f"`exploration` is a standard deviation, expected 0 or more, got {exploration}.")
    if len(segments) != 2:
        raise ValueError(f"`segments` are two numbers, how many and of how many steps, got {tuple(segments)}.")
    check_whole(0, every=every, segments=segments[0], steps=segments[1], random=random)
    if every < 1 or min(segments) < 1:
        raise ValueError(
            f"`every` and both numbers of `segments` must be at least 1, got {every} and {tuple(segments)}."
        )
