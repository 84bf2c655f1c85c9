"""The Mathematics Dataset: the reader, on tiny files in the documented format."""

import pytest

from algornn.datamodules import Mathematics
from algornn.datamodules.mathematics import EXTRAPOLATIONS, LEVELS, MODULES

NAME = "arithmetic__add_or_sub"


@pytest.fixture
def tiny(nowhere):
    """Ten pairs a level, four of interpolate, two of extrapolate."""
    for number, (folder, size) in enumerate({**dict.fromkeys(LEVELS, 10), "interpolate": 4, "extrapolate": 2}.items()):
        (nowhere / folder).mkdir()
        name = f"{NAME}_big" if folder == "extrapolate" else NAME
        text = "".join(f"What is {number} + {i}?\n{number + i}\n" for i in range(size))
        (nowhere / folder / f"{name}.txt").write_text(text)
    return nowhere


def of(data, stage):
    return [("".join(e.source), "".join(e.target), e.group) for e in data.examples(stage)]


def test_kinds_of_questions():
    assert (len(MODULES), len(set(MODULES)), len(EXTRAPOLATIONS)) == (56, 56, 15)
    assert set(EXTRAPOLATIONS) < set(MODULES)
    assert {"numbers__gcd_composed", "polynomials__evaluate_composed", "comparison__sort"} < set(MODULES)


def test_stages(tiny):
    data = Mathematics(data_dir=tiny, val_size=5)
    assert (data.stages, data.ood) == (("train", "val", "test", "extrapolate"), ("extrapolate",))
    parts = {stage: of(data, stage) for stage in data.stages}
    assert [len(part) for part in parts.values()] == [25, 5, 4, 2]
    assert not set(parts["train"]) & set(parts["val"])
    assert {pair[2] for pair in parts["train"] + parts["val"]} == set(LEVELS)
    assert parts["test"][2] == ("What is 3 + 2?", "5", "interpolate")
    assert parts["extrapolate"][1] == ("What is 4 + 1?", "5", "extrapolate")
    assert (data.vocab_size, data.output_size) == (97, 97)
    assert of(Mathematics(data_dir=tiny, val_size=5), "val") == parts["val"]
    assert of(Mathematics(data_dir=tiny, val_size=5, seed=1), "val") != parts["val"]


def test_a_question_that_is_repeated_is_in_train_or_in_val(tiny):
    file = tiny / "train-hard" / f"{NAME}.txt"
    file.write_text((tiny / "train-easy" / f"{NAME}.txt").read_text() * 2)
    data = Mathematics(data_dir=tiny, val_size=5)
    train, val = ([pair[0] for pair in of(data, stage)] for stage in ("train", "val"))
    assert (len(train) + len(val), len(set(val))) == (40, 5)
    assert not set(train) & set(val)
    assert len(val) > 5


def test_levels_and_kinds_without_extrapolation(tiny):
    data = Mathematics(data_dir=tiny, levels=["train-easy"], val_size=2)
    assert {pair[2] for pair in of(data, "train")} == {"train-easy"}
    assert (Mathematics("numbers__gcd").further, Mathematics("numbers__gcd").ood) == ((), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("What is 1?\n1\nWhat?\n", "line 4: expected the answer to the question before, found the end of the file"),
        ("What is 1?\n\n", "line 2: expected an answer in printable ASCII, found ''"),
        ("What is 1?\n1\nWhat is π?\n3\n", "line 3: expected a question in printable ASCII, found 'What is π"),
        ("", "line 1: expected a question in printable ASCII, found ''"),
    ],
)
def test_bad_line_is_named(tiny, text, message):
    (tiny / "interpolate" / f"{NAME}.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"{NAME}\.txt, {message}"):
        Mathematics(data_dir=tiny).dataset("test")


def test_missing_file_is_named(nowhere):
    with pytest.raises(FileNotFoundError, match=r"train-easy/numbers__gcd\.txt \(or \.txt\.gz\) is in none of"):
        Mathematics("numbers__gcd").dataset("train")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "add_or_sub"}, "did you mean 'arithmetic__add_or_sub'"),
        ({"levels": ["easy"]}, "did you mean 'train-easy'"),
        ({"levels": 3}, "levels is a list of 'train-easy', 'train-medium', 'train-hard', at least one, not 3"),
        ({"levels": "train-easy"}, "levels is a list of 'train-easy', 'train-medium', 'train-hard', at least one"),
        ({"levels": []}, "at least one, not"),
        ({"levels": ["train-easy", "train-easy"]}, "levels must be different ones, not .*; name each once"),
        ({"val_size": 0}, "val_size must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Mathematics(**wrong)


def test_val_must_be_smaller_than_the_training_set(tiny):
    with pytest.raises(
        ValueError, match="val_size is 30, expected fewer than the 30 different training questions at hand"
    ):
        Mathematics(data_dir=tiny, val_size=30).dataset("val")
