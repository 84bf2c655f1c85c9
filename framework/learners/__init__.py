"""Learners: LightningModules that hold loss, metrics and optimizer, one file per kind of task."""

from algornn.learners.digit_classification import DigitClassification
from algornn.learners.example_scores import ExampleScores
from algornn.learners.key_value_retrieval import KeyValueRetrieval
from algornn.learners.language_modeling import LanguageModeling, StreamScores
from algornn.learners.learner import Learner
from algornn.learners.nadam import TFNadam
from algornn.learners.question_answering import QuestionAnswering
from algornn.learners.sequence_classification import SequenceClassification
from algornn.learners.sequence_to_sequence import SequenceToSequence
from algornn.learners.token_tagging import TokenTagging

__all__ = [
    "DigitClassification",
    "ExampleScores",
    "KeyValueRetrieval",
    "LanguageModeling",
    "Learner",
    "QuestionAnswering",
    "SequenceClassification",
    "SequenceToSequence",
    "StreamScores",
    "TFNadam",
    "TokenTagging",
]
