"""COGS: the real files against their published counts, and damaged files."""

import hashlib
from collections import Counter

import pytest

from algornn.datamodules import COGS
from algornn.datamodules.cogs import EXPOSURE, LEXICAL, SHA256, STRUCTURAL
from algornn.datamodules.files import find, read_text

GOOD = """A cat ran .\tcat ( x _ 1 ) AND run . agent ( x _ 2 , x _ 1 )\tin_distribution
cat\tLAMBDA a . cat ( a )\tprimitive
"""


@pytest.fixture(scope="module")
def cogs(cogs_dir):
    return COGS(data_dir=cogs_dir)


def write(folder, text=GOOD, **others):
    for name in SHA256:
        (folder / f"{name}.tsv").write_text(others.get(name, text))
    return folder


def publish(monkeypatch, text=GOOD, sizes=(4, 14)):
    """Let `text` be the published file of every stage."""
    monkeypatch.setattr(
        "algornn.datamodules.cogs.SHA256", dict.fromkeys(SHA256, hashlib.sha256(text.encode()).hexdigest())
    )
    monkeypatch.setattr(COGS, "sizes", sizes)


def test_files_are_the_published_bytes(cogs_dir):
    for name, expected in SHA256.items():
        text = read_text(find([cogs_dir], f"{name}.tsv"))
        assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_counts_and_categories(cogs):
    assert [len(cogs.examples(stage)) for stage in cogs.stages] == [24_155, 3_000, 3_000, 21_000]
    assert (cogs.stages, cogs.ood) == (("train", "val", "test", "gen"), ("gen",))
    counts = {stage: Counter(example.group for example in cogs.examples(stage)) for stage in cogs.stages}
    assert counts["train"] == {"in_distribution": 24_000, "primitive": 143} | dict.fromkeys(EXPOSURE, 1)
    assert counts["val"] == counts["test"] == {"in_distribution": 3_000}
    assert counts["gen"] == dict.fromkeys((*LEXICAL, *STRUCTURAL), 1_000)
    assert (len(LEXICAL), len(STRUCTURAL)) == (18, 3)


def test_sentences_are_unique_and_the_stages_disjoint(cogs):
    sources = [example.source for stage in cogs.stages for example in cogs.examples(stage)]
    assert len(sources) == len(set(sources)) == 51_155


def test_lengths_and_vocabularies(cogs):
    assert (cogs.vocab_size, cogs.output_size) == (len(cogs.vocabulary), len(cogs.outputs)) == (747, 725)
    words = {stage: [set(), set()] for stage in cogs.stages}
    longest = {}
    for stage in cogs.stages:
        examples = list(cogs.examples(stage))
        longest[stage] = max(len(e.source) for e in examples), max(len(e.target) for e in examples)
        for example in examples:
            words[stage][0].update(example.source)
            words[stage][1].update(example.target)
    assert longest == {"train": (22, 153), "val": (21, 162), "test": (19, 130), "gen": (61, 480)}
    sources, targets = words["train"]
    assert (len(sources), len(targets), len(sources | targets)) == (743, 683, 831)
    assert set(cogs.vocabulary) - sources == {"<pad>", "<eos>", "gardner", "monastery"}
    unseen = {word for word in set(cogs.outputs) - targets if not word.isdigit()}
    assert unseen == {"<pad>", "<eos>", "gardner", "monastery"}


def test_one_sentence_and_a_batch(cogs):
    example = cogs.examples("train")[0]
    assert " ".join(example.source) == "A rose was helped by a dog ."
    assert " ".join(example.target) == (
        "rose ( x _ 1 ) AND help . theme ( x _ 3 , x _ 1 ) AND help . agent ( x _ 3 , x _ 6 ) AND dog ( x _ 6 )"
    )
    batch = next(iter(cogs.test_dataloader()["gen"]))
    assert batch.source.shape == batch.source_mask.shape == (128, int(batch.source_mask.sum(1).max()))
    for row, index in enumerate(batch.id.tolist()[:20]):
        assert cogs.groups[batch.group[row]] == cogs.examples("gen")[index].group


def test_sizes_are_known_without_a_file(nowhere):
    data = COGS()
    assert (data.vocab_size, data.output_size) == (747, 725)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "A cat ran .",
        "A cat ran .\tcat ( x _ 1 )",
        "A cat  ran .\tcat\tprimitive",
        "cat\t\tprimitive",
        "cat\tcat\tnoun",
    ],
)
def test_bad_line_is_named(nowhere, bad):
    write(nowhere, dev=f"{GOOD}{bad}\n")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 3: expected '<sentence><TAB><logical form><TAB><type>'"):
        list(COGS(data_dir=nowhere).pairs_of("val"))


def test_another_file_than_the_published_one_is_named(nowhere, monkeypatch):
    write(nowhere, gen=GOOD.replace("cat", "dog"))
    publish(monkeypatch)
    with pytest.raises(ValueError, match=r"gen\.tsv is not the published file: expected sha256 [0-9a-f]{64}, found"):
        COGS(data_dir=nowhere).dataset("train")


def test_words_of_all_files_are_known_and_counted(nowhere, monkeypatch):
    publish(monkeypatch)
    data = COGS(data_dir=write(nowhere))
    assert [len(data.examples(stage)) for stage in data.stages] == [2, 2, 2, 2]
    assert data.vocabulary == ("<pad>", "<eos>", ".", "A", "cat", "ran")
    publish(monkeypatch, sizes=(4, 13))
    with pytest.raises(
        ValueError, match=r"files of COGS\(cogs\) have 4 source words and 14 target words, expected 4 and 13"
    ):
        COGS(data_dir=nowhere).dataset("gen")


def test_missing_file_and_unknown_split(nowhere):
    with pytest.raises(
        FileNotFoundError, match=r"train\.tsv \(or train\.tsv\.gz\) is in none of .*could not be reached"
    ):
        COGS().prepare_data()
    with pytest.raises(ValueError, match="did you mean 'cogs'"):
        COGS("cog")
