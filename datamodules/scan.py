"""SCAN: navigation commands to sequences of actions; the grammar, and every published systematic split of it."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from algornn.datamodules.files import check_sha256, obtain, read_text
from algornn.datamodules.sequence_pairs import SPECIAL, PairDataset, SequencePairDataModule
from algornn.datamodules.split_datamodule import check_flags, check_positive, generator

_RAW = "https://raw.githubusercontent.com/"
_SIMPLE = f"{_RAW}brendenlake/SCAN/c4b756cbc010d75c912f16c42c8f15dc6b7e6c8f/simple_split/"
_MCD = f"{_RAW}microsoft/ContextualSP/369743e32ccfb47a7e2eefa7ac2d9be46d874696/compositional_generalization/data/"

# The splits that no rule gives: (train, test) of each as (folder, sha256); the file is tasks_<stage>_<split>.txt.
FILES = {
    "simple": (
        (_SIMPLE, "941bb8a088c5f53ceff12fde902dc008933cf0c4203cc672c47b5f79d73262dd"),
        (_SIMPLE, "1fe1c8f5a19d0dc40e41bab94278f45f66f3dc415a978bd29855a23440610fc6"),
    ),
    "mcd1": (
        (_MCD, "fd07e26682406f7c305d6a19c86af09e5f280683ca1258f25a7889a6aaa5cc9f"),
        (_MCD, "0c8ba1e5d89582005dd844026bd0f4ec553972c5bed102746eb53d6671b7b685"),
    ),
    "mcd2": (
        (_MCD, "f5ddc6fcb146720fd29fbee237ca91616bdf076883a5d6b1fc0cfb0e6c0ac1db"),
        (_MCD, "f91bf0e8135a78fe60bc9f77a6230a6b5e05ba66373ed8a53cf7e87b27f11ab0"),
    ),
    "mcd3": (
        (_MCD, "a5c4fdd42725255694121661cfb47e0edd6946595da37d176fcff2bf1bae6819"),
        (_MCD, "044b9f1a2b465d6df9cdca1410455d8b1d532ad2643e2493c177eaa458dfa3c0"),
    ),
}

_PRIMITIVES = ("walk", "look", "run", "jump")
_ACTIONS = (*(f"I_{word.upper()}" for word in _PRIMITIVES), "I_TURN_LEFT", "I_TURN_RIGHT")
_WORDS = "after and around jump left look opposite right run thrice turn twice walk"
_TIMES = {"": 1, " twice": 2, " thrice": 3}
GROUPS = ("single", "and", "after")
_MOST_HELD_OUT = 4_000  # val and iid together; the smallest training set has 8,365 lines


class Command(NamedTuple):
    """A command and its actions, in words."""

    words: tuple[str, ...]
    actions: tuple[str, ...]

    def has(self, phrase: str) -> bool:
        """Whether the words of `phrase` stand next to each other in the command."""
        return f" {phrase} " in f" {' '.join(self.words)} "

    @property
    def group(self) -> int:
        """Index into `GROUPS`: the conjunction of the command."""
        return 1 if "and" in self.words else 2 if "after" in self.words else 0


class Rule(NamedTuple):
    """A split by phrases.

    Attributes:
        unseen: A command with one of them is not in train, except the first of them by itself where it is repeated.
        tested: A command with one of them is in test, except that first one by itself.
        dropped: Commands with this phrase are in neither.
        repeats: How often train has the first unseen phrase by itself.
    """

    unseen: tuple[str, ...]
    tested: tuple[str, ...]
    dropped: str | None = None
    repeats: int = 0


def _template(direction: str, *verbs: str) -> Rule:
    unseen = tuple(f"{verb} {direction}" for verb in verbs)
    return Rule(unseen, unseen, f"turn {direction}")


def _filler(number: int) -> Rule:
    """`number` of the verbs look, walk and run are seen with "around right"; jump is tested."""
    unseen = ("jump", "run", "walk", "look")[: 4 - number]
    return _template("around right", *unseen)._replace(tested=("jump around right",))


RULES = {
    "addprim_jump": Rule(("jump",), ("jump",), repeats=1_467),
    "addprim_turn_left": Rule(("turn left",), ("turn left",), repeats=2_189),
    "template_around_right": _template("around right", *_PRIMITIVES),
    "template_opposite_right": _template("opposite right", *_PRIMITIVES),
    "template_right": _template("right", *_PRIMITIVES),
    "template_jump_around_right": _template("around right", "jump"),
    **{f"filler_num{number}": _filler(number) for number in range(4)},
}
_CUTOFFS = {f"cutoff_{n}": n for n in (22, 24, 25, 26, 27, 28, 30, 32, 33, 36, 40)}
LENGTHS = {"length": 22, **_CUTOFFS}  # most actions of a training command


def _phrases() -> Iterator[tuple[str, list[str]]]:
    """The 34 phrases without a number of times, and their actions."""
    actions = {word: [f"I_{word.upper()}"] for word in _PRIMITIVES}
    yield from actions.items()
    for verb, own in {**actions, "turn": []}.items():
        for direction in ("left", "right"):
            turn = [f"I_TURN_{direction.upper()}"]
            yield f"{verb} {direction}", turn + own
            yield f"{verb} opposite {direction}", turn * 2 + own
            yield f"{verb} around {direction}", (turn + own) * 4


@functools.cache
def commands() -> tuple[Command, ...]:
    """All 20,910 commands of the grammar.

    A phrase u is a verb, alone or with a direction; s is u, "u twice" or "u thrice" (102); a command is s, "s1 and s2"
    (the actions of s1, then those of s2) or "s1 after s2" (the actions of s2, then those of s1).
    """
    sentences = [
        (f"{phrase}{times}".split(), actions * number)
        for phrase, actions in _phrases()
        for times, number in _TIMES.items()
    ]
    found = [Command(tuple(words), tuple(actions)) for words, actions in sentences]
    for first, one in sentences:
        for second, two in sentences:
            found.append(Command((*first, "and", *second), (*one, *two)))
            found.append(Command((*first, "after", *second), (*two, *one)))
    return tuple(found)


def by_rule(split: str, stage: str) -> list[Command]:
    """The published "train" or "test" lines of a split that a rule gives, in the order of the grammar."""
    if split in LENGTHS:
        return [c for c in commands() if (len(c.actions) <= LENGTHS[split]) == (stage == "train")]
    unseen, tested, dropped, repeats = RULES[split]
    kept = [c for c in commands() if dropped is None or not c.has(dropped)]
    alone = next((c for c in kept if repeats and " ".join(c.words) == unseen[0]), None)
    if stage == "test":
        return [c for c in kept if c is not alone and any(map(c.has, tested))]
    seen = [c for c in kept if not any(map(c.has, unseen))]
    return seen + [alone] * repeats if alone else seen


def parse(text: str, path: Path) -> list[Command]:
    """The lines `IN: <command> OUT: <actions>` of a file.

    Raises:
        ValueError: A line is not of this form or not a pair of the grammar; the message has the file and the line.
    """
    known = {f"IN: {' '.join(c.words)} OUT: {' '.join(c.actions)}": c for c in commands()}
    found = []
    for row, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        if line not in known:
            raise ValueError(
                f"{path}, line {row}: expected 'IN: <command> OUT: <actions>' with a command of SCAN and its actions, "
                f"found {line[:80]!r}; the file is damaged, delete it and fetch it again."
            )
        found.append(known[line])
    return found


class SCAN(SequencePairDataModule):
    """SCAN: "jump twice and walk left" to "I_JUMP I_JUMP I_TURN_LEFT I_WALK" (Lake & Baroni 2018, arXiv:1711.00350).

    | split | train | test (lines) |
    |---|---|---|
    | simple | 80 % at random | the rest (16,728 / 4,182) |
    | length | at most 22 actions | 24 to 48 (16,990 / 3,920) |
    | addprim_jump | no jump, and "jump" 1,467 times | jump in a longer command (14,670 / 7,706) |
    | addprim_turn_left | no "turn left", and "turn left" 2,189 times | it in a longer one (21,890 / 1,208) |
    | template_around_right | no verb with "around right" | some verb with it (15,225 / 4,476) |
    | template_opposite_right, template_right | likewise | likewise (15,225 / 4,476) |
    | template_jump_around_right | no "jump around right" | "jump around right" (18,528 / 1,173) |
    | filler_num0 ... filler_num3 | the first 0 to 3 of look, walk, run with "around right" | the same 1,173 |
    | mcd1, mcd2, mcd3 | most different compounds, same atoms (Keysers et al. 2020) | (8,365 / 1,045 each) |
    | cutoff_22 ... cutoff_40 | 90 % of those with at most so many actions (Csordas et al. 2021) | the longer ones |

    Commands with "turn" in the tested template are on neither side of the template and filler splits (Loula et al.
    2018), as published. All but simple and mcd are made from the grammar, line for line the published sets; these
    four have files, `tasks_{train,test}_<split>.txt`, plain or `.gz` (simple: BSD, Facebook; mcd: CC BY 4.0, Google).
    The published development sets of mcd are not used: they are out of distribution.

    Stages: train, val, test (the published one) and, for all splits but simple, `iid`: in-distribution commands that
    are tested in the same run. val and iid are drawn from the published training lines with the seed, each line at
    most once and never the repeated line of addprim. With `held_out=True`, train leaves them out. With
    `held_out=False`, train has every published training line, as in Lake & Baroni, so that val and iid measure how
    well training commands are known, not generalization. For the cutoffs, iid is the 10 % of the commands within the
    cutoff that train never has, whatever `held_out` and `iid_size`. For simple the test set itself is in distribution.

    Args:
        split: One of `splits`.
        data_dir: The folder with the files of simple and mcd. None: `$ALGORNN_DATA/scan`, then the user cache, then a
            download (4 MB for simple, 1.7 MB for an mcd) to it.
        batch_size: Examples per batch and process.
        seed: Seed of the order of training and of the draw of val and iid.
        held_out: Whether train leaves out val and iid.
        val_size: Number of val commands.
        iid_size: Number of iid commands.

    Raises:
        TypeError: A number that is not whole, or a flag that is neither True nor False.
        ValueError: Unknown split, a size below 1, or more than 4,000 commands in val and iid together.

    Attributes:
        groups: The command's conjunction: "single", "and" or "after".
    """

    benchmark = "scan"
    splits = ("simple", *LENGTHS, *RULES, "mcd1", "mcd2", "mcd3")
    groups = GROUPS
    vocabulary = (*SPECIAL, *_WORDS.split())
    outputs = (*SPECIAL, *_ACTIONS)

    def __init__(
        self,
        split: str = "simple",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        held_out: bool = True,
        val_size: int = 500,
        iid_size: int = 1_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(val_size=val_size, iid_size=iid_size)
        check_flags(held_out=held_out)
        if val_size + iid_size > _MOST_HELD_OUT:
            raise ValueError(
                f"val_size and iid_size are drawn from the training lines, expected at most {_MOST_HELD_OUT} together, "
                f"not {val_size + iid_size}; choose smaller ones."
            )
        self.held_out, self.val_size, self.iid_size = held_out, val_size, iid_size
        self.further, self.ood = ((), ()) if split == "simple" else (("iid",), ("test",))
        self._parts: dict[str, list[Command]] = {}

    def prepare_data(self) -> None:
        """Download the files of simple and mcd to the user cache if they are at hand nowhere."""
        if self.split in FILES:
            for stage in ("train", "test"):
                self._file(stage)

    def dataset_of(self, stage: str) -> PairDataset:
        """Make or read the commands of a stage."""
        if stage == "test":
            return self._pairs(self.published("test"))
        if not self._parts:
            self._parts = self._divided(self.published("train"))
        return self._pairs(self._parts[stage])

    def published(self, stage: str) -> list[Command]:
        """The published lines of "train" or "test", repeats included: for the cutoffs, all commands within them.

        Raises:
            FileNotFoundError: A file is nowhere.
            ValueError: A file is not the published one.
        """
        if self.split not in FILES:
            return by_rule(self.split, stage)
        path = self._file(stage)
        text = read_text(path)
        found = parse(text, path)
        check_sha256(path, text, FILES[self.split][stage == "test"][1])
        return found

    def _file(self, stage: str) -> Path:
        folder, sha256 = FILES[self.split][stage == "test"]
        name = f"tasks_{stage}_{self.split}.txt"
        return obtain(self.benchmark, name, folder + name, sha256, self.data_dir)

    def _divided(self, lines: list[Command]) -> dict[str, list[Command]]:
        """The stages that are drawn from the training lines, each in the order of the lines."""
        rule = RULES.get(self.split)
        different = len(lines) - rule.repeats if rule else len(lines)  # the repeated ones are the last
        order = generator(self.benchmark, self.split, "held out", self.seed).permutation(different).tolist()
        iid = different // 10 if self.split in _CUTOFFS else self.iid_size if self.further else 0
        val = order[iid : iid + self.val_size]
        always = order[:iid] if self.split in _CUTOFFS else []
        absent = set(order[: iid + self.val_size] if self.held_out else always)
        return {
            "train": [line for i, line in enumerate(lines) if i not in absent],
            "val": [lines[i] for i in sorted(val)],
            "iid": [lines[i] for i in sorted(order[:iid])],
        }

    def _pairs(self, lines: Sequence[Command]) -> PairDataset:
        rows = ((c.words, c.actions, c.group) for c in lines)
        return PairDataset(self.vocabulary, self.outputs, self.groups, rows)
