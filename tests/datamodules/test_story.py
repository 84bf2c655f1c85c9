"""Stories as numbers: padding, ids, the last sentences."""

import pytest
import torch

from algornn.datamodules.split_datamodule import Examples
from algornn.datamodules.story import StoryDataset, collate_stories

VOCABULARY = ("<pad>", ".", "?", "a", "b", "c", "d")


def dataset(max_sentences=None):
    """Two stories: a . b . [b ?] c . [a ?]  and  d . [d ?]."""
    stories = StoryDataset(VOCABULARY, ("first", "second"), sentence_length=3, max_sentences=max_sentences)
    stories.begin()
    stories.tell(("a", "."))
    stories.tell(("b", "."))
    stories.ask(("b", "?"), "c", 0)
    stories.tell(("c", "."))
    stories.ask(("a", "?"), "d", 1)
    stories.begin()
    stories.tell(("d", "d", "."))
    stories.ask(("d", "?"), "a", 0)
    return stories


def test_batch_is_padded_to_its_longest_story():
    items = dataset()
    batch = collate_stories([items[i] for i in (2, 1, 0)])
    a, b, c = [3, 1, 0], [4, 1, 0], [5, 1, 0]
    empty = [0, 0, 0]
    assert batch.story.tolist() == [[[6, 6, 1], empty, empty], [a, b, c], [a, b, empty]]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert batch.query.tolist() == [[6, 2, 0], [3, 2, 0], [4, 2, 0]]
    assert (batch.answer.tolist(), batch.group.tolist(), batch.id.tolist()) == ([3, 6, 5], [0, 1, 0], [2, 1, 0])
    assert {field.dtype for field in batch} == {torch.int64, torch.bool}
    assert batch.mask.dtype == torch.bool
    assert collate_stories([items[2]]).story.shape == (1, 1, 3)


def test_the_last_sentences_are_kept():
    items = dataset(max_sentences=2)
    assert items[1].story.tolist() == [[4, 1, 0], [5, 1, 0]]
    assert items[2].story.tolist() == [[6, 6, 1]]


def test_examples_in_words():
    examples = Examples(dataset())
    assert len(examples) == 3
    assert examples[1].source == ("a", ".", "b", ".", "c", ".", "a", "?")
    assert examples[1][1:] == (("d",), "second")
    assert examples[-1] == examples[2]
    assert examples[:2] == [examples[0], examples[1]]
    assert [example.target for example in examples] == [("c",), ("d",), ("a",)]
    with pytest.raises(IndexError):
        examples[3]


def test_what_does_not_fit_is_refused():
    stories = dataset()
    with pytest.raises(ValueError, match="word 'zebra' is not in the vocabulary of 7 words"):
        stories.tell(("zebra", "."))
    with pytest.raises(ValueError, match="a sentence has 4 words, expected at most 3"):
        stories.tell(("a", "b", "c", "."))
    stories.begin()
    with pytest.raises(ValueError, match="no sentence of its story before it"):
        stories.ask(("a", "?"), "a", 0)
