"""PCFG SET: the published tests, the training lines that stand in for the published ones, damaged files."""

import gzip
import hashlib
from collections import Counter

import pytest

from algornn.datamodules import PCFGSet
from algornn.datamodules.files import read_text
from algornn.datamodules.pcfg_files import SHA256, SPLITS
from algornn.datamodules.pcfg_language import EXCEPTIONS, SYNONYMS, functions_in, has_pair, interpret, strings_in
from algornn.datamodules.pcfg_set import UNSEEN

# lines of train, val and the test stages, and the stages out of distribution
COUNTS = {
    "pcfgset": ((82_622, 4_860, 9_721), ()),
    "systematicity": ((82_168, None, 10_175, None), ("test",)),
    "productivity": ((81_010, None, 11_333, None), ("test",)),
    "substitutivity_equally_distributed": ((82_621, 4_860, 10_000, 10_000), ()),
    "substitutivity_primitive": ((82_953, 4_860, 10_000, 10_000), ("twin",)),
    "localism": ((82_622, 4_860, 9_567, 10_070), ("increasing_length",)),
    "overgeneralisation_0.0001": ((82_287, None, 9, 9), ("test",)),
    "overgeneralisation_0.0005": ((82_337, None, 59, 59), ("test",)),
    "overgeneralisation_0.001": ((82_403, None, 125, 125), ("test",)),
    "overgeneralisation_0.005": ((82_832, None, 554, 554), ("test",)),
}
# sha256 of the generated sources of systematicity, seed 0: the same on every platform
TRAIN_DIGEST = "af65bf8fa7660494bb63caf336173556f7fa004eeb5ff825d4fae8ce0ff83f4f"


@pytest.fixture(scope="module")
def sets(pcfgset_dir):
    """Every split, made once."""
    made = {}

    def get(split):
        if split not in made:
            made[split] = PCFGSet(split, pcfgset_dir)
        return made[split]

    return get


def sources(data, stage):
    return [example.source for example in data.examples(stage)]


def small(monkeypatch, **sizes):
    """Let training sets be small."""
    for split, size in sizes.items():
        monkeypatch.setitem(SPLITS, split, SPLITS[split]._replace(size=size))


def test_files_are_the_published_bytes(pcfgset_dir):
    for path, digests in SHA256.items():
        for ending, expected in zip((".src", ".tgt") if len(digests) == 2 else (".tsv",), digests, strict=True):
            text = read_text(pcfgset_dir / f"{path}{ending}.gz")
            assert hashlib.sha256(text.encode()).hexdigest() == expected


@pytest.mark.parametrize("split", COUNTS)
def test_counts_and_disjointness(sets, split):
    data, (counts, ood) = sets(split), COUNTS[split]
    assert data.ood == ood
    lines = {stage: sources(data, stage) for stage in data.stages}
    assert [n for n, m in zip(map(len, lines.values()), counts, strict=True) if m] == [m for m in counts if m]
    assert len(set(lines["train"])) == counts[0]
    trained = {string for source in lines["train"] for string in strings_in(source)}
    for stage in data.stages[1:]:
        evaluated = {string for source in lines[stage] for string in strings_in(source)}
        if "overgeneralisation" not in split or stage == "val":
            assert not trained & evaluated
        else:
            assert set(lines[stage]) <= set(lines["train"])
    if "iid" in data.stages:
        assert not set(lines["val"]) & set(lines["iid"])


def test_training_lines_obey_the_split(sets):
    assert not any(
        has_pair(source, UNSEEN)
        for stage in ("train", "val", "iid")
        for source in sources(sets("systematicity"), stage)
    )
    assert all(has_pair(source, UNSEEN) for source in sources(sets("systematicity"), "test"))
    productivity = sets("productivity")
    assert {functions_in(s) for stage in ("train", "val", "iid") for s in sources(productivity, stage)} == set(
        range(1, 9)
    )
    assert {functions_in(source) for source in sources(productivity, "test")} == set(range(9, 31)) | {32, 35}
    exceptional = [s for s in sources(sets("overgeneralisation_0.001"), "train") if has_pair(s, tuple(EXCEPTIONS))]
    assert exceptional == sources(sets("overgeneralisation_0.001"), "exception")


def test_targets_of_exceptions(sets):
    data = sets("overgeneralisation_0.005")
    rule, exception = data.examples("test"), data.examples("exception")
    assert [e.source for e in rule] == [e.source for e in exception]
    assert all(list(e.target) == interpret(e.source) for e in rule)
    assert all(list(e.target) == interpret(e.source, exceptions=True) for e in exception)
    assert set(data.examples("train")[-554:]) == set(exception)


def test_synonyms(sets):
    equal, primitive = sets("substitutivity_equally_distributed"), sets("substitutivity_primitive")
    words = Counter(word for source in sources(equal, "train") for word in source)
    assert all(0.97 < words[name] / words[twin] < 1.03 for name, twin in SYNONYMS.items())
    with_twins = [s for s in sources(primitive, "train") if any(word in SYNONYMS.values() for word in s)]
    assert (len(with_twins), {functions_in(source) for source in with_twins}) == (331, {1})
    for data in (equal, primitive):
        for test, twin in zip(data.examples("test"), data.examples("twin"), strict=True):
            changed = [(a, b) for a, b in zip(test.source, twin.source, strict=True) if a != b]
            assert changed
            assert all(SYNONYMS[a] == b for a, b in changed)
            assert test.target == twin.target


def test_unrolled_computations_end_in_the_target(sets):
    data = sets("localism")
    unrolled, examples = data.unrolled(), data.examples("test")
    assert (len(unrolled), sum(map(len, unrolled))) == (9_567, 49_610)
    for steps, example in zip(unrolled, examples, strict=True):
        values = {}
        for step in steps:
            words = [word for name in step.source for word in values.get(name, [name])]
            values[step.name] = interpret(words)
        assert tuple(values[""]) == example.target
    with pytest.raises(ValueError, match="Only the lines of the split 'localism' are unrolled, not those of 'pcfgset'"):
        sets("pcfgset").unrolled()


def test_generated_lines_depend_on_split_and_seed_alone(sets, pcfgset_dir, monkeypatch):
    text = "\n".join(" ".join(source) for source in sources(sets("systematicity"), "train"))
    assert hashlib.sha256(text.encode()).hexdigest() == TRAIN_DIGEST
    small(monkeypatch, pcfgset=100)
    first = sources(PCFGSet(data_dir=pcfgset_dir), "train")
    assert first == sources(PCFGSet(data_dir=pcfgset_dir, batch_size=3), "train")
    assert first != sources(PCFGSet(data_dir=pcfgset_dir, seed=1), "train")


def test_groups_sizes_and_batches(sets):
    data = sets("productivity")
    assert (data.vocab_size, data.output_size, len(data.groups)) == (537, 522, 35)
    example = data.examples("test")[0]
    assert example.group == f"functions{functions_in(example.source)}"
    batch = next(iter(data.test_dataloader()["iid"]))
    assert batch.source.shape == batch.source_mask.shape
    assert tuple(data.outputs[i] for i in batch.target[0].tolist() if i > 1) == data.examples("iid")[0].target


def test_the_published_training_lines_are_used_where_they_are(sets, pcfgset_dir, nowhere, monkeypatch):
    data = sets("pcfgset")
    assert data.generated_train
    assert str(data) == "PCFGSet(pcfgset) (generated training set)"
    small(monkeypatch, pcfgset=2)
    monkeypatch.setenv("ALGORNN_DATA", str(pcfgset_dir.parent))
    (nowhere / "pcfgset").mkdir()
    (nowhere / "pcfgset" / "train.src").write_text("copy A1 B2\nappend A1 , B2\n")
    assert PCFGSet(data_dir=nowhere).generated_train
    with gzip.open(nowhere / "pcfgset" / "train.tgt.gz", "wt") as file:
        file.write("A1 B2\nA1 B2\n")
    real = PCFGSet(data_dir=nowhere)
    assert (real.generated_train, real.note, str(real)) == (False, "", "PCFGSet(pcfgset)")
    assert [example.source[0] for example in real.examples("train")] == ["copy", "append"]
    assert len(real.examples("test")) == 9_721
    small(monkeypatch, pcfgset=3)
    with pytest.raises(ValueError, match=r"train\.src has 2 lines, expected the 3 of the published training set"):
        PCFGSet(data_dir=nowhere).dataset("train")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            "append A1 B2",
            "A1 B2",
            r"test\.src, line 2: expected ',' and the second argument of 'append', found the end",
        ),
        ("copy A1 X21", "A1 X21", r"test\.src, line 2: expected a letter, ',' or the end of the line, found 'X21'"),
        ("copy A1", "B1", r"test\.src, line 2: expected the target 'B1', its meaning, in 'copy A1'"),
        ("copy " * 5_000 + "A1", "A1", r"test\.src, line 2: expected fewer functions inside each other, in 'copy copy"),
        ("copy A1", "A1\nA1", r"test\.tgt, line 3: expected a line for it in .*test\.src, which ends before"),
        ("copy A1", "A1", r"test\.src is not the published file: expected sha256 65af9357"),
    ],
)
def test_damaged_files_are_named(nowhere, source, target, message):
    (nowhere / "pcfgset").mkdir()
    (nowhere / "pcfgset" / "test.src").write_text(f"copy A1\n{source}\n")
    (nowhere / "pcfgset" / "test.tgt").write_text(f"A1\n{target}\n")
    with pytest.raises(ValueError, match=message):
        PCFGSet(data_dir=nowhere).dataset("test")


@pytest.mark.parametrize("line", ["rolled\tcopy A1\tA1", "unrolled\tcopy A1\t", "original\tcopy A1\t "])
def test_damaged_unrolled_file_is_named(nowhere, line):
    (nowhere / "localism").mkdir()
    (nowhere / "localism" / "unrolled_test.tsv").write_text(f"unrolled\tcopy A1\tA1\n{line}\n")
    with pytest.raises(ValueError, match=r"unrolled_test\.tsv, line 2: expected 'unrolled' or 'original', a tab"):
        PCFGSet("localism", nowhere).dataset("test")


def test_missing_file_and_unknown_split(nowhere):
    with pytest.raises(FileNotFoundError, match=r"pcfgset/dev\.src \(or pcfgset/dev\.src\.gz\) is in none of"):
        PCFGSet().prepare_data()
    with pytest.raises(ValueError, match="did you mean 'substitutivity_primitive'"):
        PCFGSet("substitutivity_primitives")
