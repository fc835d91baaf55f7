"""Names that people look for and that are elsewhere, or are called something else here."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pyro.distributions
import pyro.infer.autoguide
import pyro.optim
import torch

from pyro_vae.errors import ProgramError

# What other libraries call a verb, or a part: what it is here.
_ALSO_CALLED = {
    **dict.fromkeys(("train", "SVI", "Trainer", "TrainingPipeline", "train_model"), "fit"),
    **dict.fromkeys(
        ("evaluate", "score", "test"), "log_likelihood (or elbo, diagnose, gaps: by what is asked)"
    ),
    "compare": "log_likelihood (of each, and their difference datum by datum)",
    **dict.fromkeys(
        ("nll", "log_prob", "marginal_likelihood", "iwae_bound", "get_nll"), "log_likelihood"
    ),
    **dict.fromkeys(
        ("sample", "simulate", "predict", "Predictive", "posterior_predictive"), "generate"
    ),
    **dict.fromkeys(("sample_posterior", "MCMC", "mcmc", "posterior"), "refine or pv.infer"),
    **dict.fromkeys(("NUTS", "nuts"), "HMC, the settings of pv.refine"),
    **dict.fromkeys(("embed", "transform", "get_latent_representation", "latents"), "encode"),
    **dict.fromkeys(("decode", "reconstruction"), "reconstruct or pv.generate"),
    **dict.fromkeys(("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "loss"), "ELBO"),
    **dict.fromkeys(("RenyiELBO", "VRBound"), "Renyi"),
    **dict.fromkeys(("BetaVAE", "beta_vae"), "models.VAE, with pv.fit(..., beta=)"),
    **dict.fromkeys(("CVAE", "cvae"), "models.ConditionalVAE"),
    **dict.fromkeys(("HVAE",), "models.HierarchicalVAE"),
    **dict.fromkeys(("VQ_VAE", "VQVAE2"), "models.VQVAE"),
    **dict.fromkeys(("IWAE_loss",), "IWAE"),
    **dict.fromkeys(("plot", "plotting", "viz"), "plots"),
    **dict.fromkeys(("load_model", "from_pretrained", "load_from_folder"), "load"),
    **dict.fromkeys(("save_model", "checkpoint"), "save"),
    **dict.fromkeys(("datasets", "load_data"), "data.load"),
    **dict.fromkeys(("beta_schedule", "annealing", "linear", "cosine"), "schedules"),
    # In a module of its own, where the name means another thing.
    **dict.fromkeys(("conditionals.Normal", "conditionals.MSE"), "conditionals.Gaussian"),
    **dict.fromkeys(("plots.loss", "plots.losses", "plots.history"), "plots.curves"),
    **dict.fromkeys(("plots.latent", "plots.latents", "plots.embedding"), "plots.latent_map"),
    **dict.fromkeys(("schedules.warmup", "schedules.linear_warmup"), "schedules.linear"),
    **dict.fromkeys(("schedules.cosine_annealing",), "schedules.cosine"),
}


_VERBS = {  # of the library, which a class of a peer has as methods
    *("fit", "elbo", "log_likelihood", "diagnose", "refine", "infer", "generate", "encode"),
    *("reconstruct", "interpolate", "impute", "classify", "save"),
}


# Where a program is asked, and not the library, for what is a method of a peer's model.
_OF_PROGRAMS = {"loss": "elbo (its negative is what pv.fit minimises)"}


def no_call(program: Any, *data: Any, **named: Any) -> NoReturn:
    """Answer for a call of a program, in the place of ``forward``.

    Raises:
        ProgramError: Names the functions of the library that are meant.
    """
    raise ProgramError(
        f"{type(program).__name__} is called as a function, and is none; write "
        "pv.reconstruct(program, x), pv.encode(program, x) or pv.elbo(program, x); its sides are "
        "program.model and program.guide"
    )


def missing(program: Any, name: str, of_parent: Callable[[str], Any]) -> Any:
    """Answer for an attribute that is not found, in the ``__getattr__`` of a program.

    Arguments:
        program: Of which it is asked.
        name: What is asked.
        of_parent: ``__getattr__`` of the class above.

    Raises:
        AttributeError: Names the function of the library that is meant; or is that of the class
            above, or of a property of this name that has failed.
    """
    try:
        return of_parent(name)
    except AttributeError:
        if hasattr(type(program), name):
            return object.__getattribute__(program, name)
        also = _OF_PROGRAMS.get(name, _ALSO_CALLED.get(name, ""))
        verb, _, rest = (name if name in _VERBS else also).partition(" ")
        if verb not in _VERBS:
            raise
    said = f"a program has no method {name!r}: write pv.{verb}(program, ...)"
    raise AttributeError(f"{said} {rest}".rstrip())


def _of_others(name: str) -> list[str]:
    """Return where torch or Pyro has a class of this name that goes with the library."""
    rooms: tuple[Any, ...] = (pyro.infer.autoguide, torch.optim, pyro.optim, pyro.distributions)
    found = [room.__name__ for room in rooms if isinstance(getattr(room, name, None), type)]
    for where in found[:1]:
        way = f", as pv.fit(..., optimizer={where}.{name})" if where == "torch.optim" else ""
        return [f"{where}.{name}{way}"]
    return []


def refuse(module: str, name: str, names: Iterable[str], inside: Mapping[str, Any]) -> NoReturn:
    """Say that a module has no such name, and which is meant.

    Arguments:
        module: What it is called.
        name: What was asked of it.
        names: Its public names.
        inside: Public modules in which the name may be, by what these are called.

    Raises:
        AttributeError: Always.
    """
    said = f"module {module!r} has no attribute {name!r}"
    if name.startswith("_"):
        raise AttributeError(said)
    own = _ALSO_CALLED.get(f"{module.rpartition('.')[2]}.{name}", _ALSO_CALLED.get(name))
    near = [f"pv.{own}"] if own else []
    library = __name__.partition(".")[0]
    near += [f"pv.{name}"] if module != library and name in sys.modules[library].__all__ else []
    near += [f"{where}.{name}" for where, each in inside.items() if name in each.__all__]
    near = near or _of_others(name)
    shown = {each.lower(): f"pv{module.removeprefix('pyro_vae')}.{each}" for each in names}
    near += [shown[each] for each in difflib.get_close_matches(name.lower(), shown, n=1)]
    raise AttributeError(f"{said}; did you mean {near[0]}?" if near else said)


class Answer:
    """What a verb answers: it says what it has where it is asked for something else.

    Its class may say where else to look: ``_elsewhere``, by name.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # which would take any name for one of its own

        def __getattr__(self, name: str) -> NoReturn:
            """Name what there is, where nothing of this name is.

            Raises:
                AttributeError: Always.
            """
            said = f"{type(self).__name__} has no attribute {name!r}"
            if name.startswith("_"):
                raise AttributeError(said)
            if name in self._elsewhere:
                raise AttributeError(f"{said}; did you mean {self._elsewhere[name]}?")
            every = {*dir(type(self)), *getattr(self, "__dataclass_fields__", ())}
            own = sorted(each for each in every if not each.startswith("_"))
            near = difflib.get_close_matches(name, own, n=1)
            told = f"did you mean {near[0]}?" if near else f"it has {', '.join(own)}"
            raise AttributeError(f"{said}; {told}")
