"""Checks of arguments at the door of a verb, with one form of message: got, expected, the fix.

`typed` refuses what an annotation excludes; the range of a number is its function's own business:
`integer`, `positive`, `number`.
"""

import builtins
import difflib
import functools
import inspect
import operator
import os
import types
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import chain
from numbers import Number, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.errors import ConfigError
from pyro_vae.signatures import Readable

T = TypeVar("T")

_LARGEST = 2**63  # integers of torch are below it
_SHOWN = 100  # characters of a value in a message
# What other libraries call an argument: the names that it may have here.
_ALSO_CALLED = {
    **dict.fromkeys(("learning_rate", "step_size"), ("lr",)),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "nb_epochs"), ("epochs",)),
    **dict.fromkeys(("num_train_epochs", "training_epochs"), ("epochs",)),
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size", "bs"), ("batch_size",)),
    **dict.fromkeys(("num_steps", "num_iterations", "n_iter"), ("max_steps",)),
    "steps": ("max_steps", "num_steps", "num_temperatures"),
    "n": ("steps", "num_particles"),  # of those that draw no data
    "mean": ("sample",),  # each is where the other is not
    "sample": ("mean",),
    **dict.fromkeys(("early_stopping", "early_stopping_patience"), ("patience",)),
    **dict.fromkeys(("weight_decay", "momentum", "betas", "optim"), ("optimizer",)),
    **dict.fromkeys(("gradient_clip_val", "max_grad_norm", "grad_clip"), ("clip_norm",)),
    **dict.fromkeys(("validation_data", "validation", "val_data"), ("valid",)),
    **dict.fromkeys(("validation_split", "val_split", "validation_fraction"), ("valid",)),
    **dict.fromkeys(("validation_size", "train_size", "test_size", "val_size"), ("valid",)),
    **dict.fromkeys(("eval_data", "eval_dataset", "eval_set", "val_dataset"), ("valid",)),
    **dict.fromkeys(("val_loader", "valid_loader", "test_data", "valid_data"), ("valid",)),
    **dict.fromkeys(("kl_weight", "annealing"), ("beta",)),
    **dict.fromkeys(("loss", "loss_fn", "num_particles"), ("objective",)),
    **dict.fromkeys(("scheduler", "lr_scheduler"), ("lr_schedule",)),
    **dict.fromkeys(("random_state", "random_seed"), ("seed",)),
    **dict.fromkeys(("verbose", "progress_bar"), ("progress",)),
    **dict.fromkeys(("gpu", "gpus", "use_gpu", "cuda", "use_cuda", "accelerator"), ("device",)),
    **dict.fromkeys(("train_data", "train_loader", "dataloader", "train_dataset"), ("data",)),
    "program": ("model",),  # of the shell's
    **dict.fromkeys(
        ("n_samples", "num_samples", "nsamples", "samples", "particles"),
        ("num_particles", "n", "num_draws"),
    ),
    **dict.fromkeys(("warmup_steps", "num_warmup"), ("warmup",)),
    **dict.fromkeys(("num_chains", "n_chains"), ("chains",)),
    **dict.fromkeys(("z_dim", "n_latent", "latent_size"), ("latent_dim",)),
    **dict.fromkeys(("likelihood", "reconstruction_loss", "decoder_dist"), ("observation",)),
    **dict.fromkeys(("input_dim", "n_input", "x_dim"), ("data_dim",)),
}
# Arguments of training that are given to what is trained.
_OF_FIT = {"beta", "lr", "epochs", "batch_size", "optimizer", "objective", "device", "seed"}
# What one writes for arguments whose kind alone does not say it.
_EXAMPLES = {
    "beta": "pv.schedules.linear(0, 1)",
    "lr_schedule": "pv.schedules.cosine()",
    "observation": "pv.conditionals.Bernoulli",
    "history": "run.history",
    "settings": "pv.HMC(num_draws=500)",
    "curves": "{'DMM': pv.per_step(dmm, x).kl}",
}
_IN_WORDS = {
    "(-inf, inf)": "a finite number",
    "(0, inf)": "a positive number",
    "[0, inf)": "a number of at least 0",
}


def integer(name: str, value: Any, at_least: int) -> int:
    """Return an integer of at least some number (NumPy's integers are integers too).

    Raises:
        ConfigError: Anything else, and what no 64 bits hold.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not at_least <= number < _LARGEST:
        below = "" if number is None or number < _LARGEST else " and below 2**63"
        raise ConfigError(
            f"{name}: got {shown(value)}, expected an integer of at least {at_least}{below}"
        )
    return number


def positive(name: str, value: Any) -> int:
    """Return an integer of at least 1.

    Raises:
        ConfigError: Anything else.
    """
    return integer(name, value, 1)


def number(name: str, value: Any, interval: str) -> float:
    """Return a number of an interval in the notation of mathematics: "[0, 1)" holds 0 but not 1.

    Raises:
        ConfigError: Anything else, NaN included.
    """
    low, high = map(float, interval[1:-1].split(","))
    above = _fits_a_float(value) and (low <= value if interval[0] == "[" else low < value)
    if not above or not (value <= high if interval[-1] == "]" else value < high):
        expected = _IN_WORDS.get(interval, f"a number in {interval}")
        raise ConfigError(f"{name}: got {shown(value)}, expected {expected}")
    return float(value)


def _fits_a_float(value: Any) -> bool:
    return is_number(value) and (not isinstance(value, int) or abs(value) < 2**1000)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number and not NaN; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)


def shape_of(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one datum: integers of at least 1.

    Raises:
        ConfigError: Anything else.
    """
    return tuple(positive(name, size) for size in value)


def require_network(name: str, value: Any) -> None:
    """Require a module, where a function cannot stand for one: its weights are trained.

    Raises:
        ConfigError: Anything else.
    """
    if not isinstance(value, nn.Module):
        raise ConfigError(
            f"{name}: got {shown(value)}, expected an nn.Module, whose weights are trained"
        )


def rows(name: str, value: Any) -> Any:
    """Return what may be data, to be looked at once their program is known.

    Raises:
        ConfigError: None, a word, a number, a class or a function.
    """
    if value is None or isinstance(value, str | bytes | Number) or callable(value):
        raise ConfigError(
            f"{name}: got {shown(value)}, expected one row per datum: a tensor, an array, a tuple "
            "or dict of them, a Dataset or a DataLoader"
        )
    return value


def shaped(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of one shape.

    Raises:
        ConfigError: Another shape.
    """
    if tuple(value.shape) != tuple(shape):
        raise ConfigError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(shape)}")
    return value


def takes_one(function: Callable[..., Any]) -> bool:
    """Return whether a function can be called with one argument; True where nobody knows."""
    try:
        inspect.signature(function).bind(())
    except ValueError:  # as of torch.bernoulli
        return True
    except TypeError:
        return False
    return True


def also_called(name: str) -> tuple[str, ...]:
    """Return what an argument of other libraries may be called here."""
    return _ALSO_CALLED.get(name, ())


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, on one line, a tensor by its shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def counted(number: float | str, noun: str, nouns: str = "") -> str:
    """Return a number of things: ``counted(1, "draw")`` is "1 draw", of 2 it is "2 draws".

    Arguments:
        number: How many; "no" too.
        noun: What one is called.
        nouns: What more are called, where it is not that with an s.
    """
    endings = {"y": f"{noun[:-1]}ies", "s": f"{noun}es", "h": f"{noun}es"}
    return f"{number} {noun if number == 1 else nouns or endings.get(noun[-1], f'{noun}s')}"


def shortened(text: str, letters: int) -> str:
    """Return a text of so many letters at most: long names often differ at their ends."""
    if len(text) <= letters:
        return text
    end = max(1, letters // 3)
    return f"{text[: max(1, letters - end - 1)]}…{text[-end:]}"


# -- by annotation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What an annotation lets in, and how a message calls it."""

    words: str
    fits: Callable[[Any], bool]


def typed(what: T) -> T:
    """Refuse arguments that the annotations of a function, or of a class's constructor, exclude.

    Annotations of plain numbers are left to the body, which knows their range; those that name
    nothing at run time (``Any``, what is imported for a type checker only) let everything in.

    Raises:
        ConfigError: At a call: names the argument, what it got and what it expects.
        TypeError: At a call: an argument that is not there, or one too many without its name.

    Example:
        >>> @typed
        ... def draw(n: int, *, mean: bool = False) -> int:
        ...     return n
        >>> draw(3, mean="no")
        Traceback (most recent call last):
        pyro_vae.errors.ConfigError: mean: got 'no', expected True or False
    """
    if isinstance(what, type):
        constructor: Any = what
        constructor.__init__ = typed(constructor.__init__)
        return what
    function: Any = what
    places = _Places.of(function)
    kinds: dict[str, _Kind] = {}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not kinds:  # at the first call, when all that annotations name is there
            kinds.update(_kinds(function))
        places.require(args, kwargs)
        for name, value in chain(zip(places.first, args, strict=False), kwargs.items()):
            kind = kinds.get(name)
            if kind is not None and not kind.fits(value):
                example = f", as {_EXAMPLES[name]}" if name in _EXAMPLES else ""
                raise ConfigError(f"{name}: got {shown(value)}, expected {kind.words}{example}")
        return function(*args, **kwargs)

    checked.__signature__ = Readable.of(function)  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


@dataclass(frozen=True)
class _Places:
    """What the arguments of a function are called.

    Arguments:
        function: its name; empty for a constructor, which subclasses share.
        first: those that may stand without a name.
        named: those that may not.
        any_number: whether as many as one likes stand without a name.
        any_name: whether names of any kind are taken.
        annotations: what returns those of the arguments.
    """

    function: str
    first: tuple[str, ...]
    named: tuple[str, ...]
    any_number: bool
    any_name: bool
    annotations: Callable[[], Mapping[str, Any]]

    @classmethod
    def of(cls, function: Any) -> "_Places":
        found = inspect.signature(function).parameters
        kinds = {name: parameter.kind for name, parameter in found.items()}
        first = [n for n, kind in kinds.items() if kind <= kind.POSITIONAL_OR_KEYWORD]
        named = [n for n, kind in kinds.items() if kind is kind.KEYWORD_ONLY]
        every = kinds.values()
        return cls(
            "" if function.__name__ in ("__init__", "__new__") else function.__qualname__,
            tuple(first),
            tuple(named),
            inspect.Parameter.VAR_POSITIONAL in every,
            inspect.Parameter.VAR_KEYWORD in every,
            functools.partial(_annotations, function),
        )

    def require(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse what Python refuses as well, and say what the arguments are called."""
        if len(args) > len(self.first) and not self.any_number:
            raise TypeError(f"{self._called(args)}() {self._too_many(args)}")
        for name, value in kwargs.items():
            if not self.any_name and name not in self.first and name not in self.named:
                raise TypeError(
                    f"{self._called(args)}() got an unexpected argument {name!r}; "
                    f"{self._near(name, value)}"
                )
        if self.first == ("program", "data") and len(args) == 1 and "data" not in kwargs:
            raise TypeError(
                f"{self.function}() got no data, expected {self.function}(program, data); a "
                "program without arguments, which holds its data, takes ()"
            )

    def _called(self, args: tuple[Any, ...]) -> str:
        """Return what is called: of a constructor the class, which may have inherited it."""
        if self.function or not args:
            return self.function
        return (args[0] if isinstance(args[0], type) else type(args[0])).__name__

    def _too_many(self, args: tuple[Any, ...]) -> str:
        own, count = self.first[:1] == ("self",), len(args)
        first = self.first[own:]
        most = f"{len(first)} at most ({', '.join(first)})" if first else "none"
        write = f"; write the names of the others, as in {self.named[0]}=..." if self.named else ""
        if first[:1] == ("program",) and all(map(inspect.isroutine, args[:2])):
            write = "; of two functions make a program: pv.Program(model, guide)"
        elif not first and self.function.endswith(".plot"):
            write = f"; write the figure to a file: pv.plots.save(it.plot(), {shown(args[-1])})"
        elif first[1:2] == ("data",) and all(map(_is_array, args[1:])):
            write = "; several arguments of a model go together, as a tuple: (x, y)"
        return f"got {counted(count - own, 'argument')} without a name, expected {most}{write}"

    def _near(self, name: str, value: Any) -> str:
        names = [each for each in (*self.first, *self.named) if each not in ("self", "cls")]
        spellings = (name, *also_called(name))
        near = [each for each in spellings if each in names]
        near = near or self._within(spellings, value) or difflib.get_close_matches(name, names, n=2)
        if near:
            return f"did you mean {' or '.join(near)}?"
        if not self.function and name in _OF_FIT:  # of a model, a conditional, an objective
            return f"pv.fit takes it: pv.fit(program, x, {name}={shown(value)})"
        inputs = f"; inputs of the model go in given={{{name!r}: ...}}" if "given" in names else ""
        return f"expected one of {', '.join(names)}{inputs}"

    def _within(self, spellings: Sequence[str], value: Any) -> list[str]:
        """Return how to say it by an argument of settings: those that have such a field."""
        return [
            f"{argument}=pv.{kind.__name__}({field}={shown(value)})"
            for argument, annotation in self.annotations().items()
            for kind in (get_args(annotation) if argument != "return" else ())
            if isinstance(kind, type) and is_dataclass(kind)
            for field in spellings
            if field in inspect.signature(kind).parameters
        ]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | list) or hasattr(value, "__array__")


def _annotations(function: Any) -> Mapping[str, Any]:
    known = ChainMap(inspect.unwrap(function).__globals__, vars(builtins), defaultdict(lambda: Any))
    return get_type_hints(function, localns=known)


def _kinds(function: Any) -> dict[str, _Kind]:
    """Return what the annotations of a function say, by argument."""
    hints = _annotations(function)
    found = {"": _Kind("", lambda value: True)}  # so that it is found out once
    for name, parameter in inspect.signature(function).parameters.items():
        named = parameter.kind is not parameter.VAR_KEYWORD and name in hints
        kind = _kind(hints[name]) if named else None
        if kind is not None:
            found[name] = kind
    return found


def _kind(annotation: Any) -> _Kind | None:
    """Return what an annotation says; None where it says nothing, or a number's range is asked."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return _union(get_args(annotation))
    if origin is Literal:
        return _literal(get_args(annotation))
    if origin in _PLAIN:
        return _PLAIN[origin]
    if origin is tuple or (isinstance(origin, type) and issubclass(Sequence, origin)):
        return _sequence(origin, [a for a in get_args(annotation) if a is not Ellipsis])
    if isinstance(origin, type) and issubclass(dict, origin) and origin is not object:
        return _mapping(get_args(annotation))
    # A device is told by what looks for it.
    known = isinstance(origin, type) and origin not in (object, int, float, torch.device)
    if not known or origin.__module__.split(".")[0] not in ("pyro_vae", "pyro", "torch"):
        return None
    return _Kind(f"an instance of {origin.__name__}", lambda value: isinstance(value, origin))


def _union(members: tuple[Any, ...]) -> _Kind | None:
    numbers = {int, float} & set(members)
    others = [m for m in members if m not in (int, float, type(None))]
    if bool in others:  # which says True and False itself
        others = [_without_bools(m) if get_origin(m) is Literal else m for m in others]
    kinds = [_kind(member) for member in others]
    if not others or None in kinds:
        return None
    found = [_Kind("a number", is_number)] if numbers else []
    found += [kind for kind in kinds if kind is not None]
    optional = type(None) in members
    words = dict.fromkeys([*(kind.words for kind in found), *(["None"] if optional else [])])

    def fits(value: Any) -> bool:
        return (optional and value is None) or any(kind.fits(value) for kind in found)

    return _Kind(" or ".join(words), fits)


def _without_bools(literal: Any) -> Any:
    return Literal[tuple(option for option in get_args(literal) if not isinstance(option, bool))]


def _literal(options: tuple[Any, ...]) -> _Kind:
    def fits(value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in options)

    return _Kind(f"one of {', '.join(map(str, options))}", fits)


def _sequence(origin: Any, inner: list[Any]) -> _Kind:
    element = _kind(inner[0]) if inner else None
    numbers = bool(inner) and inner[0] in (int, float)
    arrays = (np.ndarray, Tensor) if numbers else ()
    wanted: Any = Iterable if origin is Iterable else (Sequence, *arrays)

    def fits(value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, wanted):
            return False
        if isinstance(value, Tensor) and (origin is Iterable or value.dim() != 1):
            return False
        again = isinstance(value, Sequence)  # and not an iterator, which can be read but once
        return element is None or not again or all(map(element.fits, value))

    of = "numbers" if numbers else _plural(element.words) if element is not None else ""
    return _Kind(f"a sequence{f' of {of}' if of else ''}", fits)


def _plural(words: str) -> str:
    one, _, name = words.partition(" ")
    first, of, rest = name.partition(" of ")
    return f"{first}s{of}{rest}" if one == "a" and " " not in first else words


def _mapping(inner: tuple[Any, ...]) -> _Kind:
    number = _Kind("numbers", is_number)
    key, value_ = [number if each in (int, float) else _kind(each) for each in inner or (Any, Any)]

    def fits(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and (key is None or all(map(key.fits, value)))
            and (value_ is None or all(map(value_.fits, value.values())))
        )

    of = f" of {_plural(value_.words)}" if value_ is not None else ""
    return _Kind(f"a dict{of}", fits)


def _is_module(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)  # a function serves as a network too


_FUNCTION = _Kind("a function", callable)
_PLAIN: dict[Any, _Kind | None] = {
    bool: _Kind("True or False", lambda value: isinstance(value, bool | np.bool_)),
    str: _Kind("text", lambda value: isinstance(value, str)),
    os.PathLike: _Kind("a path", lambda value: isinstance(value, os.PathLike)),
    type(None): _Kind("None", lambda value: value is None),
    Tensor: _Kind(
        "a tensor of real numbers",
        lambda value: isinstance(value, Tensor) and not value.is_complex(),
    ),
    nn.Module: _Kind("a module (not its class)", _is_module),
    Callable: _FUNCTION,
    type(Callable[[], Any]): _FUNCTION,
}
