"""Plain values of each kind go on with a run, or are named; what was chosen anew stays."""

import copy
import json
import math
import random
import time
from array import array
from collections import deque, namedtuple
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from programs import Coded

import pyro_vae as pv
from pyro_vae.program.program import Program as Read
from pyro_vae.storage.moved_state import MovedState

DATA = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


class Encoder(torch.nn.Linear):
    steps = 0  # of all of them

    def __init__(self, how):
        super().__init__(6, 4)
        self.how, self.drop = how, torch.nn.Dropout(0.0)

    def forward(self, x):
        return super().forward(self.drop(self.how(self, x)))


class Study(Coded):
    """A program whose encoder calls a function."""

    def __init__(self, how):
        torch.manual_seed(0)
        self.encode, self.decode = Encoder(how), torch.nn.Linear(2, 6)


def fit(study, epochs, batch_size=16, **options):
    options |= {"epochs": epochs, "batch_size": batch_size, "progress": False, "device": "cpu"}
    return pv.fit(study, DATA, compile=False, **options).history["loss"]


class Stage(Enum):
    EARLY, MIDDLE, LATE = range(3)


Pair = namedtuple("Pair", "mean count")


@dataclass(slots=True)
class Slots:
    count: int = 0


# How values of each kind begin, how a step moves them, and the number that the next one reads.
KINDS = {
    "pair": ((0.0, 0), lambda v, x: (v[0] + x.mean().item(), v[1] + 1), sum),
    "named": (Pair(0.0, 0), lambda v, x: v._replace(count=v.count + 1), lambda v: v.count),
    "sums": ({"x": torch.zeros(6)}, lambda v, x: {"x": v["x"] + x.mean(0)}, lambda v: v["x"]),
    "nested": ({0: {"n": 0.0}}, lambda v, x: {0: {"n": v[0]["n"] + 1}}, lambda v: v[0]["n"]),
    "history": ([], lambda v, x: [*v, *[float(len(v))] * 20], sum),
    "last": (deque(maxlen=3), lambda v, x: v.append(len(v) + sum(v)) or v, sum),
    "seen": (set(), lambda v, x: v.add(len(v)) or v, len),
    "stage": (Stage.EARLY, lambda v, x: Stage(min(2, v.value + 1)), lambda v: v.value),
    "mask": (np.zeros(6, bool), lambda v, x: np.arange(6) <= v.sum(), np.sum),
    "flags": (torch.zeros(6, dtype=torch.bool), lambda v, x: v | (x[0] > 1), lambda v: v * 1.0),
    "large": (torch.zeros(70_000), lambda v, x: v + 1, lambda v: v[:6]),
    "waves": (torch.zeros(6) * 1j, lambda v, x: v + 1j * x.mean(0), lambda v: v.imag),
    "double": (np.float64(0.5), lambda v, x: v / 3, lambda v: isinstance(v, np.float64) + v),
    "best": (math.inf, lambda v, x: min(v, 8.0) / 2, lambda v: min(v, 9.0)),
    "mixed": ({"f": torch.tanh, "n": 0}, lambda v, x: v | {"n": v["n"] + 1}, lambda v: v["n"]),
    "word": ("a", lambda v, x: v + "b", len),
}


def moved_by_steps(*names):
    """Return a function that keeps values of some kinds, and what it holds them in."""
    kept = SimpleNamespace(**{name: copy.deepcopy(KINDS[name][0]) for name in names})

    def keeping(net, x):
        if net.training:
            for name in names:
                kept.__dict__[name] = KINDS[name][1](kept.__dict__[name], x)
            if "word" in names:
                kept.word = kept.__dict__["word"]
        read = (KINDS[name][2](kept.__dict__[name]) for name in names)
        return x + sum(float(torch.as_tensor(each).sum()) for each in read) / 1000

    return keeping, kept


def test_values_of_each_kind_go_on(tmp_path, recwarn):
    """Most of them had begun anew, without a word."""
    how, whole = moved_by_steps(*KINDS)
    losses = fit(Study(how), 4)
    for epochs in (2, 4):
        how, kept = moved_by_steps(*KINDS)
        found = fit(Study(how), epochs, out=tmp_path, resume=True)
    assert not recwarn
    assert repr(kept) == repr(whole)
    assert np.array_equal(found, losses)


def at_every_place():
    """Return a function that keeps a count at each place that Python has."""
    slots, rows, lazy = Slots(), torch.zeros(2, 6), SimpleNamespace(one=None, two=None, zeros=None)
    row, bag, table = rows[1], {"sums": torch.zeros(6)}, np.zeros((2, 6))
    sums, line = bag["sums"], table[1]

    def keeping(net, x, calls=[0]):  # noqa: B006
        if net.training:
            slots.count, keeping.count, calls[0] = slots.count + 1, keeping.count + 1, calls[0] + 1
            Encoder.steps += 1
            net.own = net.own + 1 if hasattr(net, "own") else 1
            net.drop.p = min(0.8, net.drop.p + 0.2)
            # A view of the rows, a tensor that a dict holds too, and a view of a table.
            row.add_(x.mean(0)), sums.add_(x.mean(0)), np.add(line, 1.0, out=line)
            if lazy.one is None:
                lazy.one = lazy.two = torch.zeros(6)
                lazy.zeros = torch.zeros(6)
            lazy.one.add_(calls[0] > 2)
            lazy.before = x * net.weight.mean()  # has a gradient
            keeping.counts = (
                *(slots.count, keeping.count, calls[0], Encoder.steps, net.own, net.drop.p),
                *(
                    rows.sum().item(),
                    (lazy.two - lazy.zeros).sum().item(),
                    *(lazy.before.sum().item(), bag["sums"].sum().item(), table.sum()),
                ),
            )
        return x + sum(keeping.counts) / 1000

    keeping.count, Encoder.steps, keeping.counts = 0, 0, ()
    keeping.__defaults__ = ([0],)
    return keeping


def test_values_at_each_place_go_on(tmp_path, recwarn):
    whole = at_every_place()
    losses = fit(Study(whole), 4)
    for epochs in (2, 4):
        how = at_every_place()
        found = fit(Study(how), epochs, out=tmp_path, resume=True)
    assert not recwarn
    assert how.counts == whole.counts
    assert np.array_equal(found, losses)


def resumed(began, moved, begins):
    """Return what stands in a program that goes on, whose run has moved a value."""
    states = []
    for value in (began, begins):
        kept = SimpleNamespace(value=copy.deepcopy(value))

        def how(net, x, kept=kept):
            return x if kept.value is None else x * 1

        states.append((kept, MovedState(Read.of(Study(how)))))
    (run, before), (kept, after) = states
    run.value = moved
    tensors, told = before.take()
    after.put_back(tensors, json.loads(json.dumps(told)), "file")
    return kept.value


@pytest.mark.parametrize(
    ("began", "moved", "why"),
    [
        (random.Random(0), random.Random(1), "a generator.*a file holds no such Random"),
        (np.random.PCG64(0), np.random.PCG64(1), "a generator.*a file holds no such PCG64"),
        (1, 2**70, "an int.*a file holds no such int"),
        (Fraction(1, 2), Fraction(1, 4), "a fractions.Fraction.*a file holds no such Fraction"),
        (array("d", [0.0]), array("d", [1.0]), "an array.*a file holds no such array"),
        (None, Decimal(1), "a decimal.Decimal.*a file holds no such Decimal"),
        (None, bytearray(1), "a bytearray.*a file holds no such bytearray"),
        (date(2000, 1, 1), date(2000, 1, 2), "a datetime.date.*a file holds no such date"),
        ("a", "b" * 2000, "a str.*a file holds no such str"),
        ([], [0.0] * 5000, r"a list of length 5000.*more than 4,096 entries"),
        ([[]], [[0.0] * 4000] * 2, r"a list of length 2.*more than 4,096 entries"),
        (None, torch.zeros(2**24 + 1, dtype=torch.bool), "a tensor.*more than 16,777,216 numbers"),
        (None, np.ma.masked_array([1.0, 2.0], [True, False]), "holds no MaskedArray of float64"),
        (None, deque([1.0]), "a NoneType stands in its place"),
        (None, Stage.LATE, "Stage.LATE.*a NoneType stands in its place"),
        ("a", "b", "'b'.*a str stands in its place"),  # no code writes that word
    ],
)
def test_what_is_not_kept_is_named_with_the_reason(began, moved, why):
    with pytest.warns(UserWarning, match=why):
        assert type(resumed(began, moved, began)) is type(began)


@pytest.mark.parametrize(
    ("began", "moved", "begins", "found"),
    [
        (0.1, 0.5, 0.9, 0.9),
        (math.inf, 0.5, 0.9, 0.9),
        (Stage.EARLY, Stage.MIDDLE, Stage.LATE, Stage.LATE),
        ({"rate": 0.1}, {"rate": 0.5}, {"rate": 0.9}, {"rate": 0.9}),
        (torch.zeros(3), torch.full((3,), 5.0), torch.ones(3), torch.ones(3)),
        # They may be drawn, without a seed.
        (torch.arange(3.0), torch.full((3,), 5.0), torch.arange(3.0) / 2, torch.full((3,), 5.0)),
    ],
)
def test_a_start_that_was_changed_is_told_of(began, moved, begins, found):
    """It had been overwritten, without a word, by what the run had moved."""
    with pytest.warns(UserWarning, match="value .*which the run has moved"):
        assert str(resumed(began, moved, begins)) == str(found)


@pytest.mark.parametrize(
    ("began", "chosen", "found"), [(0.0, None, 8.0), (None, None, 8.0), (0.0, 50.0, 54.0)]
)
def test_what_an_interrupt_has_left_is_not_chosen(began, chosen, found, tmp_path, recwarn):
    """One object goes on: its count is that of the checkpoint again, but for one set by hand."""
    kept = SimpleNamespace(count=began, stop=6)

    def how(net, x):
        if net.training:
            kept.count = (kept.count or 0.0) + 1
            if kept.count == kept.stop:
                raise KeyboardInterrupt
        return x + (kept.count or 0.0) / 1000

    study = Study(how)
    with pytest.raises(KeyboardInterrupt):
        fit(study, 2, 4, out=tmp_path)
    kept.count, kept.stop = chosen or kept.count, None
    fit(study, 2, 4, out=tmp_path, resume=True)
    assert kept.count == found
    told = [str(each.message) for each in recwarn if "count = " in str(each.message)]
    assert ["this run 50" in text for text in told] == [True] * bool(chosen)


class Owner(Study):
    """A program with code, words and numbers in its attributes."""

    def __init__(self):
        super().__init__(lambda net, x: x)
        self.path, self.act, self.phase, self.count, self.hook = "data", torch.tanh, "a", 1, None
        self.table = [torch.tanh, 1.0]

    def guide(self, x):
        if self.phase == self.path or self.hook is not None:
            self.phase, self.later = "b", self.hook(x)
        super().guide(self.act(x) * self.count * self.table[1])


def listed(*items, kind="list"):
    return {"kind": kind, "of": kind, "keys": [], "items": list(items)}


OTHER = {"kind": "other"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("path", "/etc"), ("act", 1.0), ("act", "word"), ("hook", "word"), ("hook", OTHER)),
        *(("count", "word"), ("count", listed(1.0)), ("count", 2**80), ("count", {"kind": 3})),
        *(("table", listed(1.0, 1.0)), ("table", listed(OTHER, OTHER)), ("table", 1.0)),
        *(("guide", 1.0), ("stranger", 1.0), ("__class__", 1.0), ("_pyro_vae_program", 1.0)),
        *(("count", {"kind": "tensor"}), ("count", {"kind": "array", "tensor": [], "dtype": 1})),
        *(("hook", listed([])), ("hook", {"kind": "dict"}), ("hook", listed(listed(), kind="set"))),
        *(("hook", {"kind": "member", "name": 3}), ("hook", {"kind": "generator"})),
        *(("phase", 1.0), ("hook", {"kind": "float", "name": "1e400"}), ("hook", {"kind": "lost"})),
    ],
)
def test_a_hostile_file_sets_nothing_of_another_kind(name, value):
    """Code stays, words come where the program writes one, and numbers where numbers stand."""
    owner = Owner()
    state = MovedState(Read.of(owner))
    before, table = dict(vars(owner)), list(owner.table)
    saved = {"before": dict(state._before), "moved": {f"Owner.{name}": value}}
    with pytest.warns(UserWarning, match=f"Owner.{name} = .* is not kept"):
        state.put_back({}, saved | {"same": {f"Owner.{name}": "Owner.act"}}, "file")
    assert vars(owner) == before
    assert owner.table == table


def test_a_file_moves_no_code_from_place_to_place():
    owner = Owner()
    state = MovedState(Read.of(owner))
    moved = {"Owner.act": OTHER, "Owner.hook": 1.0, "Owner.later": 2.0, "Owner.phase": "c"}
    saved = {"before": dict(state._before), "moved": moved, "same": {"Owner.hook": "Owner.act"}}
    state.put_back({}, saved, "file")
    assert (owner.act, owner.hook, owner.later, owner.phase) == (torch.tanh, 1.0, 2.0, "c")


def test_neither_a_generator_of_the_system_nor_an_empty_variable_ends_a_run(tmp_path):
    """The first has no state, and says so by an error; the second has a name and no value."""
    system = random.SystemRandom()
    if tmp_path is None:
        later = None

    fit(Study(lambda net, x: x + 0 * system.random() if tmp_path else later), 1, out=tmp_path)


class Absent:
    """A proxy of what is not there, as a dead ``weakref.proxy``."""

    @property
    def __class__(self):
        raise ReferenceError

    def __repr__(self):
        raise ReferenceError


def test_values_that_answer_no_question_end_no_run(tmp_path):
    """Each ended a run with a raw error, and a list that holds itself took seconds a step."""
    itself = []
    itself.append(itself)
    held = (2**20000, "\udcff", {"\udcff": 1}, {Absent(), 1}, itself, Absent())
    start = time.process_time()
    fit(Study(lambda net, x: x * len(held) / 6), 1, out=tmp_path)
    assert time.process_time() - start < 2


def test_one_number_of_a_large_array_goes_on():
    """It was not among those that were looked at."""
    began = np.zeros((300, 301))
    moved = began.copy()
    moved[3, 5] = 1.0
    assert np.array_equal(resumed(began, moved, began), moved)


def test_objects_of_one_class_keep_their_names(tmp_path, recwarn):
    """One that a call makes is met before the one that was there: each took the other's number."""

    class Count:
        def __init__(self, start):
            self.value = start

    def counting():
        made, there = [None], Count(10.0)

        def how(net, x):
            if net.training:
                made[0] = made[0] or Count(0.0)
                made[0].value, there.value = made[0].value + 1, there.value + 100
            return x + there.value / 1000

        return how, there

    for epochs in (2, 4):
        how, there = counting()
        fit(Study(how), epochs, out=tmp_path, resume=True)
    assert there.value == 410.0
    texts = [str(each.message) for each in recwarn]
    assert len(texts) == 1
    assert "Count.value' = 2.0, which the run has moved, is not kept" in texts[0]
