"""StoryWorld: generated stories in bAbI's grammar, with systematic test sets. Needs no files."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from algornn.datamodules.split_datamodule import check_whole, generator
from algornn.datamodules.story import PAD, StoryDataModule, StoryDataset

T = TypeVar("T")

NAMES = ("mary", "john", "daniel", "sandra")
HELD_OUT_NAMES = ("bill", "fred", "julie")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
STATE = ("is", "in")
MOVES = (("moved", "to"), ("went", "to"), ("went", "back", "to"), ("travelled", "to"), ("journeyed", "to"))
GETS = (("picked", "up"), ("got",), ("took",), ("grabbed",))
DROPS = (("dropped",), ("left",), ("put", "down"), ("discarded",))

# Held-out (actor, place) pairs: a third of all. Every place is free to most actors, every actor is free to go to four.
HELD_OUT_PLACES = {
    "mary": ("bathroom", "hallway"),
    "john": ("bedroom", "kitchen"),
    "daniel": ("garden", "office"),
    "sandra": ("garden", "hallway"),
    "bill": ("bathroom", "kitchen"),
    "fred": ("bedroom", "office"),
    "julie": ("garden", "kitchen"),
}

_USUAL_LENGTH, _LONGER_LENGTH = (10, 20), (25, 40)  # sentences, both ends included
_SHARES = {"where_is_actor": 2, "where_is_object": 2, "where_was_object": 1}
_LARGEST_SHARE = 0.2  # of one answer among the questions of one kind
_LEAST_SIZE = 150  # six places at up to 20 % each must be able to fill every kind
_VERBS = (STATE, *MOVES, *GETS, *DROPS)
_QUESTION_WORDS = ("where", "was", "before", "the", "there", ".", "?")
_WORDS = sorted(
    {*NAMES, *HELD_OUT_NAMES, *PLACES, *OBJECTS, *_QUESTION_WORDS, *(word for verb in _VERBS for word in verb)}
)


class Fact(NamedTuple):
    """Where something is, who brought it there (or took it up there), and whether by acting or only by a statement."""

    place: str
    actors: tuple[str, ...]
    acted: bool


_Asked = tuple[tuple[str, ...], Fact]  # a question's words and its fact


class Question(NamedTuple):
    """A question and the fact that answers it with its place."""

    kind: str
    words: tuple[str, ...]
    fact: Fact


class Rules(NamedTuple):
    """What makes a stage.

    Attributes:
        leads: Two of these are in every story; they act.
        stated: These never act: sentences only say where they are.
        avoid: Whether actors keep away from their held-out places.
        length: Least and greatest number of sentences.
        asked: Which facts are asked for.
    """

    leads: tuple[str, ...]
    stated: tuple[str, ...]
    avoid: bool
    length: tuple[int, int]
    asked: Callable[[Fact], bool]


def _any_fact(fact: Fact) -> bool:
    return True


def _held_out_pair(fact: Fact) -> bool:
    return all(fact.place in HELD_OUT_PLACES[actor] for actor in fact.actors)


def _held_out_name(fact: Fact) -> bool:
    return fact.acted and all(actor in HELD_OUT_NAMES for actor in fact.actors)


def rules(split: str, stage: str) -> Rules:
    """The rules of a stage: those of training, except for the one thing that the stage tests."""
    hold_names, hold_pairs = split in ("systematic", "names"), split in ("systematic", "pairs")
    usual = Rules(
        leads=NAMES if hold_names else NAMES + HELD_OUT_NAMES,
        stated=HELD_OUT_NAMES if hold_names else (),
        avoid=hold_pairs,
        length=_USUAL_LENGTH,
        asked=_any_fact,
    )
    if stage == "pairs":
        return usual._replace(avoid=False, asked=_held_out_pair)
    if stage == "names":
        return usual._replace(leads=HELD_OUT_NAMES, stated=(), asked=_held_out_name)
    if stage == "longer":
        return usual._replace(length=_LONGER_LENGTH)
    return usual


class Dice:
    """Fast single draws from a numpy generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._draws = self._stream(generator)

    @staticmethod
    def _stream(generator: np.random.Generator) -> Iterator[float]:
        while True:
            yield from generator.random(4096).tolist()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return next(self._draws) < probability

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + int(next(self._draws) * (high - low + 1))

    def choose(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[int(next(self._draws) * len(options))]

    def sample(self, options: tuple[str, ...], number: int) -> list[str]:
        """`number` different ones of `options`."""
        rest = list(options)
        return [rest.pop(self.integer(0, len(rest) - 1)) for _ in range(number)]


class Story:
    """One story: actors move, get and drop; the sentences so far, and where everybody and everything is and was."""

    def __init__(self, rules: Rules, dice: Dice) -> None:
        self.rules, self.dice = rules, dice
        cast = dice.sample(rules.leads, 2)
        others = tuple(name for name in NAMES + HELD_OUT_NAMES if name not in cast)
        self.cast = cast + dice.sample(others, dice.integer(1, 2))
        self.at: dict[str, Fact] = {}  # actor -> where
        self.holder: dict[str, str] = {}  # object -> actor
        self.path: dict[str, list[Fact]] = {}  # object -> its successive different places
        self.sentences = [self._sentence() for _ in range(dice.integer(*rules.length))]

    def _sentence(self) -> tuple[str, ...]:
        actor = self.dice.choose(self.cast)
        if actor in self.at and actor not in self.rules.stated and self.dice.chance(0.5):
            here = self.at[actor].place
            held = [thing for thing in OBJECTS if self.holder.get(thing) == actor]
            near = [
                thing
                for thing in OBJECTS
                if thing not in self.holder and (thing not in self.path or self.path[thing][-1].place == here)
            ]
            if held or near:
                return (
                    self._drop(actor, held) if held and (not near or self.dice.chance(0.5)) else self._get(actor, near)
                )
        return self._move(actor)

    def _move(self, actor: str) -> tuple[str, ...]:
        here = self.at[actor].place if actor in self.at else None
        barred = HELD_OUT_PLACES[actor] if self.rules.avoid else ()
        place = self.dice.choose([place for place in PLACES if place != here and place not in barred])
        verb = STATE if actor in self.rules.stated else self.dice.choose((STATE, *MOVES))
        self.at[actor] = Fact(place, (actor,), verb is not STATE)
        for thing, holder in self.holder.items():
            if holder == actor:
                self.path[thing].append(Fact(place, (actor,), True))
        return (actor, *verb, "the", place, ".")

    def _get(self, actor: str, near: list[str]) -> tuple[str, ...]:
        thing, place = self.dice.choose(near), self.at[actor].place
        path = self.path.setdefault(thing, [])
        # An object that lies here already has its place from two actors now.
        before = path.pop().actors if path else ()
        path.append(Fact(place, (*before, actor), True))
        self.holder[thing] = actor
        return self._handle(actor, GETS, thing)

    def _drop(self, actor: str, held: list[str]) -> tuple[str, ...]:
        thing = self.dice.choose(held)
        del self.holder[thing]
        return self._handle(actor, DROPS, thing)

    def _handle(self, actor: str, verbs: tuple[tuple[str, ...], ...], thing: str) -> tuple[str, ...]:
        there = ("there",) if self.dice.chance(0.2) else ()
        return (actor, *self.dice.choose(verbs), "the", thing, *there, ".")

    def questions(self) -> dict[str, list[Question]]:
        """All questions that the stage may ask at the end of the story, by kind."""
        actors: list[_Asked] = [(("where", "is", actor, "?"), fact) for actor, fact in self.at.items()]
        things: list[_Asked] = [(("where", "is", "the", thing, "?"), path[-1]) for thing, path in self.path.items()]
        earlier: list[_Asked] = []
        for thing, path in self.path.items():
            last = {fact.place: i for i, fact in enumerate(path)}
            for place, i in last.items():
                if i > 0:
                    earlier.append((("where", "was", "the", thing, "before", "the", place, "?"), path[i - 1]))
        return {
            kind: [Question(kind, words, fact) for words, fact in asked if self.rules.asked(fact)]
            for kind, asked in zip(_SHARES, (actors, things, earlier), strict=True)
        }


class Quota:
    """Chooses questions until every kind has its share of `size` and no answer more than its share of a kind."""

    def __init__(self, size: int) -> None:
        rounds = sum(_SHARES.values())
        self.kinds = {kind: size * share // rounds for kind, share in _SHARES.items()}
        self.kinds["where_is_actor"] += size - sum(self.kinds.values())
        self.asked: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        self.stories = 0

    @property
    def full(self) -> bool:
        """Whether all kinds have their number of questions."""
        return self.asked == self.kinds

    def choose(self, questions: dict[str, list[Question]], dice: Dice) -> list[Question]:
        """At most one question of every kind about one story, so many that the shares are kept all along."""
        chosen = []
        for kind, wanted in self.kinds.items():
            due = min(wanted, wanted * (self.stories + 1) / max(self.kinds.values()))
            allowed = [q for q in questions[kind] if self.answers[kind, q.fact.place] + 1 <= _LARGEST_SHARE * wanted]
            if self.asked[kind] < due and allowed:
                question = dice.choose(allowed)
                self.asked[kind] += 1
                self.answers[kind, question.fact.place] += 1
                chosen.append(question)
        self.stories += bool(chosen)
        return chosen


class StoryWorld(StoryDataModule):
    """Stories of actors who move between six places and get and drop three objects, generated from a seed.

    Three kinds of question, the groups, in shares 2 : 2 : 1: "where is mary ?", "where is the apple ?" (an object is
    where its holder is, or where it was dropped) and "where was the apple before the garden ?" (the place just before
    its last stay there). The grammar is that of bAbI's tasks 1 to 3 and the sentence "mary is in the garden ."

    Splits, by what training and the in-distribution stages (val, test) leave out; each has a test set of its own that
    differs from training in nothing else:

    - "pairs": every actor keeps away from two of the six places; the stage `pairs` asks for facts that come about by
      an actor at such a place.
    - "names": bill, fred and julie never act: sentences only say where they are ("fred is in the garden ."); the stage
      `names` asks for facts that come about by their acting.
    - "longer": stories have 10 to 20 sentences; those of the stage `longer` have 25 to 40.
    - "systematic": all three at once.

    No answer has more than 20 % of the questions of a kind in a stage, and no story occurs twice in train, val and
    test together. A stage is a function of (split, stage, seed) and its size.

    Args:
        split: "systematic", "pairs", "names" or "longer".
        data_dir: Not used; there are no files.
        batch_size: Examples per batch and process.
        seed: Seed of the stories and of the order of training.
        train_size: Number of training questions.
        test_size: Number of questions of every other stage.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a size below 150 (too small to balance the answers).

    Attributes:
        groups: The kinds of question.
    """

    benchmark = "story_world"
    mean_over = "groups"
    splits = ("systematic", "pairs", "names", "longer")
    groups = tuple(_SHARES)
    vocabulary = (PAD, *_WORDS)
    sentence_length = 8

    def __init__(
        self,
        split: str = "systematic",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        train_size: int = 40_000,
        test_size: int = 2_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_whole(train_size=train_size, test_size=test_size)
        if min(train_size, test_size) < _LEAST_SIZE:
            raise ValueError(
                f"train_size and test_size must be at least {_LEAST_SIZE}, for balanced answers, "
                f"not {train_size} and {test_size}."
            )
        self.train_size, self.test_size = train_size, test_size
        self._told: dict[str, set[tuple[tuple[str, ...], ...]]] = {}
        self.further = self.ood = self.splits[1:] if split == "systematic" else (split,)

    def dataset_of(self, stage: str) -> StoryDataset:
        """Generate the stories of a stage; train leaves out those of val and test, val those of test."""
        told: set[tuple[tuple[str, ...], ...]] = set()
        for other in {"train": ("val", "test"), "val": ("test",)}.get(stage, ()):
            self.dataset(other)
            told |= self._told[other]
        before = frozenset(told)
        rule, dice = rules(self.split, stage), Dice(generator(self.benchmark, self.split, stage, self.seed))
        dataset = StoryDataset(self.vocabulary, self.groups, self.sentence_length)
        quota = Quota(self.train_size if stage == "train" else self.test_size)
        while not quota.full:
            story = Story(rule, dice)
            chosen = [] if (key := tuple(story.sentences)) in told else quota.choose(story.questions(), dice)
            if chosen:
                told.add(key)
                dataset.begin()
                for sentence in story.sentences:
                    dataset.tell(sentence)
                for question in chosen:
                    dataset.ask(question.words, question.fact.place, self.groups.index(question.kind))
        self._told[stage] = told - before
        return dataset
