"""catbAbI: the released counts on the real files, what is asked and what counts, the traits of the release."""

import warnings

import numpy as np
import pytest
import torch

from algornn.datamodules import CatBAbI
from algornn.datamodules.tokens import NO_TARGET

# stories, tokens, questions, tokens of the longest story; less the last story of every file
COUNTS = {
    "en-valid": {"train": (5622, 514_868, 17_925), "val": (605, 54_807, 1891), "test": (6247, 571_900, 19_910)},
    "en-valid-10k": {"val": (6245, 577_139, 19_907, 1398), "test": (6247, 571_900, 19_910, 1394)},
}
TEST_TOKENS = (17496, 32848, 95647, 24975, 40347, 19655, 23480, 22631, 20055, 21242)
TEST_TOKENS += (19021, 21506, 21022, 26572, 18177, 47952, 13767, 19539, 52947, 13021)
STORIES = """1 Mary moved to the garden.
2 Where is Mary? \tgarden\t1
3 John got the apple.
4 What is John carrying?\tApple,Milk\t3
1 Bill left.
2 Where is Bill?\tno\t1
1 Bill left.
2 Where is Bill?\tnone\t1
"""


@pytest.fixture
def folder(tmp_path):
    """Task 4 alone, the same three stories in all parts."""
    (tmp_path / "en-valid").mkdir()
    for part in ("train", "valid", "test"):
        (tmp_path / "en-valid" / f"qa4_{part}.txt").write_text(STORIES)
    return tmp_path


def small(folder, **options):
    return CatBAbI("en-valid", data_dir=folder, tasks=4, **{"batch_size": 1, "segment_length": 5, **options})


def counted(documents):
    return (
        len(documents),
        len(documents.tokens),
        int(documents.asked.sum()),
        int(documents.lengths.max()),
    )


@pytest.mark.parametrize("split", COUNTS)
def test_counts_of_the_real_files(babi_dir, split):
    data = CatBAbI(split, data_dir=babi_dir)
    for stage, expected in COUNTS[split].items():
        assert counted(data.dataset(stage))[: len(expected)] == expected
    test = data.dataset("test")
    assert tuple(int(test.lengths[test.group == task].sum()) for task in range(20)) == TEST_TOKENS


@pytest.mark.parametrize(("task", "stories"), [(1, 1799), (18, 1780), (20, 839)])
def test_counts_of_the_training_files(babi_dir, task, stories):
    data = CatBAbI(data_dir=babi_dir, tasks=task)
    assert len(data.dataset("train")) == stories
    assert len(CatBAbI(data_dir=babi_dir, tasks=task, drop_last_story=False).dataset("train")) == stories + 1


def test_counts_of_the_whole_training_set(babi_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = CatBAbI(data_dir=babi_dir)
        train = data.dataset("train")
    of_others = train.group != 2
    assert (int(of_others.sum()), int(train.lengths[of_others].sum())) == (54_577, 4_318_536)
    if not data.incomplete:
        assert len(train) == 54_577 + 1799


def test_evaluation_reads_the_whole_test_file_in_segments_of_200(babi_dir):
    loader = CatBAbI(data_dir=babi_dir).test_dataloader()["test"]
    assert len(loader) == 2860
    asked, answered, previous = 0, 0, None
    for batch in loader:
        assert batch.tokens.shape == (1, 200)
        asked += int(batch.asked.sum())
        answered += int((batch.target != NO_TARGET).sum())
        if previous is not None and previous.asked[0, -1]:
            assert previous.target[0, -1] == batch.tokens[0, 0]
        previous = batch
    assert asked == answered == 19_910
    assert int(previous.mask.sum()) == 571_900 - 2859 * 200


def test_vocabulary_of_the_release():
    data = CatBAbI()
    assert (data.vocab_size, data.output_size, data.vocabulary[:3]) == (200, 200, ("<pad>", "<eos>", "."))
    assert data.vocabulary[180:] == tuple(map(str, range(1, 21)))
    assert CatBAbI(task_ids_in_vocabulary=False).vocabulary == data.vocabulary[:180]
    assert len(set(data.vocabulary)) == 200
    assert data.groups == tuple(f"qa{task}" for task in range(1, 21))
    assert (data.benchmark, data.ood, data.stages) == ("catbabi", (), ("train", "val", "test"))


def test_stories_have_questions_and_answers_in_place(folder):
    data = small(folder, drop_last_story=False)
    longest = "<eos> mary moved to the garden . where is mary ? garden john got the apple . what is john carrying ?"
    texts = {" ".join(example.source): example for example in data.examples("train")}
    ends = {f"<eos> bill left . where is bill ? {answer}" for answer in ("no", "none")}
    assert set(texts) == {f"{longest} apple,milk", *ends}
    assert texts[f"{longest} apple,milk"][1:] == (("garden", "apple,milk"), "qa4")
    kept = {" ".join(example.source) for example in small(folder).examples("train")}
    assert kept == {f"{longest} apple,milk", "<eos> bill left . where is bill ? no"}


@pytest.mark.parametrize("mode", ["qm", "lm"])
def test_question_mode_and_language_modelling_mode(folder, mode):
    data = small(folder, mode=mode)
    batches = list(data.val_dataloader())
    tokens, target, mask, asked, group = (torch.cat(field, dim=1)[0] for field in zip(*batches, strict=True))
    words = [data.vocabulary[token] for token in tokens[mask]]
    following = [*words[1:], "<eos>"]
    counts = [mode == "lm" or word == "?" for word in words]
    expected = [word if count else None for word, count in zip(following, counts, strict=True)]
    assert [None if t == NO_TARGET else data.vocabulary[t] for t in target[mask].tolist()] == expected
    assert asked[mask].tolist() == [word == "?" for word in words]
    assert (target[~mask] == NO_TARGET).all()
    assert not group.any()


def test_the_order_of_evaluation_does_not_depend_on_the_seed(babi_dir):
    first, second = (CatBAbI("en-valid", data_dir=babi_dir, tasks=[1, 20], seed=seed) for seed in (0, 1))
    assert np.array_equal(first.dataset("test").tokens, second.dataset("test").tokens)
    group = first.dataset("test").group
    assert (group[1:] != group[:-1]).sum() > 20  # the tasks are mixed
    a, b = (next(iter(data.train_dataloader())).tokens for data in (first, second))
    assert not torch.equal(a, b)


def test_bad_arguments_and_files_are_refused(folder, nowhere):
    with pytest.raises(ValueError, match=r"mode 'qa' is unknown; did you mean 'qm'\? Expected one of 'qm', 'lm'"):
        CatBAbI(mode="qa")
    with pytest.raises(ValueError, match="tasks are numbers from 1 to 20"):
        CatBAbI(tasks=21)
    with pytest.raises(ValueError, match="split 'en-valid-1k' is unknown"):
        CatBAbI("en-valid-1k")
    with pytest.raises(FileNotFoundError, match=r"qa5_train.txt.*set data_dir to the folder that holds en-valid/"):
        CatBAbI("en-valid", data_dir=folder, tasks=5).prepare_data()
    (folder / "en-valid" / "qa4_test.txt").write_text("1 Zebras left.\n2 Who left?\tBill\t1\n")
    with pytest.raises(ValueError, match=r"qa4_test.txt, line 1: the word 'zebras' is not in the vocabulary"):
        small(folder).dataset("test")
    (folder / "en-valid" / "qa4_test.txt").write_text("1 Bill left.\n2 Who left?\tBill\t1\n")
    with pytest.raises(ValueError, match="at least one document, found none"):
        small(folder).dataset("test")
