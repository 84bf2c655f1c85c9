"""Benchmarks with systematic splits, one file per benchmark."""

from algornn.datamodules.associative_retrieval import AssociativeRetrieval
from algornn.datamodules.babi import BAbI
from algornn.datamodules.bandits import BanditBatch, Bandits
from algornn.datamodules.catbabi import CatBAbI
from algornn.datamodules.cfq import CFQ
from algornn.datamodules.code_execution import CodeExecution
from algornn.datamodules.cogs import COGS
from algornn.datamodules.compositional_table_lookup import CompositionalTableLookup
from algornn.datamodules.control_tasks import ControlTasks, LifeBatch
from algornn.datamodules.ctl_plus_plus import CTLPlusPlus
from algornn.datamodules.digit_arithmetic import AddMul, DigitBatch, DigitDataModule, DoubleAddition
from algornn.datamodules.few_shot_images import FewShotImages
from algornn.datamodules.gaussian_clusters import GaussianClusters
from algornn.datamodules.graph_navigation import GraphBatch, GraphNavigation
from algornn.datamodules.in_context_digits import InContextDigits, TaskBatch, TaskStreams
from algornn.datamodules.key_value import KeyValueBatch, KeyValueCapacity
from algornn.datamodules.labelled_sequences import LabelledBatch, LabelledDataset, LabelledSequenceDataModule
from algornn.datamodules.listops import ListOps
from algornn.datamodules.mathematics import Mathematics
from algornn.datamodules.pcfg_set import PCFGSet
from algornn.datamodules.sar import SAR
from algornn.datamodules.scan import SCAN
from algornn.datamodules.sequence_pairs import (
    EOS,
    SPECIAL,
    FilePairDataModule,
    PairBatch,
    PairDataset,
    SequencePairDataModule,
)
from algornn.datamodules.sequential_listops import SequentialListOps
from algornn.datamodules.simple_arithmetic import SimpleArithmetic
from algornn.datamodules.sinusoids import Sinusoids
from algornn.datamodules.slog import SLOG
from algornn.datamodules.split_datamodule import (
    Example,
    GroupedDataset,
    ItemGenerators,
    SplitDataModule,
    VocabularyDataModule,
    generator,
)
from algornn.datamodules.story import StoryBatch, StoryDataModule
from algornn.datamodules.story_world import StoryWorld
from algornn.datamodules.stream import StreamBatch, StreamDataModule
from algornn.datamodules.text_file import TextFile
from algornn.datamodules.tokens import TokenBatch, TokenDataModule

__all__ = [
    "CFQ",
    "COGS",
    "EOS",
    "SAR",
    "SCAN",
    "SLOG",
    "SPECIAL",
    "AddMul",
    "AssociativeRetrieval",
    "BAbI",
    "BanditBatch",
    "Bandits",
    "CTLPlusPlus",
    "CatBAbI",
    "CodeExecution",
    "CompositionalTableLookup",
    "ControlTasks",
    "DigitBatch",
    "DigitDataModule",
    "DoubleAddition",
    "Example",
    "FewShotImages",
    "FilePairDataModule",
    "GaussianClusters",
    "GraphBatch",
    "GraphNavigation",
    "GroupedDataset",
    "InContextDigits",
    "ItemGenerators",
    "KeyValueBatch",
    "KeyValueCapacity",
    "LabelledBatch",
    "LabelledDataset",
    "LabelledSequenceDataModule",
    "LifeBatch",
    "ListOps",
    "Mathematics",
    "PCFGSet",
    "PairBatch",
    "PairDataset",
    "SequencePairDataModule",
    "SequentialListOps",
    "SimpleArithmetic",
    "Sinusoids",
    "SplitDataModule",
    "StoryBatch",
    "StoryDataModule",
    "StoryWorld",
    "StreamBatch",
    "StreamDataModule",
    "TaskBatch",
    "TaskStreams",
    "TextFile",
    "TokenBatch",
    "TokenDataModule",
    "VocabularyDataModule",
    "generator",
]
