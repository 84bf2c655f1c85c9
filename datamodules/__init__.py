"""Benchmarks with systematic splits, one file per benchmark."""

from algornn.datamodules.babi import BAbI
from algornn.datamodules.split_datamodule import Example, SplitDataModule
from algornn.datamodules.story import StoryBatch, StoryDataModule
from algornn.datamodules.story_world import StoryWorld

__all__ = ["BAbI", "Example", "SplitDataModule", "StoryBatch", "StoryDataModule", "StoryWorld"]
