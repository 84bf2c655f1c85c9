"""Meta-learners, and the worlds that they act in."""

from algornn.meta.actor_critic import ActorCritic, EpisodeReturns
from algornn.meta.control_worlds import CartPoleSwingUp, ControlWorld, Pendulum, PointMass, Reacher
from algornn.meta.graph_world import GraphWorld
from algornn.meta.in_context import InContextLearner, InContextScores
from algornn.meta.learned_objective import HalfSquare, LearnedObjective
from algornn.meta.online import OnlineNetwork
from algornn.meta.vsml import VSML
from algornn.meta.world import World

__all__ = [
    "VSML",
    "ActorCritic",
    "CartPoleSwingUp",
    "ControlWorld",
    "EpisodeReturns",
    "GraphWorld",
    "HalfSquare",
    "InContextLearner",
    "InContextScores",
    "LearnedObjective",
    "OnlineNetwork",
    "Pendulum",
    "PointMass",
    "Reacher",
    "World",
]
