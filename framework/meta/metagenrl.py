"""MetaGenRL: a population of agents that learn by one objective, which is learned from all of their critics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from algornn.learners.checks import check_shares, check_whole
from algornn.learners.learner import Learner
from algornn.meta.actor_critic import EpisodeReturns
from algornn.meta.agents import Agents, Rule
from algornn.meta.control_networks import of_each, over
from algornn.meta.kept_lives import KeptLives
from algornn.meta.learned_step import LearnedStep
from algornn.meta.policy_rules import agreement, improvement, learned, rule_named
from algornn.meta.replay import Segments
from algornn.meta.world import ContinuousWorld, uniform

_END, _FLIP = 20, 21  # streams of chance
_SCORES = ("agreement", "action_agreement", "improvement")
_TINY = 1e-9
_CLIP = 1.0  # norm of the objective's gradient


class MetaGenRL(Learner):
    r"""Learn an objective for policies from the critics of many agents, which learn by it meanwhile.

    Agents (`Agents`) live in their worlds and begin anew at random ages. In every step each goes through an episode
    where it is time, or several, teaches its critics, and moves its policy along :math:`\beta` times the gradient of
    the learned objective and :math:`1 - \beta` times that of its own critic, both of length 1; :math:`\beta` rises
    from 0 to 1 in the first `warmup` steps and stays 0 for the `anchors`. Then the objective's weights a take a step of
    Adam along the gradient, clipped to 1, of the mean over agents of a score:

    - ``"agreement"``: `algornn.meta.agreement`, of a small step before the tanh of the policies, with actuators
      reversed at random; ``"action_agreement"``: the same of a step on the actions themselves;
    - ``"improvement"``: `algornn.meta.improvement`, as published: one plain step of SGD on the policy's weights, or two
      where agents predict; its gradient is clipped for every agent before the mean.

    To score an objective, it is frozen and fresh agents learn by it, alone, for a lifetime; what counts is their mean
    return afterwards (16 episodes of each without noise), with its standard error over agents. In a test the `rivals`
    are scored in the same way, from the same seeds, as further sets such as ``test_ppo``. The ``loss`` of a test set is
    minus the `agreement` of the learned objective with the critics of these agents at the end of their lives,
    whichever rule they followed. Lives that last for minutes are kept in ``lives`` in the run folder until the test is
    over: ``algornn test --run_dir RUN`` goes on with them.

    Logged in training: the mean score (``train/agreement``), the mean return of the living agents' episodes with
    noise in every world (``train/return/<world>``), how many of the agents have diverged (``train/agents/unsound``,
    `Agents.unsound`), and how many steps all of them have lived so far (``train/agents/steps``).

    Args:
        model: the learned objective: `LearnedObjective` or `PredictingObjective` of `algornn.meta`, or one of your own
            that takes what they take; the score "improvement" calls it for every agent under `torch.func.vmap`.
        worlds: what makes each world of a batch of seeds, by the names that the data use.
        agents: called with the worlds and the seeds of agents, makes a population: `algornn.meta.Agents`.
        optimizer: called with the objective's weights; None: Adam with its defaults.
        lifetime: updates of a fresh agent; in training a life lasts between a quarter and 7/4 of it.
        warmup: :math:`\beta`'s, in steps.
        anchors: share of the agents that always follow their critic, in every world: of n agents the whole part of
            this share of n.
        score: ``"agreement"``, ``"action_agreement"`` or ``"improvement"``.
        rivals: other rules that a test scores: "critic" (TD3), "reinforce", "reinforce_corrected",
            "reinforce_on_policy", "ppo", "dpo", of `algornn.meta.policy_rules`; or functions of your own,
            ``"module.function"``, of ``(agents, w, segments)``, that give losses ``[N]``.
        step: an optimiser that is learned with the objective, from the same score, which has to be ``"improvement"``,
            and moves the policies by it in training and in a test; None: Adam.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), "Improving Generalization in Meta Reinforcement Learning
    using Learned Objectives", https://arxiv.org/abs/1910.04098. Deviations: agreement, anchors, gradients of length 1.
    """

    reads = ("world", "seed", "id")

    def __init__(
        self,
        model: nn.Module,
        worlds: Mapping[str, Callable[[Any], ContinuousWorld]],
        agents: Callable[[Sequence[Callable[[Any], ContinuousWorld]], Tensor], Agents],
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        lifetime: int = 400,
        warmup: int = 200,
        anchors: float = 0.5,
        score: str = "agreement",
        rivals: Sequence[str] = ("reinforce", "critic"),
        step: LearnedStep | None = None,
    ) -> None:
        super().__init__(model, optimizer)
        check_whole(1, lifetime=lifetime)
        check_whole(0, warmup=warmup)
        check_shares(anchors=anchors)
        if score not in _SCORES:
            raise ValueError(f"`score` must be one of {', '.join(map(repr, _SCORES))}, got {score!r}.")
        if isinstance(rivals, str):
            raise TypeError(f"`rivals` is a list of rules, got {rivals!r}: write [{rivals}].")
        for name in rivals:
            rule_named(name)  # before hours of training
        if len({_last(name) for name in rivals}) < len(rivals):
            raise ValueError(f"`rivals` need names that tell them apart, got {', '.join(rivals)}.")
        if step is not None and score != "improvement":
            raise ValueError(f"`step` is learned from the score 'improvement' alone, got {score!r}.")
        if getattr(model, "predictions", 0) and score != "improvement":
            raise ValueError(f"`predictions` are learned from the score 'improvement' alone, got {score!r}.")
        self.automatic_optimization = False
        self.step = step
        self.worlds, self.agents, self.lifetime, self.warmup = dict(worlds), agents, lifetime, warmup
        self.anchors, self.score, self.rivals = anchors, score, tuple(rivals)
        self.population: Agents | None = None
        self.ids, self.homes = torch.empty(0, dtype=torch.long), [""]  # numbers of the agents, and what they live in
        self._saved: list[tuple[Tensor, list[str], dict[str, Tensor]]] = []
        self._lives: KeptLives | None = None

    # Training.

    def on_fit_start(self) -> None:
        """Refuse to scale losses, since gradients are taken by hand, and worlds of the data that nobody makes."""
        self._check_worlds(getattr(getattr(self.trainer, "datamodule", None), "groups", ()))
        precision = getattr(self.trainer, "precision", "")
        if precision in ("16-true", "bf16-true"):
            raise ValueError(f"MetaGenRL does not train in {precision}: choose 32-true or bf16-mixed.")
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError("MetaGenRL does not train in 16-mixed, which scales losses: choose 32-true or bf16-mixed.")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One update of every agent, then one of the objective; return minus the mean score."""
        agents = self._living(batch)
        share = self._share()
        rule, critic = self.rule(agents), self.rule(agents, "critic")
        returns = agents.update((rule, share), (critic, 1 - share), expired=agents.age >= self._ends(agents.seed))
        scores, gradients = self._taught(agents)
        optimizer: Any = self.optimizers()
        for p, gradient in zip(self._trained(), gradients, strict=True):
            p.grad = self.trainer.strategy.reduce(gradient.detach(), reduce_op="mean")
        length = torch.nn.utils.clip_grad_norm_(self.parameters(), _CLIP)
        if not length.isfinite():
            optimizer.zero_grad(
                set_to_none=True
            )  # weights and moments stay, and the step counts: a run comes to its end
        optimizer.step()
        self.log(f"train/{self.score}", scores.detach().mean(), prog_bar=True, sync_dist=True)
        if returns is not None:
            self._log_agents(batch, returns, agents)
        return -scores.detach().mean()

    def _log_agents(self, batch: Any, returns: Tensor, agents: Agents) -> None:
        """Log mean returns by world and numbers about the population, over the agents of all processes."""
        everywhere = partial(self.trainer.strategy.reduce, reduce_op="sum")
        for name in self.worlds:
            mine = returns[[row for row, other in enumerate(batch.world) if other == name]]
            total, number = everywhere(torch.stack([mine.sum(), mine.new_tensor(len(mine))]))
            if number:
                self.log(f"train/return/{name}", total / number)
        for name, count in agents.statistics().items():
            self.log(f"train/agents/{name}", everywhere(count.float()))

    def _living(self, batch: Any) -> Agents:
        """The agents of this process: born from the first batch, or taken over from a checkpoint."""
        if self.population is None:
            self.population = self._born(batch, self.step)
            self.ids = batch.id.clone()
            self.homes = [f"{type(self.population).__name__} in {world}" for world in batch.world]
            place = {agent: row for row, agent in enumerate(self.ids.tolist())}
            self._check_saved(self.population)
            for ids, _, state in self._saved:
                held = [(row, place[agent]) for row, agent in enumerate(ids.tolist()) if agent in place]
                if held:
                    self.population.load_state_dict(state, *torch.tensor(held).T)
            self._saved = []
        if not torch.equal(batch.id, self.ids):
            raise ValueError(
                "MetaGenRL needs the same agents in every batch: the batch size times the number of processes must be "
                f"the number of agents, got {batch.id.tolist()} after {self.ids.tolist()}. Set data.batch_size."
            )
        return self.population

    def _check_saved(self, agents: Agents) -> None:
        """Raise a ValueError where the agents of a checkpoint are others than those of the data and the arguments."""
        known, number = sum(len(ids) for ids, *_ in self._saved), len(agents) * self.trainer.world_size
        if self._saved and known != number:
            raise ValueError(
                f"The checkpoint has {known} agents, the data have {number}: resume with as many, or start anew."
            )
        mine, states = agents.state_dict(), [state for *_, state in self._saved]
        if states and not {"replay.room", "steps_lived"} <= states[0].keys():
            raise ValueError(
                "The checkpoint is of an older algornn, which stored agents otherwise: go on with it, or start anew."
            )
        for key in sorted(mine.keys() | (states[0] if states else mine).keys()):
            first = 2 if key.startswith("replay.") else 1  # a replay is stored without the room that is still empty
            sizes = [part[key].shape[first:] if key in part else None for part in (mine, *states)]
            if len(set(sizes)) > 1:
                raise ValueError(
                    f"The checkpoint has agents of another kind or size, whose {key} differs: resume with the worlds "
                    "and the `agents` that it was trained with, or start anew."
                )
        here = dict(zip(self.ids.tolist(), self.homes, strict=True))
        for ids, homes, _ in self._saved:
            for agent, home in zip(ids.tolist(), homes, strict=True):
                if here.get(agent, home) != home:
                    raise ValueError(
                        f"Agent {agent} of the checkpoint is one of {home}, here it is one of {here[agent]}: resume "
                        "with the worlds and the `agents` that it was trained with, or start anew."
                    )

    def _born(self, batch: Any, step: LearnedStep | None = None) -> Agents:
        """Fresh agents for the worlds and seeds of a batch, with a learned optimiser or Adam."""
        self._check_worlds(batch.world)
        agents = self.agents([self.worlds[name] for name in batch.world], batch.seed.clone())
        agents.step = step
        if self.lifetime <= agents.rest:
            rank_zero_warn(
                f"In a lifetime of {self.lifetime} updates no policy moves: agents act at random for the first "
                f"{agents.rest}. Give a longer lifetime, or fewer random episodes."
            )
        return agents

    def _check_worlds(self, names: Iterable[str]) -> None:
        if missing := sorted(set(names) - set(self.worlds)):
            raise ValueError(f"The data have the world {missing[0]!r}, `worlds` has only {', '.join(self.worlds)}.")

    def _share(self) -> Tensor:
        """What part the learned objective has in the step of every agent's policy, ``[N]``."""
        turn = self.ids // len(set(self.homes))  # so that every world has as many anchors
        anchors = ((turn[:, None] + torch.arange(2, device=turn.device)).double() * self.anchors + _TINY).floor()
        anchor = anchors[:, 1] > anchors[:, 0]
        return torch.where(anchor, 0.0, min(1.0, self.global_step / max(self.warmup, 1)))

    def _ends(self, seed: Tensor) -> Tensor:
        """The ages at which agents begin anew, ``[N]``."""
        return self.lifetime * (0.25 + 1.5 * uniform(seed, 0, _END))

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def _taught(self, agents: Agents) -> tuple[Tensor, list[Tensor]]:
        """The scores ``[N]``, and the gradient of minus their mean, that of an improvement clipped for every agent."""
        if self.score != "improvement":
            scores = self._scores(agents)
            return scores, list(torch.autograd.grad(-scores.mean(), self._trained(), materialize_grads=True))
        model, weights = of_each(self.model, len(agents))
        step, more = of_each(self.step, len(agents)) if self.step is not None else (None, [])
        scores = self._scores(agents, model, step)
        return scores, mean_of_clipped(torch.autograd.grad(-scores.sum(), [*weights, *more], materialize_grads=True))

    def _scores(
        self, agents: Agents, model: Callable[..., Any] | None = None, step: Callable[..., Any] | None = None
    ) -> Tensor:
        """What the objective is trained for, ``[N]``; of a model and a step in the place of the own ones, if given."""
        model = model or self.model
        if self.score == "improvement":
            steps = 1 + bool(getattr(self.model, "predictions", 0))  # what was foretold is looked at in the next step
            found = improvement(model, agents, [agents.draw(3 + k) for k in range(steps + 1)], step=step)
            # An optimiser's first step is the sign of the gradient, which has no derivative.
            known = agents.policy_steps() > 1
            return found if self.step is None else torch.where(known, found, found.detach())
        number = uniform(agents.seed, agents.time, _FLIP, (1, 1, agents.action_size))
        flip = torch.where(number < 0.5, -1.0, 1.0)
        return agreement(model, agents, agents.draw(3), flip, self.score == "agreement")

    # Scores: fresh agents, the objective frozen.

    def rule(self, agents: Agents, name: str = "learned") -> Rule:
        """What moves policies, for `Agents.update`: a function of weights w and segments that gives losses ``[N]``.

        Args:
            agents: who will follow it.
            name: "learned", or one that `rivals` takes.

        Raises:
            ValueError: there is no such rule.
        """
        if name == "learned":
            return lambda w, segments: learned(self.model, agents, w, segments).mean((1, 2))
        return partial(rule_named(name), agents)

    def live(self, batch: Any, rule: str = "learned") -> tuple[Agents, Segments]:
        """Let fresh agents learn by a rule for a lifetime.

        Args:
            batch: with their `world` and `seed`.
            rule: "learned", or one of the rivals.

        Returns:
            The agents, and 16 episodes of each without noise.
        """
        with torch.inference_mode(False), torch.enable_grad():
            agents = self._born(batch, self.step if rule == "learned" else None)
            follow = self.rule(agents, rule)
            for _ in self._updates(agents, rule, batch.world):
                agents.update((follow, 1.0))
        return agents, agents.collect(16, explore=False)

    def _updates(self, agents: Agents, rule: str, worlds: Sequence[str]) -> Iterable[int]:
        """The updates of a life, which is kept and shown where a trainer runs it."""
        if self._lives is None or not (self.trainer.testing or self.trainer.validating):
            return range(self.lifetime)
        followed = self if rule == "learned" else rule_named(rule)
        told = [rule, *worlds, str(self.trainer.precision)]
        updates = self._lives.updates(agents, self.lifetime, told, followed)
        follow = getattr(self.trainer.progress_bar_callback, "follow", None)
        return follow(updates, f"Life by {rule}", self.lifetime) if follow else updates

    def scored(self, batch: Any, rule: str = "learned") -> Iterator[Any]:
        """Yield ids, returns, minus the objective's agreement with the critics at the end, and groups."""
        agents, episodes = self.live(batch, rule)
        with torch.inference_mode(False), torch.enable_grad():
            squashed = self.score != "action_agreement"
            missed = -agreement(self.model, agents, agents.draw(3), squashed=squashed).detach()
        yield batch.id, (episodes.reward * episodes.mask).sum(-1).mean(-1), missed, batch.group

    def new_scores(self, dataset: Any) -> Metric:
        """Return the metric that scores the agents of a dataset."""
        return EpisodeReturns(len(dataset), getattr(dataset, "groups", ()))

    def on_validation_epoch_start(self) -> None:
        """Begin with the lives that a killed validation kept."""
        super().on_validation_epoch_start()
        self._lives = KeptLives(Path(self.trainer.default_root_dir, "lives"))

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        super().on_validation_epoch_end()
        self._forget_lives()

    def _forget_lives(self) -> None:
        if self._lives is not None:
            self._lives.forget()
        self._lives = None

    def on_test_epoch_start(self) -> None:
        """Start the scores of every test set, for the learned objective and for its rivals."""
        super().on_test_epoch_start()
        self._lives = KeptLives(Path(self.trainer.default_root_dir, "lives"))
        for name, loader in self._test_sets().items():
            for rival in self.rivals:
                self.scores[f"{name}_{_last(rival)}"] = self.new_scores(loader.dataset).to(self.device)

    def _test_sets(self) -> dict[str, Any]:
        loaders: Any = self.trainer.test_dataloaders
        return loaders if isinstance(loaders, dict) else {"test": loaders}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of agents by every rule."""
        name = list(self.scores)[dataloader_idx]
        for rule, key in [("learned", name), *((rival, f"{name}_{_last(rival)}") for rival in self.rivals)]:
            bar = self.trainer.progress_bar_callback
            if bar and self.trainer.is_global_zero:  # a life takes minutes
                bar.print(f"{key}: {len(batch.id)} agents learn by the rule {rule!r}, {self.lifetime} updates")
            for part in self.scored(batch, rule):
                self.scores[key].update(*part)

    def on_test_epoch_end(self) -> None:
        """Log the scores; those of a rival are in or out of distribution as the set is."""
        super().on_test_epoch_end()
        ood = getattr(getattr(self.trainer, "datamodule", None), "ood", ())
        for name in self._test_sets():
            for rival in self.rivals:
                self.results[f"{name}_{_last(rival)}"]["ood"] = name in ood
        self._forget_lives()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the actions of an episode of fresh agents at the end of their lives, ``[N, L, D]``."""
        return self.live(batch)[1].action[:, 0]

    # Checkpoints: the agents of all processes.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the agents of all processes."""
        held = self._saved
        if self.population is not None:
            state = {name: x.detach().cpu().clone() for name, x in self.population.state_dict().items()}
            held = [(self.ids.cpu(), self.homes, state)]
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                every: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(every, held[0])
                held = every
        checkpoint["agents"] = held

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stored agents until the first batch says which of them live here."""
        self.population, self._saved = None, checkpoint.get("agents", [])


def mean_of_clipped(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The mean over N agents of gradients ``[N, ...]``, each agent's clipped to length 1, or 0 if it is not finite."""
    length = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    kept = (_CLIP / (length + 1e-6)).clamp(max=1)
    return [torch.where(over(length.isfinite(), g), over(kept, g) * g, 0).mean(0) for g in gradients]


def _last(name: str) -> str:
    """The last part of a rule's name, which its test set has."""
    return name.rpartition(".")[2]
