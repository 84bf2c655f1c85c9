"""Meta-learners, and the worlds that they act in."""

from algornn.meta.actor_critic import ActorCritic
from algornn.meta.graph_world import GraphWorld
from algornn.meta.world import World

__all__ = ["ActorCritic", "GraphWorld", "World"]
