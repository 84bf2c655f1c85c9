"""StoryWorld: the held-out things are held out, the answers are right, the tests are fair."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algornn.datamodules import StoryWorld

MOVE_VERBS = {"moved to", "went to", "went back to", "travelled to", "journeyed to"}
GET_VERBS = {"picked up", "got", "took", "grabbed"}
DROP_VERBS = {"dropped", "left", "put down", "discarded"}
NAMES = {"mary", "john", "daniel", "sandra"}
RARE_NAMES = {"bill", "fred", "julie"}
PLACES = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"}
# Written out once more, so that a change of the benchmark is noticed.
CLOSED = {
    "mary": {"bathroom", "hallway"},
    "john": {"bedroom", "kitchen"},
    "daniel": {"garden", "office"},
    "sandra": {"garden", "hallway"},
    "bill": {"bathroom", "kitchen"},
    "fred": {"bedroom", "office"},
    "julie": {"garden", "kitchen"},
}
SIZES = {"train_size": 1500, "test_size": 300}
ALL_STAGES = [
    (split, stage)
    for split, further in {
        "systematic": ("pairs", "names", "longer"),
        "pairs": ("pairs",),
        "names": ("names",),
        "longer": ("longer",),
    }.items()
    for stage in ("train", "val", "test", *further)
]
seeds = st.integers(min_value=0, max_value=10**6)


class Replay:
    """An independent reader of a story: it knows only sentences, and refuses what cannot happen."""

    def __init__(self, source):
        sentences, sentence = [], []
        for word in source:
            sentence.append(word)
            if word in (".", "?"):
                sentences.append(sentence)
                sentence = []
        *self.sentences, self.question = sentences
        self.place, self.form = {}, {}  # of actors: where they are, and by which kind of sentence
        self.pockets = {name: set() for name in CLOSED}
        self.trail = {}  # of objects: [place, actors who brought or took it there]
        self.visits, self.forms = set(), set()
        for actor, *verb, last, dot in self.sentences:
            assert dot == "."
            words = [word for word in verb if word != "the"]
            if last == "there":
                *words, last = words
            self.step(actor, " ".join(words), last)

    def step(self, actor, verb, what):
        if verb == "is in" or verb in MOVE_VERBS:
            assert what in PLACES
            assert self.place.get(actor) != what
            self.place[actor] = what
            form = "state" if verb == "is in" else "move"
            self.form[actor] = form
            for thing in self.pockets[actor]:
                self.trail[thing].append([what, {actor}])
        elif verb in GET_VERBS:
            form, here = "get", self.place[actor]
            assert not any(what in pocket for pocket in self.pockets.values())
            trail = self.trail.setdefault(what, [])
            if trail:
                assert trail[-1][0] == here
                trail[-1][1].add(actor)
            else:
                trail.append([here, {actor}])
            self.pockets[actor].add(what)
        else:
            assert verb in DROP_VERBS
            form = "drop"
            self.pockets[actor].remove(what)
        self.forms.add((actor, form))
        self.visits.add((actor, self.place[actor]))

    def answer(self):
        """Kind of the question, its place, and the actors and the form of sentence by which it came about."""
        words = self.question
        if "before" in words:
            trail = self.trail[words[3]]
            places = [place for place, _ in trail]
            at = len(places) - 1 - places[::-1].index(words[6])
            assert at > 0
            place, actors = trail[at - 1]
            return "where_was_object", place, actors, "move"
        if words[2] == "the":
            place, actors = self.trail[words[3]][-1]
            return "where_is_object", place, actors, "move"
        return "where_is_actor", self.place[words[2]], {words[2]}, self.form[words[2]]


def replays(data, stage):
    return [(Replay(example.source), example) for example in data.examples(stage)]


@pytest.mark.parametrize(("split", "stage"), ALL_STAGES)
@settings(max_examples=3, deadline=None)
@given(seed=seeds)
def test_every_answer_is_right_and_every_stage_keeps_its_rules(split, stage, seed):
    data = StoryWorld(split, seed=seed, **SIZES)
    hold_pairs, hold_names = split in ("systematic", "pairs"), split in ("systematic", "names")
    for replay, example in replays(data, stage):
        kind, place, actors, form = replay.answer()
        assert (example.group, example.target) == (kind, (place,))

        low, high = (25, 40) if stage == "longer" else (10, 20)
        assert low <= len(replay.sentences) <= high
        closed = {(actor, where) for actor, where in replay.visits if where in CLOSED[actor]}
        if stage == "pairs":
            assert all(place in CLOSED[actor] for actor in actors)
        elif hold_pairs:
            assert not closed
        acting_rare = {(actor, how) for actor, how in replay.forms if actor in RARE_NAMES and how != "state"}
        if stage == "names":
            assert actors <= RARE_NAMES
            assert form == "move"
        elif hold_names:
            assert not acting_rare


@pytest.mark.parametrize("split", StoryWorld.splits)
@settings(max_examples=3, deadline=None)
@given(seed=seeds)
def test_training_knows_every_word_answer_and_name(split, seed):
    data = StoryWorld(split, seed=seed, **SIZES)
    train = data.examples("train")
    words = {word for example in train for word in example.source}
    answers = {(example.group, example.target) for example in train}
    assert words == set(data.vocabulary) - {"<pad>"}
    asked_names = {example.source[-2] for example in train if example.group == "where_is_actor"}
    assert asked_names == NAMES | RARE_NAMES
    for stage in data.test_stages:
        for example in data.examples(stage):
            assert set(example.source) <= words
            assert (example.group, example.target) in answers
    if split in ("systematic", "names"):
        stated = {(name, "state") for name in RARE_NAMES}
        assert stated <= set().union(*(replay.forms for replay, _ in replays(data, "train")))


@pytest.mark.parametrize("split", StoryWorld.splits)
@settings(max_examples=3, deadline=None)
@given(seed=seeds)
def test_no_answer_is_frequent_and_kinds_have_their_shares(split, seed):
    data = StoryWorld(split, seed=seed, **SIZES)
    for stage in data.stages:
        size = SIZES["train_size" if stage == "train" else "test_size"]
        examples = data.examples(stage)
        assert Counter(example.group for example in examples) == {
            "where_is_actor": size * 2 // 5,
            "where_is_object": size * 2 // 5,
            "where_was_object": size // 5,
        }
        for kind in data.groups:
            answers = Counter(example.target for example in examples if example.group == kind)
            assert set(answers) == {(place,) for place in PLACES}
            assert max(answers.values()) <= 0.2 * answers.total()


@pytest.mark.parametrize("split", StoryWorld.splits)
@settings(max_examples=3, deadline=None)
@given(seed=seeds)
def test_no_story_of_training_occurs_in_a_test(split, seed):
    data = StoryWorld(split, seed=seed, **SIZES)
    stories = {
        stage: {tuple(map(tuple, Replay(example.source).sentences)) for example in data.examples(stage)}
        for stage in data.stages
    }
    for stage in data.stages[1:]:
        assert not stories["train"] & stories[stage]
    assert not stories["val"] & stories["test"]


def test_exclusion_is_enforced_and_not_only_likely(monkeypatch):
    """All stages draw the same stories here, so that without exclusion they would be equal."""
    monkeypatch.setattr("algornn.datamodules.story_world.generator", lambda *name: np.random.default_rng(0))
    data = StoryWorld("longer", **SIZES)
    sources = {stage: [example.source for example in data.examples(stage)] for stage in ("train", "val", "test")}
    assert all(len(set(texts)) == len(texts) for texts in sources.values())
    assert not set(sources["train"]) & set(sources["val"] + sources["test"])
    assert not set(sources["val"]) & set(sources["test"])


def test_stages_depend_on_split_stage_and_seed_alone():
    def text(split, stage, seed, **sizes):
        return list(StoryWorld(split, seed=seed, **{**SIZES, **sizes}).examples(stage))

    reference = text("systematic", "test", 0)
    assert reference == text("systematic", "test", 0, train_size=2000)
    others = [text("systematic", "test", 1), text("systematic", "val", 0), text("longer", "test", 0)]
    assert all(reference != other for other in others)
    data = StoryWorld(seed=0, **SIZES)
    in_another_order = {stage: list(data.examples(stage)) for stage in reversed(data.stages)}
    assert all(in_another_order[stage] == text("systematic", stage, 0) for stage in data.stages)


def test_the_benchmark_is_the_same_on_every_machine():
    example = StoryWorld().examples("test")[0]
    assert " ".join(example.source) == (
        "john travelled to the garden . sandra travelled to the bathroom . john grabbed the football there . "
        "sandra got the milk . john journeyed to the office . julie is in the hallway . john put down the "
        "football there . julie is in the office . sandra went back to the bedroom . john took the football . "
        "sandra left the milk . julie is in the bedroom . julie is in the bathroom . where is julie ?"
    )
    assert example.target == ("bathroom",)


def test_sizes_and_names():
    data = StoryWorld()
    assert (data.vocab_size, data.sentence_length) == (42, 8)
    assert data.test_stages == ("test", "pairs", "names", "longer")
    assert data.ood == ("pairs", "names", "longer")
    assert StoryWorld("names").test_stages == ("test", "names")
    assert data.incomplete == ()
    assert [len(data.examples(stage)) for stage in data.stages] == [40_000, *[2_000] * 5]
    assert {len(item.query) for item in data.dataset("test")} == {8}


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"split 'name' is unknown; did you mean 'names'\?"):
        StoryWorld("name")
    with pytest.raises(ValueError, match="must be at least 150, for balanced answers, not 149 and 2000"):
        StoryWorld(train_size=149)
    with pytest.raises(TypeError, match=r"train_size must be a whole number, not 330\.5"):
        StoryWorld(train_size=330.5)
    smallest = StoryWorld(train_size=150, test_size=150)
    assert [len(smallest.examples(stage)) for stage in smallest.stages] == [150] * 6


def test_a_batch_of_the_quickstart():
    data = StoryWorld(**SIZES)
    batch = next(iter(data.train_dataloader()))
    assert batch.story.shape[0] == 64
    assert batch.story.shape[2] == 8
    for row in range(64):
        example = data.examples("train")[int(batch.id[row])]
        assert int(batch.mask[row].sum()) == example.source.count(".")
        assert data.vocabulary[batch.answer[row]] == example.target[0]
