"""Learners: LightningModules that hold loss, metrics and optimizer, one file per kind of task."""

from algornn.learners.example_scores import ExampleScores
from algornn.learners.nadam import TFNadam
from algornn.learners.question_answering import QuestionAnswering

__all__ = ["ExampleScores", "QuestionAnswering", "TFNadam"]
