"""Training beside stock SVI: the mean move of every parameter under plain gradient descent.

Both start from one set of weights and take steps of ``torch.optim.SGD``, whose move is the gradient
times a known number: minibatches and other estimators of the same bound then move alike in the mean
(Adam's step knows the noise as well).
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

import pyro_vae as pv
from benchmarks.gallery.stock import Disagreement, networks
from benchmarks.gallery.subject import Subject

LR = 1e-3
SEEDS, PILOT = range(12), range(12, 15)  # draws to compare, those that choose the directions
# |t| with 11 degrees of freedom, where stock has no noise: a correct mean fails once in 150,000.
T = 8.0
_CLOSE = 0.02  # relative: float32 and the curvature between two steps

Moves = dict[str, Tensor]
Made = Callable[[], tuple[Subject, pv.Program]]


def require_equal(
    made: Made, ours: Callable[[], Any] | None, theirs: Callable[[], Any], size: int
) -> None:
    """Train in both ways, again and again, and require one mean loss and one mean move.

    Arguments:
        made: Makes the subject anew, with equal weights, and the program on the same parameters.
        ours: Makes the objective of ``fit``; None is its default.
        theirs: Makes that of stock SVI.
        size: Rows of a minibatch under ``fit``.

    Raises:
        Disagreement: Names the parameter, both moves and t.
    """
    pilot = [_stock(made, theirs, seed) for seed in PILOT]
    stock = [_stock(made, theirs, seed) for seed in SEEDS]
    found = [_fit(made, ours, size, seed) for seed in SEEDS]
    named = _matched(made, stock[0])
    for name, name_here in named.items():
        a = torch.stack([move[name_here].flatten() for move in found])
        b = torch.stack([move[name].flatten() for move in stock])
        toward = torch.stack([move[name].flatten() for move in pilot]).mean(0)
        for direction in (torch.ones_like(toward), toward):
            length = direction.norm()
            if length > 0:
                _compare(name, a @ direction / length, b @ direction / length)


def _compare(name: str, ours: Tensor, theirs: Tensor) -> None:
    gap = (ours.mean() - theirs.mean()).abs()
    noise = ((ours.var() + theirs.var()) / len(ours)).sqrt()
    close = _CLOSE * theirs.mean().abs() + 1e-6
    if not (gap <= close or gap < T * noise):
        raise Disagreement(
            f"training: {name} moves by {ours.mean():.4g}, under stock SVI by {theirs.mean():.4g} "
            f"(t = {gap / noise:.1f})"
        )


def _stock(made: Made, objective: Callable[[], Any], seed: int) -> Moves:
    subject, _ = made()
    _training(subject)
    args, kwargs = subject.arguments
    rate = LR / subject.rows
    svi = SVI(subject.model, subject.guide, pyro.optim.SGD({"lr": rate}), objective())
    store = pyro.get_param_store()
    before = _copied(store.get_state()["params"])
    pyro.set_rng_seed(100 + seed)
    loss = svi.step(*args, **kwargs)
    moves = _differences(before, store.get_state()["params"])
    return {**moves, "the loss": torch.tensor(float(loss) / subject.rows).double()}


def _fit(made: Made, objective: Callable[[], Any] | None, size: int, seed: int) -> Moves:
    subject, program = made()
    program.read(program.adapt(subject.data))
    before = _copied(dict(program.named_parameters()))
    run = pv.fit(
        program,
        subject.data,
        objective=None if objective is None else objective(),
        epochs=1,
        batch_size=size,
        lr=LR,
        optimizer=torch.optim.SGD,
        seed=100 + seed,
        progress=False,
        compile=False,
    )
    moves = _differences(before, dict(program.named_parameters()))
    # Counted, for a last batch of one row is joined to the one before.
    moves = {name: move / run.steps for name, move in moves.items()}
    return {**moves, "the loss": torch.tensor(float(run.history["loss"][-1])).double()}


def _training(subject: Subject) -> None:
    for network in networks(subject):
        network.train()


def _copied(values: Mapping[str, Tensor]) -> Moves:
    return {name: value.detach().clone() for name, value in values.items()}


def _differences(before: Moves, after: Mapping[str, Tensor]) -> Moves:
    return {
        name: (after[name].detach() - value).double()
        for name, value in before.items()
        if name in after
    }


def _matched(made: Made, stock: Moves) -> dict[str, str]:
    """Return our names by the store's: the same tensor, else equal shapes and the same end.

    Raises:
        Disagreement: A parameter that stock SVI moves is none of ours.
    """
    subject, program = made()
    program.read(program.adapt(subject.data))
    named = dict(program.named_parameters())
    free = dict(named)
    store = pyro.get_param_store().get_state()["params"]
    found: dict[str, str] = {"the loss": "the loss"}
    for name, value in store.items():  # one tensor may bear two names
        same = [other for other in named if named[other].data_ptr() == value.data_ptr()]
        if same:
            found[name] = same[0]
            free.pop(same[0], None)
    for name, move in stock.items():
        if name in found:
            continue
        fitting = [other for other in free if free[other].shape == move.shape]
        if not fitting:
            if bool(move.any()):
                raise Disagreement(f"training: {name} is no parameter of the program")
            continue
        found[name] = max(fitting, key=lambda other: _common_end(_plain(name), _plain(other)))
        del free[found[name]]
    return found


def _plain(name: str) -> str:
    for mark in ("_unconstrained", "values.", "parts."):
        name = name.replace(mark, "")
    return "".join(c for c in name if c.isalnum())


def _common_end(one: str, other: str) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
