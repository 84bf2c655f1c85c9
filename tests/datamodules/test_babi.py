"""bAbI: the real files against their published counts, the sys split, and damaged files."""

import gzip
import hashlib
import shutil
import tarfile
import warnings
from itertools import pairwise

import pytest

from algornn.datamodules import BAbI
from algornn.datamodules.babi import parse
from algornn.datamodules.files import find, read_text

# stories, questions, lines, most statements in a story (None: not recorded), most words in a sentence
COUNTS = {
    1: ((1800, 9000, 27000, 10, 6), (200, 1000, 3000, 10, 6), (200, 1000, 3000, 10, 6)),
    2: ((1800, 9000, 48414, 68, 6), (200, 1000, 5578, 48, 6), (200, 1000, 5398, 88, 6)),
    3: (None, (200, 1000, 16014, 228, 7), (200, 1000, 15710, 228, 7)),
    4: ((9000, 9000, 27000, 2, 7), (1000, 1000, 3000, 2, 7), (1000, 1000, 3000, 2, 7)),
    5: ((1800, 9000, 58102, 110, 7), (200, 1000, 6430, 126, 7), (200, 1000, 6290, 94, 7)),
    6: ((1800, 9000, 27544, 26, 6), (200, 1000, 3068, 16, 6), (200, 1000, 3050, 14, 6)),
    7: ((1800, 9000, 32408, 52, 6), (200, 1000, 3636, 40, 6), (200, 1000, 3470, 34, 6)),
    8: ((1800, 9000, 32990, 46, 6), (200, 1000, 3694, 50, 6), (200, 1000, 3710, 58, 6)),
    9: ((1800, 9000, 27000, 10, 7), (200, 1000, 3000, None, 7), (200, 1000, 3000, None, 7)),
    10: ((1800, 9000, 27000, 10, 9), (200, 1000, 3000, None, 9), (200, 1000, 3000, None, 9)),
    11: ((1800, 9000, 27000, 10, 8), (200, 1000, 3000, None, 8), (200, 1000, 3000, None, 8)),
    12: ((1800, 9000, 27000, 10, 8), (200, 1000, 3000, None, 8), (200, 1000, 3000, None, 8)),
    13: ((1800, 9000, 27000, 10, 8), (200, 1000, 3000, None, 8), (200, 1000, 3000, None, 8)),
    14: ((1800, 9000, 30094, 14, 8), (200, 1000, 3310, None, 8), (200, 1000, 3352, None, 8)),
    15: ((2250, 9000, 27000, 8, 5), (250, 1000, 3000, None, 5), (250, 1000, 3000, None, 5)),
    16: ((9000, 9000, 90000, 9, 4), (1000, 1000, 10000, None, 4), (1000, 1000, 10000, None, 4)),
    17: ((1125, 9000, 11250, 2, 11), (125, 1000, 1250, None, 11), (125, 1000, 1250, None, 11)),
    18: ((1781, 8996, 20206, 20, 9), (197, 1004, 2239, None, 9), (199, 1000, 2210, None, 9)),
    19: ((9000, 9000, 54000, 5, 10), (1000, 1000, 6000, None, 10), (1000, 1000, 6000, None, 10)),
    20: ((840, 9002, 18004, 12, 7), (93, 998, 1996, None, 7), (93, 1000, 2000, None, 7)),
}
PARTS = ("train", "valid", "test")
GOOD = """1 Mary moved to the garden.
2 John went to the office.
3 Where is Mary? \tgarden\t1
1 Bill left.
2 Who left?\tBill\t1
"""


def lines_of(babi_dir, task, part):
    path = find([babi_dir], f"en-valid-10k/qa{task}_{part}.txt")
    return list(parse(read_text(path), path))


def write(folder, text, task=1, split="en-valid-10k"):
    """A task's three files, plain, all with the same text."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        (folder / split / f"qa{task}_{part}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def joint(babi_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = BAbI(data_dir=babi_dir)
        data.dataset("train")
    return data


@pytest.mark.parametrize("task", COUNTS)
def test_counts_of_the_real_files(babi_dir, task):
    for part, expected in zip(PARTS, COUNTS[task], strict=True):
        if expected is None:
            continue
        lines = lines_of(babi_dir, task, part)
        starts = [i for i, line in enumerate(lines) if line.begins] + [len(lines)]
        stories = [lines[start:stop] for start, stop in pairwise(starts)]
        counted = (
            len(stories),
            sum(line.answer is not None for line in lines),
            len(lines),
            max(sum(line.answer is None for line in story) for story in stories),
            max(len(line.words) - 1 for line in lines),
        )
        assert [a for a, b in zip(counted, expected, strict=True) if b is not None] == [
            b for b in expected if b is not None
        ]


def test_joint_vocabulary_is_exactly_that_of_the_files(babi_dir):
    data = BAbI()
    words, answers = set(), set()
    for task in COUNTS:
        for part in PARTS if task != 3 else ("valid", "test"):
            for line in lines_of(babi_dir, task, part):
                words.update(line.words)
                answers.add(line.answer)
    answers.remove(None)
    assert (len(words), len(answers), sum("," in answer for answer in answers)) == (147, 60, 24)
    assert data.vocabulary == ("<pad>", *sorted(words | answers))
    assert (data.vocab_size, data.sentence_length) == (179, 12)


def test_joint_sizes(joint):
    assert len(joint.examples("train")) == 179_998 - 9000 + 925
    assert [len(joint.examples(stage)) for stage in ("val", "test", "sys")] == [20_002, 20_000, 20_000]
    assert joint.groups == tuple(f"qa{task}" for task in range(1, 21))
    assert joint.incomplete == ("qa3",)
    assert max(len(joint.dataset("test")[i].story) for i in range(20_000)) == 70


def test_small_variant_is_complete(babi_dir):
    data = BAbI("en-valid", data_dir=babi_dir)
    assert data.incomplete == ()
    assert [len(data.examples(stage)) for stage in data.stages] == [18_013, 1_987, 20_000, 20_000]


def test_sentence_limits(babi_dir):
    assert [BAbI(tasks=tasks).max_sentences for tasks in (None, 3, [3], [2, 3])] == [70, 130, 130, 70]
    assert BAbI(tasks=3, max_sentences=5).max_sentences == 5
    items = BAbI(data_dir=babi_dir, tasks=3).dataset("test")
    assert max(len(item.story) for item in items) == 130
    short = BAbI(data_dir=babi_dir, tasks=3, max_sentences=5).dataset("test")
    assert all((a.story[-5:] == b.story).all() for a, b in zip(items, short, strict=True))


def test_one_question_in_words(babi_dir):
    data = BAbI(data_dir=babi_dir, tasks=[8, 1])
    assert data.groups == ("qa1", "qa8")
    example = data.examples("test")[1]
    assert " ".join(example.source) == (
        "john travelled to the hallway . mary journeyed to the bathroom . "
        "daniel went back to the bathroom . john moved to the bedroom . where is mary ?"
    )
    assert (example.target, example.group) == (("bathroom",), "qa1")
    assert any("," in example.target[0] for example in data.examples("test"))


FORWARD = {"daniel": "bill", "john": "fred", "sandra": "julie"}
BACKWARD = {"bill": "daniel", "fred": "john", "julie": "sandra"}


def test_sys_split_swaps_exactly_the_names(joint):
    test, swapped = joint.examples("test"), joint.examples("sys")
    changed = set()
    for i in range(0, 20_000, 7):
        before, after = test[i], swapped[i]
        task = int(before.group[2:])
        rule = FORWARD if task in (1, 2, 3, 6, 7, 8, 9, 11, 12, 13) else BACKWARD if task in (5, 10, 14) else {}
        assert after.group == before.group
        assert after.source == tuple(rule.get(word, word) for word in before.source)
        assert after.target == tuple(rule.get(word, word) for word in before.target)
        if after != before:
            changed.add(task)
        if rule:
            assert not set(rule) & set(after.source)
    assert changed == {1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}


def test_partial_training_file_is_announced_once(babi_dir):
    data = BAbI(data_dir=babi_dir, tasks=[3])
    with pytest.warns(UserWarning, match="first 185 of task 3's 1,800 stories"):
        assert len(data.dataset("train")) == 925
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.dataset("train")
        data.train_dataloader()
        assert len(data.dataset("test")) == 1000


def test_complete_training_file_is_preferred(nowhere):
    folder = write(nowhere / "babi", GOOD, task=3)
    (folder / "en-valid-10k" / "qa3_train.first185stories.txt").write_text("1 Bill left.\n")
    data = BAbI(data_dir=folder, tasks=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.dataset("train")) == 2
    assert data.incomplete == ()


def test_batches_of_the_real_data(joint):
    loader = joint.train_dataloader()
    batch = next(iter(loader))
    B, T, W = batch.story.shape
    assert (B, W) == (32, 12)
    assert batch.query.shape == (32, 12)
    assert batch.mask.shape == (32, T)
    assert batch.mask.sum(1).max() == T
    assert (batch.story.ne(0).any(-1) == batch.mask).all()
    for row in range(B):
        example = joint.examples("train")[int(batch.id[row])]
        words = [*batch.story[row].reshape(-1).tolist(), *batch.query[row].tolist()]
        assert tuple(joint.vocabulary[word] for word in words if word) == example.source
        assert joint.vocabulary[batch.answer[row]] == example.target[0]
        assert joint.groups[batch.group[row]] == example.group


@pytest.mark.parametrize(
    ("bad", "row", "expected"),
    [
        ("3 Where is Mary? \tgarden\t", 3, "<id> <question>"),
        ("3 Where is Mary? \tgarden", 3, "<id> <question>"),
        ("3 Where is Mary? \tgarden\t1\t2", 3, "<id> <question>"),
        ("3 Where is Ma", 3, "<id> <statement>"),
        ("3", 3, "<id> <statement>"),
        ("", 3, "<id> <statement>"),
        ("4 Where is Mary? \tgarden\t1", 3, "line id 3 or 1"),
        ("3  Mary moved.", 3, "<id> <statement>"),
        ("3 Mary mov3d.", 3, "<id> <statement>"),
        ("3 Where is Mary? \tatlantis\t1", 3, "'atlantis' is not in the vocabulary"),
        ("1 Where is Mary? \tgarden\t1", 3, "no sentence of its story before it"),
    ],
)
def test_bad_line_is_named(nowhere, bad, row, expected):
    write(nowhere, GOOD.replace("3 Where is Mary? \tgarden\t1", bad))
    with pytest.raises(ValueError, match=rf"qa1_test\.txt, line {row}: .*{expected}"):
        BAbI(data_dir=nowhere, tasks=1).dataset("test")


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 9, 20])
def test_truncated_file_is_named(nowhere, cut):
    write(nowhere, GOOD[:-cut])
    with pytest.raises(ValueError, match=r"qa1_test\.txt, line [45]: expected .* fetch it again"):
        BAbI(data_dir=nowhere, tasks=1).dataset("test")


def test_every_cut_inside_a_line_is_found(nowhere):
    for cut in range(1, len(GOOD)):
        whole = GOOD[:cut].endswith("\n")
        try:
            list(parse(GOOD[:cut], nowhere))
        except ValueError:
            assert not whole
        else:
            assert whole


def test_corrupt_gz_is_named(nowhere, babi_dir):
    folder = nowhere / "en-valid-10k"
    folder.mkdir()
    (folder / "qa1_test.txt.gz").write_bytes((babi_dir / "en-valid-10k" / "qa1_test.txt.gz").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"qa1_test\.txt\.gz is damaged"):
        BAbI(data_dir=nowhere, tasks=1).dataset("test")


def test_missing_file_says_where_it_was_looked_for(nowhere):
    with pytest.raises(FileNotFoundError) as error:
        BAbI(data_dir=nowhere, tasks=1).dataset("val")
    message = str(error.value)
    assert "en-valid-10k/qa1_valid.txt" in message
    assert str(nowhere / "cache" / "algornn" / "babi") in message
    assert "could not be reached" in message
    assert "set data_dir to the folder that holds en-valid-10k/" in message


def test_unknown_split_and_tasks():
    with pytest.raises(ValueError, match=r"split 'en-10k' is unknown; did you mean 'en-valid-10k'\?"):
        BAbI("en-10k")
    for tasks in (0, 21, [], [1, 22], 1.0, [1.5], "1", ["qa1"]):
        with pytest.raises(ValueError, match="tasks are numbers from 1 to 20"):
            BAbI(tasks=tasks)
    with pytest.raises(ValueError, match="max_sentences must be at least 1"):
        BAbI(max_sentences=0)


def test_environment_and_gz(nowhere, monkeypatch):
    folder = write(nowhere / "all" / "babi", GOOD)
    for path in (folder / "en-valid-10k").iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    monkeypatch.setenv("ALGORNN_DATA", str(nowhere / "all"))
    assert [example.target for example in BAbI(tasks=1).examples("test")] == [("garden",), ("bill",)]


def test_download_fills_the_cache_once(nowhere, monkeypatch):
    write(nowhere / "source", GOOD)
    with tarfile.open(nowhere / "babi.tar.gz", "w:gz") as tar:
        tar.add(nowhere / "source", arcname="tasks_1-20_v1-2")
    monkeypatch.setattr("algornn.datamodules.babi.URLS", ((nowhere / "babi.tar.gz").as_uri(),))
    data = BAbI(tasks=1)
    with pytest.raises(
        ValueError, match=r"tasks_1-20_v1-2\.tar\.gz with sha256 0364.* could not be downloaded: .* gave sha256"
    ):
        data.prepare_data()
    assert not list((nowhere / "cache").rglob("*.txt"))

    digest = hashlib.sha256((nowhere / "babi.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr("algornn.datamodules.babi.SHA256", digest)
    data.prepare_data()
    (nowhere / "babi.tar.gz").unlink()
    shutil.rmtree(nowhere / "source")
    data.prepare_data()
    assert len(BAbI(tasks=1).examples("test")) == 2
    with pytest.raises(FileNotFoundError, match=r"qa2_train\.txt"):
        BAbI(tasks=2).prepare_data()
