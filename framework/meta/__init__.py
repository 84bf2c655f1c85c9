"""Meta-learners, and the worlds that they act in."""

from algornn.meta.actor_critic import ActorCritic, EpisodeReturns
from algornn.meta.agents import Agents
from algornn.meta.bandit_agents import SymmetricAgent, UpperConfidenceBound
from algornn.meta.bandit_world import BanditWorld
from algornn.meta.cloning import BackpropagationCloning
from algornn.meta.control_networks import Policy, TwinCritics
from algornn.meta.control_worlds import CartPoleSwingUp, ControlWorld, Pendulum, PointMass, Reacher
from algornn.meta.graph_world import GraphWorld
from algornn.meta.gym_world import GymWorld
from algornn.meta.in_context import InContextLearner, InContextScores
from algornn.meta.learned_objective import HalfSquare, LearnedObjective
from algornn.meta.learned_step import LearnedStep
from algornn.meta.metagenrl import MetaGenRL
from algornn.meta.online import OnlineNetwork
from algornn.meta.original_agents import OriginalAgents
from algornn.meta.policy_rules import agreement, improvement
from algornn.meta.predicting_agents import PredictingAgents
from algornn.meta.predicting_objective import PredictingObjective
from algornn.meta.replay import Replay, Segments
from algornn.meta.sharing_agents import SharingAgents
from algornn.meta.vsml import VSML
from algornn.meta.world import ContinuousWorld, World

__all__ = [
    "VSML",
    "ActorCritic",
    "Agents",
    "BackpropagationCloning",
    "BanditWorld",
    "CartPoleSwingUp",
    "ContinuousWorld",
    "ControlWorld",
    "EpisodeReturns",
    "GraphWorld",
    "GymWorld",
    "HalfSquare",
    "InContextLearner",
    "InContextScores",
    "LearnedObjective",
    "LearnedStep",
    "MetaGenRL",
    "OnlineNetwork",
    "OriginalAgents",
    "Pendulum",
    "PointMass",
    "Policy",
    "PredictingAgents",
    "PredictingObjective",
    "Reacher",
    "Replay",
    "Segments",
    "SharingAgents",
    "SymmetricAgent",
    "TwinCritics",
    "UpperConfidenceBound",
    "World",
    "agreement",
    "improvement",
]
