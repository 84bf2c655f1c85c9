"""Agents as MetaGenRL was released."""

from algornn.meta.agents import Agents


class OriginalAgents(Agents):
    """`Agents` as MetaGenRL was released, with what its equations do not say.

    A time limit is stored as a terminal state; critics and advantages take a terminal state for a further reward of 1;
    rewards keep their scale, and the joint gradient of a policy is clipped to length 1.
    """

    quirks = True
