"""Agents as MetaGenRL was released."""

from torch import Tensor

from algornn.meta.agents import Agents


class OriginalAgents(Agents):
    """`Agents` as MetaGenRL was released, with what its equations do not say.

    A time limit is stored as a terminal state; critics and advantages take a terminal state for a further reward of 1;
    rewards keep their scale, the joint gradient of a policy is clipped to length 1, and the critics' means count what
    pads short segments. Policies move from the first update on, while they act at random, too. Agents live a step for
    every step of their critics, at least: where it is time for an episode, they go on to further ones until they have.
    Advantages have a lambda of 0.97, and those of `reinforce` are not standardised.

    Source: https://github.com/louiskirsch/metagenrl. Deviations: it is time for episodes every `every` updates, there
    after as many as the shortest of an agent's last episodes had steps, of the agent where these are most; and what
    pads a segment has no part in advantages.
    """

    quirks = True
    gae_lambda = 0.97

    @property
    def rest(self) -> int:
        """0: policies move from the first update on."""
        return 0

    def steps_due(self) -> Tensor:
        """As many steps as the critics will have taken by the next time, two in every update, ``[N]``."""
        return (self.age // self.every + 1) * 2 * self.every
