"""CFQ: preparation, streaming, splits and download, on tiny files in the release's format."""

import gzip
import hashlib
import io
import json
import tarfile

import pytest

from algornn.datamodules import CFQ
from algornn.datamodules.cfq import SIZES, query_words, question_words, records

QUESTION = "Did M1 's male actor , M2 , marry M0?"
QUERY = "SELECT count(*) WHERE {\n?x0 ns:film.actor.film M1 .\n?x0 ns:people.person.gender ns:m.05zppz .\nM0 a M2\n}"


def example(i):
    query = QUERY if i % 2 else f"SELECT DISTINCT ?x0 WHERE {{\n?x0 a ns:film.number{i}\n}}"
    return {
        "questionPatternModEntities": f"Who {i} was '{i}'" if i % 2 == 0 else f"{QUESTION} {i}",
        "sparqlPatternModEntities": query,
        "ruleTree": {"rule": [1, {"nested": "}],["}]},
    }


def write(folder, number=40, split="mcd1", indent=1):
    """A dataset of `number` examples, the last ten of dev and test."""
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps([example(i) for i in range(number)], indent=indent))
    parts = {"trainIdxs": list(range(30)), "devIdxs": [30, 32, 34], "testIdxs": [31, 33]}
    (folder / "splits" / f"{split}.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture
def tiny(nowhere, monkeypatch):
    for split in ("mcd1", "random_split"):
        monkeypatch.setitem(SIZES, split, (30, 3, 2))
    return nowhere


def of(data, stage):
    return [(e.source, e.target) for e in data.examples(stage)]


def test_words_are_those_of_the_release():
    assert " ".join(question_words(QUESTION)) == "Did M1 ' s male actor , M2 , marry M0 ?"
    assert " ".join(query_words(QUERY)) == (
        "SELECT count ( * ) WHERE { ?x0 film.actor.film M1 . ?x0 people.person.gender m_05zppz . M0 a M2 }"
    )


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_objects_are_read_one_by_one(nowhere, monkeypatch, indent, block):
    monkeypatch.setattr("algornn.datamodules.cfq._BLOCK", block)
    text = json.dumps([example(i) for i in range(5)], indent=indent)
    wanted = [(e["questionPatternModEntities"], e["sparqlPatternModEntities"]) for e in map(example, range(5))]
    assert list(records(io.StringIO(text), nowhere)) == wanted
    assert list(records(io.StringIO("[]"), nowhere)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "object 1: .* the file ends before"),
        ('[{"a": 1}]', "object 1: .* it has no texts 'questionPatternModEntities'"),
        (json.dumps([example(1)])[:-1], "object 2: .* the file ends before"),
        (json.dumps([example(1), example(2)])[:-9], "object 2: .* the file ends inside it"),
        ("[3]", "object 1: .* it has no texts"),
        (f"[{json.dumps(example(1))}, nonsense]", "object 2: expected a list of objects.* Expecting value"),
    ],
)
def test_damaged_list_is_named(nowhere, text, message):
    with pytest.raises(ValueError, match=f"dataset.json, {message}"):
        list(records(io.StringIO(text), nowhere / "dataset.json"))


def test_stages_of_a_split_out_of_distribution(tiny):
    data = CFQ(data_dir=write(tiny), val_size=4, iid_size=5)
    assert data.stages == ("train", "val", "val_ood", "test", "iid")
    assert data.ood == ("test", "val_ood")
    parts = {stage: of(data, stage) for stage in data.stages}
    assert [len(part) for part in parts.values()] == [21, 4, 3, 2, 5]
    assert len({pair for part in parts.values() for pair in part}) == 35
    assert [e.group for e in data.examples("test")] == ["yes-no", "yes-no"]
    assert [e.group for e in data.examples("val_ood")] == ["wh", "wh", "wh"]
    assert list(data.val_dataloader()) == ["val", "val_ood"]
    again = CFQ(data_dir=tiny, val_size=4, iid_size=5)
    assert of(again, "val") == parts["val"]
    assert of(CFQ(data_dir=tiny, val_size=4, iid_size=5, seed=1), "val") != parts["val"]


def test_every_published_example_can_be_trained_on(tiny):
    data = CFQ(data_dir=write(tiny), held_out=False, val_size=4, iid_size=5)
    assert len(data.examples("train")) == 30
    assert {*of(data, "val"), *of(data, "iid")} < set(of(data, "train"))


def test_random_split_has_the_published_development_set(tiny):
    data = CFQ("random_split", write(tiny, split="random_split"))
    assert (data.stages, data.ood) == (("train", "val", "test"), ())
    assert [len(data.examples(stage)) for stage in data.stages] == [30, 3, 2]


def test_sizes_are_known_without_a_file_and_words_fill_them(tiny):
    assert (CFQ().vocab_size, CFQ().output_size) == (258, 258)
    data = CFQ(data_dir=write(tiny), val_size=4, iid_size=5)
    assert len(data.vocabulary) == len(set(data.vocabulary)) == 258
    assert data.vocabulary[-1].startswith("<spare ")
    assert next(iter(data.test_dataloader()["iid"])).source.max() < 258


def test_too_many_words_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(CFQ, "sizes", (256, 20))
    with pytest.raises(ValueError, match=r"files of CFQ\(mcd1\) have \d+ words where at most 20 are expected"):
        CFQ(data_dir=write(tiny), val_size=4, iid_size=5).dataset("train")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("{}", r"mcd1\.json: expected an object with lists of numbers trainIdxs, devIdxs and testIdxs"),
        ("[", r"mcd1\.json: expected an object"),
        ('{"trainIdxs": [0], "devIdxs": [1], "testIdxs": [2]}', r"mcd1\.json: expected \(30, 3, 2\) indices"),
        ('{"trainIdxs": ["word"], "devIdxs": [1], "testIdxs": [2]}', r"mcd1\.json: .* \(.*'word' is no whole number"),
        ('{"trainIdxs": [[0, 1]], "devIdxs": [1], "testIdxs": [2]}', r"mcd1\.json: .* is no whole number"),
        ('{"trainIdxs": [0], "devIdxs": [5.7], "testIdxs": [2]}', r"mcd1\.json: .*5\.7 is no whole number"),
        ('{"trainIdxs": [0], "devIdxs": "56", "testIdxs": [2]}', r"mcd1\.json: .*'5' is no whole number"),
        ('{"trainIdxs": [0, 0], "devIdxs": [1], "testIdxs": [2]}', r"mcd1\.json: .* found 0 more than once"),
        ('{"trainIdxs": [0], "devIdxs": [1], "testIdxs": [1]}', r"mcd1\.json: .* found 1 more than once"),
    ],
)
def test_bad_split_file_is_named(tiny, split, message):
    (write(tiny) / "splits" / "mcd1.json").write_text(split)
    with pytest.raises(ValueError, match=message):
        CFQ(data_dir=tiny).dataset("test")


def test_index_beyond_the_examples_is_named(tiny):
    write(tiny, number=20)
    with pytest.raises(ValueError, match=r"all of them below 20, the number of examples at hand, found .* and 34"):
        CFQ(data_dir=tiny).dataset("test")


def test_download_keeps_what_is_needed(tiny, monkeypatch):
    write(tiny / "source" / "cfq")
    (tiny / "source" / "cfq" / "splits" / "other.json").write_text("{}")
    with tarfile.open(tiny / "cfq.tar.gz", "w:gz") as tar:
        tar.add(tiny / "source" / "cfq", arcname="cfq")
    monkeypatch.setattr("algornn.datamodules.cfq.URLS", ((tiny / "cfq.tar.gz").as_uri(),))
    with pytest.raises(ValueError, match=r"dataset\.json is in none of .* gave sha256"):
        CFQ().prepare_data()
    digest = hashlib.sha256((tiny / "cfq.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr("algornn.datamodules.cfq.SHA256", digest)
    CFQ().prepare_data()
    (tiny / "cfq.tar.gz").unlink()
    cache = tiny / "cache" / "algornn" / "cfq"
    assert sorted(path.name for path in cache.rglob("*.*")) == ["mcd1.json", "pairs.jsonl"]
    options = {"val_size": 4, "iid_size": 5}
    assert of(CFQ(**options), "train") == of(CFQ(data_dir=tiny / "source" / "cfq", **options), "train")
    with pytest.raises(FileNotFoundError, match=r"splits/mcd2\.json is in none of .*could not be reached"):
        CFQ("mcd2").prepare_data()
    (cache / "pairs.jsonl").write_text('["a"]\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: expected a list of a question and its query"):
        CFQ(**options).dataset("test")


def test_compressed_dataset_is_read(tiny):
    write(tiny)
    with gzip.open(tiny / "dataset.json.gz", "wt") as file:
        file.write((tiny / "dataset.json").read_text())
    (tiny / "dataset.json").unlink()
    assert len(CFQ(data_dir=tiny, val_size=4, iid_size=5).examples("test")) == 2


@pytest.mark.parametrize("line", ["5", "[1, 2]", '{"a": 1, "b": 2}', '["a", "b", "c"]', '"ab"'])
def test_bad_line_of_pairs_is_named(tiny, line):
    write(tiny)
    (tiny / "pairs.jsonl").write_text(f'["Who?", "SELECT"]\n{line}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 2: expected a list of a question and its query, two te"):
        CFQ(data_dir=tiny).dataset("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(json.dumps([example(1)]).encode(), mtime=0)[:-20], "expected a complete gzip file"),
        (b"no gzip", "expected a complete gzip file"),
        (gzip.compress(b'[{"questionPatternModEntities": "\xff"}]', mtime=0), "expected UTF-8 text"),
    ],
)
def test_damaged_compressed_dataset_is_named(tiny, content, message):
    write(tiny)
    (tiny / "dataset.json").unlink()
    (tiny / "dataset.json.gz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"dataset\.json\.gz is damaged: {message}"):
        CFQ(data_dir=tiny).dataset("test")


def test_val_and_iid_must_leave_training_examples(tiny):
    with pytest.raises(ValueError, match="val_size and iid_size are 20 and 10, expected fewer together than the 30"):
        CFQ(data_dir=write(tiny), val_size=20, iid_size=10).dataset("train")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="did you mean 'random_split'"):
        CFQ("random")
    with pytest.raises(ValueError, match="iid_size must be at least 1, not 0"):
        CFQ(iid_size=0)
