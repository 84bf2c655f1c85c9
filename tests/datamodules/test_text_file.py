"""The user's own text: words and bytes, the three parts, the vocabulary, and files that will not do."""

import pytest
import torch

from algornn.datamodules import TextFile
from algornn.datamodules.tokens import NO_TARGET

LINES = [f"line {i} of the text" + " again" * (i % 3) for i in range(50)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("\n".join(LINES) + "\n")
    return file


def text_of(data, stage):
    return [" ".join(example.source) for example in data.examples(stage)]


def stream(loader):
    """Tokens and targets of a stage, without padding."""
    tokens, target, mask, asked, _ = (torch.cat(field, dim=1)[0] for field in zip(*loader, strict=True))
    assert torch.equal(asked, mask)
    return tokens[mask].tolist(), target[mask].tolist()


def test_words_of_the_lines_and_the_last_two_tenths(path):
    data = TextFile(path)
    expected = [f"<eos> {line}" for line in LINES]
    assert text_of(data, "train") == expected[:40]
    # A number of the last lines is not in the training text.
    assert [text.split()[1] for text in text_of(data, "test")] == ["line"] * 5
    assert text_of(data, "val") == [text.replace(str(i), "<unk>", 1) for i, text in enumerate(expected)][40:45]
    tokens, target = stream(data.test_dataloader()["test"])
    assert target == [*tokens[1:], data.vocabulary.index("<eos>")]
    assert [data.vocabulary[i] for i in tokens] == " ".join(text_of(data, "test")).split()
    assert next(iter(TextFile(path, batch_size=2, segment_length=7).train_dataloader())).tokens.shape == (2, 7)


def test_vocabulary_is_that_of_the_training_part(path):
    data = TextFile(path)
    assert data.vocabulary[:8] == ("<pad>", "<unk>", "<eos>", "line", "of", "text", "the", "again")
    assert (data.vocab_size, data.output_size) == (8 + 40, 48)
    assert data.vocabulary[8:12] == ("0", "1", "10", "11")
    small = TextFile(path, max_vocabulary=5)
    assert small.vocabulary == data.vocabulary[:5]
    assert text_of(small, "train")[0] == "<eos> line <unk> of <unk> <unk>"


def test_own_files_for_val_and_test(path, tmp_path):
    (tmp_path / "v.txt").write_text("the text\n\nline")
    both = TextFile("own.txt", data_dir=tmp_path, val_path="v.txt", test_path=path)
    assert len(both.examples("train")) == len(both.examples("test")) == 50
    assert text_of(both, "val") == ["<eos> the text", "<eos>", "<eos> line"]
    one = TextFile(path, val_path=tmp_path / "v.txt")
    assert [len(one.examples(stage)) for stage in one.stages] == [45, 3, 5]
    assert text_of(one, "test")[0].startswith("<eos> line <unk>")


def test_bytes(tmp_path):
    raw = b"\xff\x00 caf\xc3\xa9\r\n" * 20
    (tmp_path / "raw").write_bytes(raw)
    data = TextFile(tmp_path / "raw", level="byte", batch_size=1)
    assert (data.vocab_size, data.vocabulary[11], data.vocabulary[98]) == (257, "<0x0a>", "a")
    tokens, target = stream(data.val_dataloader())
    assert bytes(i - 1 for i in tokens) == b"\n" + raw[: 2 * 10].removesuffix(b"\n")
    assert bytes(i - 1 for i in target) == raw[: 2 * 10]
    assert NO_TARGET not in target


def test_lines_of_a_document_stay_together(path):
    data = TextFile(path, document_lines=6, val_path=path, batch_size=1, segment_length=100)
    assert len(data.examples("train")) == 8  # 45 lines
    assert text_of(data, "train")[7] == " ".join(f"<eos> {line}" for line in LINES[42:45])
    row = torch.cat([batch.tokens for batch in data.train_dataloader()], dim=1)[0].tolist()
    words = " ".join(data.vocabulary[i] for i in row)
    following = [f"line {i + 1} of" in words.split(f"line {i} of")[1][:40] for i in range(0, 30, 6)]
    assert all(following)


def test_order_depends_on_the_seed_only(path):
    def first(seed):
        return next(iter(TextFile(path, batch_size=2, segment_length=20, seed=seed).train_dataloader())).tokens.tolist()

    assert first(0) == first(0) != first(1)


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + b"a b c\n" * 40)
    (tmp_path / "plain.txt").write_bytes(b"a b c\n" * 40)
    marked, plain = (TextFile(path=tmp_path / name, batch_size=2) for name in ("marked.txt", "plain.txt"))
    assert marked.vocabulary == plain.vocabulary


def test_what_will_not_do_is_refused_in_plain_words(path, tmp_path):
    for name, raw in {"empty": b" \n", "latin": b"caf\xe9\n" * 20, "short": b"one\ntwo\n"}.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(FileNotFoundError, match=r"^path='.*none.txt' is not a file; give the name of a text file\.$"):
        TextFile(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match=r"^test_path='.*' is not a file"):
        TextFile(path, test_path=tmp_path)
    with pytest.raises(ValueError, match="empty is empty; give a file with some text"):
        TextFile(tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"latin is not UTF-8 text \(byte 3: 0xe9\); save it as UTF-8 or .*level='byte'"
    ):
        TextFile(path, val_path=tmp_path / "latin")
    assert TextFile(tmp_path / "latin", level="byte").vocab_size == 257
    with pytest.raises(ValueError, match=r"short has 2 lines, expected at least 10 .* for test; .* give test_path"):
        TextFile(tmp_path / "short", val_path=path)
    assert TextFile(tmp_path / "short", val_path=path, test_path=path).vocab_size == 5
    with pytest.raises(ValueError, match="level 'char' is unknown, expected one of 'word', 'byte'"):
        TextFile(path, level="char")
    with pytest.raises(ValueError, match="must be more than the 3 special ids, not 3"):
        TextFile(path, max_vocabulary=3)
    with pytest.raises(TypeError, match="max_vocabulary must be a whole number"):
        TextFile(path, max_vocabulary=5.5)
    with pytest.raises(ValueError, match="leave it out at level 'byte'"):
        TextFile(path, level="byte", max_vocabulary=100)
    with pytest.raises(ValueError, match="document_lines must be at least 1"):
        TextFile(path, document_lines=0)
