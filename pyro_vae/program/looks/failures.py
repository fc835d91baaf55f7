"""What to do about a run that has failed: which layer, which dimension, which numbers."""

import difflib
import inspect
import linecache
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor, nn

from pyro_vae.arguments import counted
from pyro_vae.callers import is_inside
from pyro_vae.program.batches.batch import Batch, Form, named_leaves, num_rows, under_handlers
from pyro_vae.program.sites.counts import digits_lost
from pyro_vae.program.sites.masks import unfit_mask

ONLY_ENUMERATED = (
    "; model and guide run with their discrete latents enumerated, as TraceEnum_ELBO runs them, "
    "and not on a draw of each, which every verb begins with: have what depends on them broadcast "
    "over a draw as well (pyro.ops.indexing.Vindex)"
)
_SAMPLE = r"""sample\(\s*f?["']([^"']+)["']"""


def where(error: BaseException) -> str:
    """Return the kind of an error without words, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def users_line(error: BaseException) -> str:
    """Return the innermost line of the user's own that an error came through, as (file:line)."""
    told = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        written = "__name__" in frame.f_globals  # torch's tracer evaluates a lambda
        if written and not is_inside(name):
            told = f" ({name}:{line})"
    return told


def _open_call(text: str) -> str:
    """Return the last call of ``sample`` in a text where it goes on behind its end; else ""."""
    start = text.rfind("sample(")
    call = text[start:] if start >= 0 else ""
    return call if call.count("(") > call.count(")") else ""


def site_of(error: BaseException) -> str:
    """Return the site that the user's innermost line samples, as ``site 'z' of guide: ``; or ""."""
    told = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        lines = linecache.getlines(code.co_filename)[max(0, line - 4) : line]
        before = "".join(lines[:-1])
        found = re.findall(_SAMPLE, _open_call(before) + "".join(lines[-1:]))
        if found and not is_inside(code.co_filename):
            told = f"site {found[-1]!r} of {code.co_name}: "
    return told


def about_mask(error: BaseException) -> str:
    """Return what is wrong with ``.mask(m)`` where a distribution has refused m; else nothing."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        told: Mapping[str, Any] = frame.f_locals
        mask = told.get("mask")
        if isinstance(told.get("self"), MaskedDistribution) and isinstance(mask, Tensor):
            base = told["base_dist"]
            unfit = unfit_mask(mask.shape, base)
            return f"{site_of(error)}{unfit}{users_line(error)}"
    return ""


def where_holes_fail(error: BaseException) -> str:
    """Return where a program fails on NaN, though it masks something that it observes."""
    cause = error.__cause__ or error
    return (
        f"NaN reaches a network or a distribution{users_line(cause)}, beside what the model masks: "
        "write x.nan_to_num() there, and mask what observes it"
    )


def positive(reason: str, values: str) -> str:
    """Return what makes a parameter positive where it is a negative number; else nothing."""
    finite = not any(word in values for word in ("nan", "inf"))
    if not finite or "GreaterThan" not in reason:
        return ""
    return "What a network puts out is made positive by .exp() or torch.nn.functional.softplus"


def about_numbers(reason: str, batch: Batch, dtype: torch.dtype) -> str:
    """Return what to do where a network wants floats, of a type, for whole numbers."""
    whole = {name: leaf for name, leaf in named_leaves(batch) if not leaf.is_floating_point()}
    if not whole or not re.search(r"same dtype|expected .*type", reason):
        return ""
    for name, leaf in whole.items():
        if lost := digits_lost(leaf, dtype):
            return f"; {name}: networks take floats, and {lost}"
    return f"; {next(iter(whole))} has whole numbers, and networks take floats: .float()"


def about_types(reason: str, dtype: torch.dtype | None) -> str:
    """Return what to do where functions make floats of another type than a program was given."""
    made = torch.get_default_dtype()
    if dtype in (None, made) or not re.search(r"dtype|scalar type", reason):
        return ""
    return (
        f". Where the program makes tensors or networks of PyTorch's default type, {made}, as it "
        f"runs first, call torch.set_default_dtype({dtype}) before it is built"
    )


def about_classes(reason: str, batch: Batch) -> str:
    """Return what to do about class numbers that a layer or ``one_hot`` has no place for."""
    alone = [(name, leaf) for name, leaf in named_leaves(batch) if leaf.dim() == 1]
    if re.search(r"one_hot is only applicable to|scalar types: Long", reason):
        real = [name for name, leaf in alone if leaf.is_floating_point()]
        return f"; class numbers are whole: {real[0]}.long()" if real else ""
    if not re.search(r"index out of range in self|Class values must be", reason):
        return ""
    for name, leaf in alone:
        if leaf.is_floating_point() or leaf.dtype is torch.bool or not leaf.numel():
            continue
        low, high = int(leaf.min()), int(leaf.max())
        way = f"{name} - {low}" if low > 0 else "more classes, or rows without the others"
        way += " (M2 takes -1 for a label that lacks)" if low == -1 else ""
        return f"; {name} has class numbers from {low} to {high}, which count from 0: give {way}"
    return ""


def about_arguments(reason: str, functions: Iterable[Any]) -> str:
    """Return what model and guide take, where the batch has other arguments."""
    found = re.match(r"(\S+)\(\) (missing|got an unexpected keyword|takes) ", reason)
    for function in functions:
        own = under_handlers(function)
        if found is None or getattr(own, "__qualname__", None) != found[1]:
            continue
        names = list(inspect.signature(own).parameters)
        if not names:
            return "; it takes no data: give it an argument for them, as def model(x)"
        unknown = re.search(r"unexpected keyword argument '(.+?)'", reason)
        near = difflib.get_close_matches(unknown[1], names, n=1) if unknown else []
        told = "".join(f"; did you mean {name}?" for name in near)
        return (
            f"{told}; it takes {', '.join(names)}: give several arguments as a tuple, or as a dict "
            "by these names"
        )
    return ""


def of_words(args: tuple[Any, ...]) -> str:
    """Return what to do where a program wants numbers for the words that it gets."""
    if not args or not isinstance(args[-1], Form) or not args[-1].words:
        return ""
    first = args[-1].paths[next(iter(args[-1].words))][0]
    name = first if isinstance(first, str) else f"argument {first}"
    return (
        f"; the program gets {name}, a list of words, as it was given: for numbers give "
        "np.unique(words, return_inverse=True)[1]"
    )


def about_drawn_rows(plates: Mapping[str, tuple[int, int]], batch: Batch) -> str:
    """Return what to do where a plate draws some of its rows, which may be more than a batch has.

    Arguments:
        plates: How many each plate draws, of how many.
        batch: The data.
    """
    for name, (drawn, size) in plates.items():
        second = num_rows(batch) != size and any(
            leaf.dim() > 1 and leaf.shape[1] == size for _, leaf in named_leaves(batch)
        )
        dim = "; rows are the second dimension: Program(..., dim=1)"
        return (
            f"; the plate {name!r} draws {drawn} of its {counted(size, 'row')}: leave "
            "subsample_size out, observe x in place of x[i], and let pv.fit make the minibatches "
            "(batch_size=), or hand over all rows at once: batch_size=len(x)"
            f"{dim if second else ''}"
        )
    return ""


def about_rows(reason: str, named: Mapping[str, Any]) -> str:
    """Return how many rows each argument has, where a run has failed on such numbers; else "".

    Other rows alone are no fault: a program may take what is no data of the rows.

    Arguments:
        reason: What the run has raised.
        named: The arrays of the batch.
    """
    by_rows: dict[int, list[str]] = {}
    for name, leaf in named.items():
        for rows in leaf.shape[:1]:
            by_rows.setdefault(rows, []).append(name)
    told = by_rows.keys() & {int(each) for each in re.findall(r"\b\d+\b", reason)}
    if len(told) < 2 or max(by_rows, key=lambda rows: len(by_rows[rows])) not in told:
        return ""
    counts = ", ".join(f"{rows} of {' and '.join(names)}" for rows, names in by_rows.items())
    return (
        f"arguments have unequal numbers of rows, {counts} ({reason}); give each as many, and what "
        "is no data of the rows to the functions (functools.partial)"
    )


def about_shapes(reason: str, error: BaseException, batch: Batch) -> str:
    """Return what mends the mistakes behind most errors of shapes within a plate."""
    written = re.match(r"shape '\[(-1, .+)\]' is invalid for input of size", reason)
    if written:
        return f"; the rows are no .view({written[1]}): reshape the data, or build for their size"
    if reason.startswith("subsample_size does not match"):
        return (
            "; leave subsample_size out and let pv.fit make the minibatches (batch_size=), or hand "
            "over all rows at once: batch_size=len(x)"
        )
    found = re.match(
        r"Shape mismatch inside plate\('(.+)'\) at site (\S+) dim -\d+, (\d+) vs (\d+)", reason
    )
    if found is None:
        return ""
    plate, site, here, there = found.groups()
    events = f"what is one datum of {site!r} its event dimensions (.to_event(1))"
    if int(here) != num_rows(batch):
        return f"; give the plate its rows (pyro.plate({plate!r}, len(x))), or {events}"
    if _is_event(error) and _makes_rows(int(there), batch):
        return (
            f"; the plate has the {here} rows of the batch, and a .view(-1, n) or reshape makes "
            f"{there} of them where a row has other than n numbers: write x.flatten(1), and build "
            "networks for what a row has"
        )
    if int(there) > int(here) and not _has_size(int(there), batch):
        return (
            f"; the plate has the rows of the batch: take these from the argument, where {there} "
            f"are all rows and come from outside; else make {events}"
        )
    return f"; the plate has the rows of the batch, so make {events}"


def _is_event(error: BaseException) -> bool:
    """Return whether the site at which a plate has failed has event dimensions already."""
    fn = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        message = frame.f_locals.get("msg")
        fn = message.get("fn") if isinstance(message, dict) else fn
    return bool(getattr(fn, "event_dim", 0))


def _has_size(size: int, batch: Batch) -> bool:
    """Return whether some data of a batch have a dimension of this size."""
    return any(size in leaf.shape for _, leaf in named_leaves(batch))


def _makes_rows(count: int, batch: Batch) -> bool:
    """Return whether the numbers of a batch are so many rows, in none of its own dimensions."""
    return any(
        leaf.dim() > 1 and leaf.numel() % count == 0 and count not in leaf.shape
        for _, leaf in named_leaves(batch)
    )


def about_flags(reason: str, error: BaseException) -> str:
    """Return what to do where numbers stand for a mask or a condition."""
    if not re.search(r"Expected mask to be a BoolTensor|expected condition to be a bool", reason):
        return ""
    return f"{users_line(error)}; flags of 0 and 1 are a condition by .bool()"


def about_calls(reason: str) -> str:
    """Return what to do where a tensor stands for a distribution."""
    if reason != "'Tensor' object is not callable":
        return ""
    return (
        "; what pyro.sample draws from, and a network in the place of an encoder or decoder "
        "returns, is a distribution, as dist.Normal(loc, scale).to_event(1), and no tensor"
    )


def about_layer(reason: str, error: Exception, parts: nn.Module) -> str:
    """Return why a layer has raised an error, with what it got and what it is made for."""
    names = {id(part): name for name, part in parts.named_modules()}
    found: tuple[str, nn.Module, Any] | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        local = frame.f_locals
        part = local.get("self")
        if isinstance(part, nn.Module) and names.get(id(part)) and "input" in local:
            found = names[id(part)], part, local["input"]
    if found is None or not isinstance(found[2], Tensor):
        return reason
    name, part, given = found
    told = f"(layer {name!r}, {part}, got shape {tuple(given.shape)})"
    if not isinstance(part, nn.Linear) or given.shape[-1:] == (part.in_features,):
        return f"{reason} {told}"
    size = counted(given.shape[-1] if given.dim() else 1, "number")
    return f"got {size}, expected {part.in_features} {told}"
