"""SCAN: the grammar and every split against the published files, what is held out, damaged files."""

import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from algornn.datamodules import SCAN
from algornn.datamodules.files import find, read_text
from algornn.datamodules.scan import FILES, LENGTHS, RULES, by_rule, commands, parse

# published lines of train and test
COUNTS = {
    "simple": (16_728, 4_182),
    "length": (16_990, 3_920),
    "addprim_jump": (14_670, 7_706),
    "addprim_turn_left": (21_890, 1_208),
    "template_around_right": (15_225, 4_476),
    "template_opposite_right": (15_225, 4_476),
    "template_right": (15_225, 4_476),
    "template_jump_around_right": (18_528, 1_173),
    "filler_num0": (15_225, 1_173),
    "filler_num1": (16_290, 1_173),
    "filler_num2": (17_391, 1_173),
    "filler_num3": (18_528, 1_173),
    "mcd1": (8_365, 1_045),
    "cutoff_22": (16_990, 3_920),
    "cutoff_24": (17_326, 3_584),
    "cutoff_25": (17_774, 3_136),
    "cutoff_26": (18_286, 2_624),
    "cutoff_27": (18_734, 2_176),
    "cutoff_28": (19_182, 1_728),
    "cutoff_30": (19_758, 1_152),
    "cutoff_32": (20_206, 704),
    "cutoff_33": (20_462, 448),
    "cutoff_36": (20_526, 384),
    "cutoff_40": (20_782, 128),
}
# sha256 of the published files that keep the order of tasks.txt, train and test
JUMP_AROUND_RIGHT = "a3a27e06adece97da26ae506de08c4b6848035970c561691edbf4dcb1e45f9af"
IN_ORDER = {
    "template_around_right": (
        "d5d35d174d557645fc61f289424afa0d95fde21422c59a9819e2d0fcfa9d419f",
        "fc78a5d1077dc2c206d6c42ed89fb9022867618c3f331179bafd3ec1ca699474",
    ),
    "template_opposite_right": (
        "b4fe224a2dd636952a90b7e5552017620ab07e0c465db0ee2dddfb0f727feeb6",
        "e7fc129633f82decd39248517a8945385b77009f721f9f4f58df213f73a29a47",
    ),
    "template_right": (
        "a09e125dc95c59843d087fd50852c57bc4e77997e2cd69aa04a9a934eea9089b",
        "506bed814f8a6ec1eef9c226eb9b2055bc984925902a94d020a23a41080993bb",
    ),
    "template_jump_around_right": (
        "f63ba9149feeb021fbb44132265d7b15e6a07e6b12c9d3220418d97d97d71735",
        JUMP_AROUND_RIGHT,
    ),
    "filler_num0": ("d5d35d174d557645fc61f289424afa0d95fde21422c59a9819e2d0fcfa9d419f", JUMP_AROUND_RIGHT),
    "filler_num1": ("fe2208764e3b873420d31929e137918566b9e49d0052f7be2af68ad129006273", JUMP_AROUND_RIGHT),
    "filler_num2": ("732f3663553b2a41a9a37d2f07c9719a4d9d3f2cd190380e572697b2e4ea730f", JUMP_AROUND_RIGHT),
    "filler_num3": ("f63ba9149feeb021fbb44132265d7b15e6a07e6b12c9d3220418d97d97d71735", JUMP_AROUND_RIGHT),
}
GENERATED = [split for split in SCAN.splits if split not in FILES]
# sha256 of the held-out commands of template_around_right, seed 0: the same on every platform
HELD_OUT = "7e1a539a31169f2c2a6ce713b351b8d75fdce2fdf1691c79e6b691b467b1c4a3"


def line(command):
    return f"IN: {' '.join(command.words)} OUT: {' '.join(command.actions)}"


def text(found):
    return "".join(f"{line(command)}\n" for command in found)


def of(data, stage):
    return [(example.source, example.target) for example in data.examples(stage)]


@pytest.fixture(scope="module")
def tasks(scan_dir):
    return read_text(find([scan_dir], "tasks.txt")).splitlines()


def test_the_grammar_is_the_published_corpus(tasks):
    assert len(commands()) == len(set(commands())) == 20_910
    assert sorted(map(line, commands())) == sorted(tasks)


def test_the_grammar_takes_less_than_a_second():
    code = """
import time
from algornn.datamodules.scan import commands
start = time.process_time()
commands()
print(time.process_time() - start)
"""
    seconds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(seconds) < 1


@pytest.mark.parametrize("split", GENERATED)
def test_counts_of_generated_splits(split):
    assert (len(by_rule(split, "train")), len(by_rule(split, "test"))) == COUNTS[split]


@pytest.mark.parametrize("split", ["simple", "mcd1"])
def test_counts_of_splits_with_files(scan_dir, split):
    data = SCAN(split, scan_dir)
    assert (len(data.published("train")), len(data.published("test"))) == COUNTS[split]
    assert not set(data.published("train")) & set(data.published("test"))


@pytest.mark.parametrize("split", ["length", *RULES])
@pytest.mark.parametrize("stage", ["train", "test"])
def test_every_rule_gives_the_lines_of_the_published_file(scan_dir, split, stage):
    if path := find([scan_dir], f"tasks_{stage}_{split}.txt"):
        assert Counter(map(line, by_rule(split, stage))) == Counter(read_text(path).splitlines())
    elif split not in IN_ORDER:  # test_template_and_filler_... checks those without a file here by their sha256
        pytest.skip(f"tasks_{stage}_{split}.txt is not at hand")


@pytest.mark.parametrize("split", IN_ORDER)
def test_template_and_filler_splits_are_the_published_bytes(tasks, split):
    place = {written: i for i, written in enumerate(tasks)}
    for stage, expected in zip(("train", "test"), IN_ORDER[split], strict=True):
        ordered = sorted(by_rule(split, stage), key=lambda command: place[line(command)])
        assert hashlib.sha256(text(ordered).encode()).hexdigest() == expected


@pytest.mark.parametrize("split", [*GENERATED, "simple", "mcd1"])
def test_stages_are_disjoint_and_add_up_to_the_published_lines(scan_dir, split):
    data = SCAN(split, scan_dir)
    assert data.stages == (("train", "val", "test") if split == "simple" else ("train", "val", "test", "iid"))
    assert data.ood == (() if split == "simple" else ("test",))
    parts = {stage: of(data, stage) for stage in data.stages}
    iid = COUNTS[split][0] // 10 if "cutoff" in split else 0 if split == "simple" else 1_000
    assert (len(parts["val"]), len(parts.get("iid", ()))) == (500, iid)
    assert not set(parts["test"]) & {pair for stage in parts if stage != "test" for pair in parts[stage]}
    assert sum(len(set(parts[stage])) for stage in parts) == len({pair for part in parts.values() for pair in part})
    published = Counter((command.words, command.actions) for command in data.published("train"))
    assert Counter(pair for stage in parts if stage != "test" for pair in parts[stage]) == published
    assert Counter(parts["test"]) == Counter((command.words, command.actions) for command in data.published("test"))


@pytest.mark.parametrize("split", ["addprim_jump", "template_right", "length"])
def test_without_holding_out_train_has_every_published_line(split):
    data = SCAN(split, held_out=False, val_size=50, iid_size=70)
    train = Counter(of(data, "train"))
    assert train == Counter((command.words, command.actions) for command in data.published("train"))
    val, iid = of(data, "val"), of(data, "iid")
    assert (len(set(val)), len(set(iid)), len({*val, *iid})) == (50, 70, 120)
    assert {*val, *iid} <= set(train)


def test_the_iid_set_of_a_cutoff_is_never_trained_on():
    data = SCAN("cutoff_26", held_out=False, val_size=50)
    train, iid = of(data, "train"), of(data, "iid")
    assert (len(train), len(iid)) == (18_286 - 1_828, 1_828)
    assert not set(train) & set(iid)
    assert set(of(data, "val")) <= set(train)
    assert max(len(target) for _, target in train + iid) <= 26 < min(len(target) for _, target in of(data, "test"))


def test_the_repeated_line_is_trained_on_as_often_as_published():
    for split, words, repeats in (("addprim_jump", "jump", 1_467), ("addprim_turn_left", "turn left", 2_189)):
        data = SCAN(split)
        sources = {stage: Counter(" ".join(source) for source, _ in of(data, stage)) for stage in data.stages}
        assert [sources[stage][words] for stage in data.stages] == [repeats, 0, 0, 0]
        assert all(f" {words} " in f" {source} " for source in sources["test"])
        assert not any(f" {words} " in f" {source} " for source in sources["train"] if source != words)


def test_what_is_held_out_depends_on_the_seed_alone():
    one, two = SCAN("template_around_right"), SCAN("template_around_right", batch_size=7)
    assert of(one, "val") == of(two, "val")
    assert of(one, "iid") == of(two, "iid")
    assert of(one, "iid") != of(SCAN("template_around_right", seed=1), "iid")
    held = "\n".join(" ".join(source) for source, _ in of(one, "val") + of(one, "iid"))
    assert hashlib.sha256(held.encode()).hexdigest() == HELD_OUT


def test_words_groups_and_batches():
    assert len(next(iter(SCAN("length", batch_size=1).test_dataloader()["test"])).id) == 64
    data = SCAN("length", batch_size=96)
    assert len(next(iter(data.test_dataloader()["test"])).id) == 96
    assert (data.vocab_size, data.output_size, data.groups) == (15, 8, ("single", "and", "after"))
    assert {word for command in commands() for word in command.words} == set(data.vocabulary[2:])
    assert {word for command in commands() for word in command.actions} == set(data.outputs[2:])
    example = next(e for e in data.examples("test") if e.source[:5] == ("walk", "around", "left", "twice", "after"))
    assert (example.group, example.source[-1]) == ("after", "thrice")
    assert [sum(c.group == group for c in commands()) for group in range(3)] == [102, 10_404, 10_404]
    batch = next(iter(data.train_dataloader()))
    assert batch.source.shape == batch.source_mask.shape
    assert batch.target.gather(1, batch.target_mask.sum(1, keepdim=True) - 1).eq(1).all()
    for row, index in enumerate(batch.id.tolist()):
        example = data.examples("train")[index]
        assert tuple(data.vocabulary[i] for i in batch.source[row].tolist() if i > 1) == example.source
        assert tuple(data.outputs[i] for i in batch.target[row].tolist() if i > 1) == example.target
        assert data.groups[batch.group[row]] == example.group


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "add_prim_jump"}, ValueError, "did you mean 'addprim_jump'"),
        ({"split": "cutoff_23"}, ValueError, "Expected one of 'simple', 'length',"),
        ({"val_size": 0}, ValueError, "val_size must be at least 1, not 0"),
        ({"iid_size": 0.1}, TypeError, r"iid_size must be a whole number, not 0\.1"),
        ({"iid_size": 3_900}, ValueError, "at most 4000 together, not 4400; choose smaller"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        SCAN(**wrong)


@pytest.mark.parametrize("bad", ["", "IN: jump", "IN: jump OUT: I_WALK", "IN: hop OUT: I_JUMP", "jump\tI_JUMP"])
def test_bad_line_is_named(nowhere, bad):
    (nowhere / "tasks_test_simple.txt").write_text(f"IN: jump OUT: I_JUMP\n{bad}\n")
    with pytest.raises(ValueError, match=r"tasks_test_simple\.txt, line 2: expected 'IN: <command> OUT: <actions>'"):
        SCAN(data_dir=nowhere).dataset("test")


def test_another_file_than_the_published_one_is_named(nowhere):
    (nowhere / "tasks_train_mcd2.txt").write_text("IN: jump OUT: I_JUMP")
    with pytest.raises(ValueError, match=r"tasks_train_mcd2\.txt is not the published file: expected sha256 f5ddc6fc"):
        SCAN("mcd2", nowhere).dataset("val")


def test_missing_file_says_where_it_was_looked_for(nowhere):
    with pytest.raises(FileNotFoundError) as error:
        SCAN("mcd3", nowhere).prepare_data()
    message = str(error.value)
    assert message.startswith(f"tasks_train_mcd3.txt (or tasks_train_mcd3.txt.gz) is in none of {nowhere}")
    assert str(nowhere / "cache" / "algornn" / "scan") in message
    assert "set data_dir to the folder that holds it" in message
    SCAN("length", nowhere).prepare_data()  # needs no file


def test_download_fills_the_cache_and_checks_it(nowhere, monkeypatch):
    train, test = (text(by_rule("filler_num0", stage)) for stage in ("train", "test"))
    (nowhere / "source").mkdir()
    (nowhere / "source" / "tasks_train_mcd2.txt").write_text(train)
    (nowhere / "source" / "tasks_test_mcd2.txt").write_text(test.removesuffix("\n"))
    folder = f"{(nowhere / 'source').as_uri()}/"
    monkeypatch.setitem(FILES, "mcd2", tuple((folder, sha256) for _, sha256 in FILES["mcd2"]))
    with pytest.raises(ValueError, match=r"tasks_train_mcd2\.txt with sha256 f5ddc6fc.* could not be downloaded"):
        SCAN("mcd2").prepare_data()
    digests = [hashlib.sha256(content.encode()).hexdigest() for content in (train, test.removesuffix("\n"))]
    monkeypatch.setitem(FILES, "mcd2", tuple((folder, sha256) for sha256 in digests))
    SCAN("mcd2").prepare_data()
    (nowhere / "source").rename(nowhere / "gone")
    assert len(SCAN("mcd2").examples("test")) == 1_173
    assert parse(train, nowhere) == by_rule("filler_num0", "train")


def test_lengths_are_those_of_the_published_cutoffs():
    assert LENGTHS["length"] == LENGTHS["cutoff_22"] == 22
    assert {len(command.actions) for command in by_rule("length", "test")} == {
        24,
        25,
        26,
        27,
        28,
        30,
        32,
        33,
        36,
        40,
        48,
    }
