"""Agents as MetaGenRL was released."""

from torch import Tensor

from algornn.meta.agents import Agents


class OriginalAgents(Agents):
    """`Agents` as MetaGenRL was released, with what its equations do not say.

    A time limit is stored as a terminal state; critics and advantages take a terminal state for a further reward of 1;
    rewards keep their scale, and the joint gradient of a policy is clipped to length 1. Agents live a step for every
    step of their critics, at least: where it is time for an episode, they go on to further ones until they have.
    """

    quirks = True

    def steps_due(self) -> Tensor:
        """As many steps as the critics will have taken by the next time, two in every update, ``[N]``."""
        return (self.age // self.every + 1) * 2 * self.every
