"""Pyro's own losses as objectives, and what a user may pass as an objective."""

import difflib
import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.elbo import ELBO
from pyro_vae.inference.objectives.objective import Objective, TermsObjective, Update
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import Message, StatedNames, WantParameters, sample_sites
from pyro_vae.program.looks.failures import users_line
from pyro_vae.program.program import Program


class StockObjective:
    """Any ``pyro.infer.ELBO`` as an objective: one update, its loss divided by the data it covers.

    Losses without ``differentiable_loss`` (``RenyiELBO``, ``TraceGraph_ELBO``,
    ``ReweightedWakeSleep``) are taken through ``loss_and_grads``: the gradients they leave are
    handed on by autograd.
    """

    def __init__(self, elbo: pyro.infer.ELBO) -> None:
        self.elbo = elbo
        self._elbo: Any = elbo  # the base class of Pyro declares neither way to its loss

    def updates(self, program: Program) -> list[Update]:
        """Return the one update, over all parameters of the program."""
        parameters = tuple(program.parameters())
        if hasattr(type(self.elbo), "differentiable_loss"):
            return [Update(self._loss, parameters)]
        return [Update(lambda joint: self._loss_from_grads(joint, program), parameters)]

    def _loss(self, joint: Joint) -> Tensor:
        with self._nesting_of(joint), self._told_of_enumeration(joint):
            model = _InAllPlates()(joint.model)
            loss = self._elbo.differentiable_loss(model, joint.guide, *joint.args, **joint.kwargs)
        return loss / joint.size

    @contextmanager
    def _nesting_of(self, joint: Joint) -> Iterator[None]:
        """Tell Pyro how many plates there are: it would find out by a run that draws noise.

        A run that is resumed, or that tries a graph, would take other numbers from then on.
        """
        guessed = self._elbo.max_plate_nesting
        wide = self.elbo.vectorize_particles and self.elbo.num_particles > 1
        if guessed == math.inf:
            self._elbo.max_plate_nesting = joint.num_plates + int(wide)
        try:
            yield
        finally:
            self._elbo.max_plate_nesting = guessed

    @contextmanager
    def _told_of_enumeration(self, joint: Joint) -> Iterator[None]:
        """Say in a sentence where a program that runs on draws fails on enumerated values.

        Raises:
            ProgramError: Names the sites, and the user's line.
        """
        try:
            yield
        except (RuntimeError, ValueError, IndexError) as error:
            enumerates = isinstance(self.elbo, pyro.infer.TraceEnum_ELBO)
            if not enumerates or "Trace Shapes:" not in str(error):
                raise
            reason = f"{str(error).splitlines()[0]}{users_line(error)}"
            told = _not_so_enumerated(joint, self.elbo)
            raise ProgramError(told.format(reason=reason)) from None

    def _loss_from_grads(self, joint: Joint, program: Program) -> Tensor:
        kept = {parameter: parameter.grad for parameter in program.parameters()}
        for parameter in kept:
            parameter.grad = None
        with WantParameters(), self._nesting_of(joint), StatedNames() as stated:
            model = _OneStated()(_InAllPlates()(joint.model))
            value = self._elbo.loss_and_grads(model, joint.guide, *joint.args, **joint.kwargs)
        late = [p for p in program.own.with_made() if p not in kept and p.grad is not None]
        parameters = [*kept, *late]  # which this run has made
        # Stock SVI moves what is stated and not reached by its moments, and nothing else.
        grads = [
            p.grad / joint.size
            if p.grad is not None
            else (torch.zeros_like(p) if id(p) in stated.found else None)
            for p in parameters
        ]
        for parameter in parameters:
            parameter.grad = kept.get(parameter)
        # Pyro's wake-sleep answers a pair of losses, the model's and the guide's.
        total = sum(value) if isinstance(value, tuple) else value
        constant = parameters[0].new_tensor(float(total) / joint.size)
        return _Handout.apply(constant, grads, *parameters)


class _OneStated(Messenger):
    """State a value before a model runs: ``RenyiELBO`` takes no gradient where none is stated.

    Networks need no ``pyro.module`` here. It answers the statement itself: nothing is kept by it.
    """

    def __enter__(self) -> Any:
        entered = super().__enter__()
        pyro.param("pyro_vae.stated")
        return entered

    def _pyro_param(self, msg: Message) -> None:
        if msg["name"] == "pyro_vae.stated":
            msg["value"], msg["done"] = torch.zeros(()), True


def _not_so_enumerated(joint: Joint, elbo: pyro.infer.ELBO) -> str:
    """Return what to say, with a place for the reason, where enumerated values are not taken."""
    sides = [dict(sample_sites(trace)) for trace in joint.traces()]
    marked = [n for sites in sides for n, s in sites.items() if s["infer"].get("enumerate")]
    named = ", ".join(map(repr, dict.fromkeys(marked))) or "discrete latents"
    cure = (
        f"give it max_plate_nesting={joint.num_plates}"
        if elbo.max_plate_nesting < joint.num_plates
        else "broadcast what depends on them (torch.broadcast_tensors before torch.cat, "
        "pyro.ops.indexing.Vindex for an index)"
    )
    if not any(name in sides[1] for name in marked):
        cure += f", or leave objective out: the default sums over {named} in its own way"
    return (
        f"objective: {type(elbo).__name__} has the values of {named} in a new dimension on the "
        f"left, and the program does not run so: {{reason}}; {cure}"
    )


class _InAllPlates(Messenger):
    """Give what is observed the dimensions of all plates around it, as Pyro's scores ask."""

    def _pyro_sample(self, msg: Message) -> None:
        if site_is_subsample(msg) or not msg["is_observed"]:
            return
        dims = [frame.dim for frame in msg["cond_indep_stack"] if frame.dim is not None]
        short = -min(dims, default=0) - len(msg["fn"].batch_shape)
        if short > 0:
            msg["fn"] = msg["fn"].expand((1,) * short + msg["fn"].batch_shape)


class _Handout(torch.autograd.Function):
    """A scalar whose backward hands out gradients computed elsewhere."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (None, None, *(None if g is None else upstream * g for g in ctx.grads))


def _without_jit(elbo: pyro.infer.ELBO) -> pyro.infer.ELBO:
    """Return a loss of the class that one of Pyro's Jit classes speeds up: ``compile=`` does that.

    A Jit class keeps a trace by ``torch.jit`` of its first batch's functions.
    """
    kind = type(elbo)
    if kind.__module__.partition(".")[0] != "pyro" or not kind.__name__.startswith("Jit"):
        return elbo
    plain = kind.__mro__[1]
    names = inspect.signature(pyro.infer.ELBO.__init__).parameters
    kept = {name: getattr(elbo, name) for name in names if hasattr(elbo, name)}
    return plain(**kept)


def as_objective(objective: Any) -> Objective:
    """Return an objective for None (the ELBO), an objective, or any ``pyro.infer.ELBO``.

    Raises:
        ConfigError: Something else.
    """
    if objective is None:
        return ELBO()
    if hasattr(objective, "updates") and not isinstance(objective, type):
        return objective
    if isinstance(objective, pyro.infer.ELBO):
        return StockObjective(_without_jit(objective))
    given = repr(objective)
    if isinstance(objective, type):
        given = f"the class {objective.__name__}"
    raise ConfigError(
        f"objective: got {given}, expected an instance of an objective, as {_written(objective)}, "
        "or of a pyro.infer.ELBO, or an object with .updates(program)"
    )


# What other libraries call an objective, or what it is known by.
_ALSO_CALLED = {
    "mmd": "wae",
    "mmdvae": "wae",
    "infovae": "wae",
    "wassersteinautoencoder": "wae",
    "adversarialautoencoder": "aae",
    "renyielbo": "renyi",
    "vrbound": "renyi",
    "rws": "reweightedwakesleep",
    "wakesleep": "reweightedwakesleep",
    "reinforce": "nvil",
    "score": "nvil",
    "vae": "elbo",
    "svi": "elbo",
    "traceelbo": "elbo",
    "default": "elbo",
    "tracemeanfieldelbo": "analyticelbo",
}


def _written(given: Any) -> str:
    """Return how the objective that somebody may mean by its name, or the nearest, is written."""
    public = vars(sys.modules[__name__.partition(".")[0]])
    kinds = {
        each.__name__.lower(): each
        for each in map(public.get, public["__all__"])
        if isinstance(each, type) and hasattr(each, "updates") and each not in _NO_OBJECTIVES
    }
    name = given.__name__ if isinstance(given, type) else given
    asked = name.lower().replace("_", "").replace("-", "") if isinstance(name, str) else ""
    if isinstance(given, type) and issubclass(given, pyro.infer.ELBO) and asked not in kinds:
        return f"{name}()"  # of Pyro, or the user's own
    near = difflib.get_close_matches(_ALSO_CALLED.get(asked, asked), kinds, n=1)
    if not near:
        return "pv.IWAE(5)"
    first = [*inspect.signature(kinds[near[0]]).parameters][:1]
    return f"pv.{kinds[near[0]].__name__}({''.join(first)})"


_NO_OBJECTIVES = (Objective, TermsObjective)
