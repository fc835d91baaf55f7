"""What a diagnosis says in words: the verdict, its evidence, and which cures apply."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_vae.arguments import counted, shortened

SILENT = 0.1  # nats; a site below it tells nothing of the data
DEAF = 0.5  # nats; a decoder that gains less from the right code than from any does not listen
_ERRORS = 2  # standard errors within which a gain is not told from another
_NAMED = 6  # sites that are told one by one
_NORMAL = ("Normal",)
_BINARY = ("Bernoulli", "AutoregressiveBernoulli")


def verdict(found: Any) -> str:
    """Return one or a few sentences with their numbers."""
    sites = list(found.kl)
    layered = len(sites) > 1
    evidence = [_units(found, name) for name in sites] if len(sites) <= _NAMED else [_many(found)]
    if found.rows == 1:
        head = "One datum: it takes two or more to see whether codes differ."
    elif found.collapsed and len(found.collapsed) == len(sites):
        head = "Collapsed: the code tells nothing of the data."
    elif found.collapsed:
        few, more = found.collapsed[:_NAMED], len(found.collapsed) - _NAMED
        silent = ", ".join(few) + (f" and {more} more" if more > 0 else "")
        carried = sum(found.kl[name] for name in found.collapsed)
        head = f"Partly collapsed: {silent} carry {carried:.2f} nats together."
    elif _is_shared(found):
        head = "Collapsed onto a q that is not the prior: it is the same for all data."
    elif _is_unclear(found):
        head = "Undecided: the data are too few to tell whether the decoder uses the code."
    elif _is_unheard(found):
        head = "Unheard: the code costs nats that the decoder does not use."
    elif any(_idle(found, name) for name in sites):
        head = "Alive, with idle units."
    else:
        head = "Alive."
    told = f"{'Layers' if layered else 'Code'}: {'; '.join(evidence)}."
    return " ".join([head, told, _heard(found), *_informed(found), *_alphabet(found)])


def _heard(found: Any) -> str:
    """Return what the decoder gains from the right code, and that it ignores it where it does."""
    gain, error, over = _gain(found)
    known = f" ± {error:.2f}" if error else ""
    text = f"The right code gains {_unsigned(gain)}{known} nats over {over}"
    ignored = _is_unheard(found) and not _is_shared(found) and found.rows != 1
    if not ignored:
        return f"{text}."
    little = error and gain > _ERRORS * error
    return f"{text}, so the decoder {'hardly uses' if little else 'ignores'} it."


def _gain(found: Any) -> tuple[float, float, str]:
    """Return the nats that a datum's own code gains, their error (0 if unknown), and over which.

    That is the code of another datum, and as a last way one of the prior.
    """
    gain, code, over = found.reconstruction - found.other_reconstruction, "other", _ANOTHER
    if not math.isfinite(gain):
        gain, code, over = found.reconstruction - found.prior_reconstruction, "prior", _PRIOR
    error = found.gain_stderr.get(code, math.nan)
    return gain, error if math.isfinite(error) else 0.0, over


_ANOTHER, _PRIOR = "that of another datum", "one of the prior"


def _is_unheard(found: Any) -> bool:
    """Return whether the right code gains too little, with what its error leaves open."""
    gain, error, _ = _gain(found)
    return gain + _ERRORS * error < DEAF


def _is_unclear(found: Any) -> bool:
    """Return whether the gain may be none, and may be enough."""
    gain, error, _ = _gain(found)
    return gain <= _ERRORS * error and not _is_unheard(found)


def _is_shared(found: Any) -> bool:
    """Return whether q(z | x), which costs nats, is the same for all data: two, at least."""
    if found.rows == 1 or found.collapsed or any(found.active_units.values()):
        return False
    if found.information is not None:
        return bool(found.information.lower < min(SILENT, found.total_kl / 2))
    return set(found.variance) == set(found.kl) and _is_unheard(found)


def _units(found: Any, name: str) -> str:
    kl = f"KL({name}) {_unsigned(found.kl[name])} nats"
    share = found.share.get(name, 1.0)
    if 0 < share < 1:
        kl += (
            f" ({_unsigned(_where_it_is(found, name))} in the {share:.0%} of the data that have it)"
        )
    if name not in found.variance or found.rows == 1:
        return kl
    return (
        f"{found.active_units[name]} of {counted(found.variance[name].numel(), 'unit')} active, "
        f"{kl}"
    )


def _where_it_is(found: Any, name: str) -> float:
    """Return the KL of a site over the data that have it: others mask it, and count 0."""
    return float(found.kl[name] / (found.share.get(name, 1.0) or 1.0))


def _many(found: Any) -> str:
    """Return what many sites have in all, and the least and the largest of them."""
    there = {name: _where_it_is(found, name) for name in found.kl}
    order = sorted(there, key=there.__getitem__)
    ends = [f"{_unsigned(there[name])} ({name})" for name in (order[0], order[-1])]
    if there != found.kl:
        ends[-1] += " in the data that have them"
    units = sum(each.numel() for each in found.variance.values())
    active = sum(found.active_units[name] for name in found.variance)
    told = "" if found.rows == 1 else f"{active} of {units} units active in "
    return (
        f"{told}{len(order)} sites, KL "
        f"{_unsigned(sum(found.kl.values()))} nats in all, from {' to '.join(ends)}"
    )


def _idle(found: Any, name: str) -> bool:
    if found.rows == 1 or name not in found.variance:  # the mean of one datum has no variance
        return False
    if set(found.variance) == set(found.kl) and not any(found.active_units.values()):
        return False  # what the code tells is spread over all of its units
    return bool(found.active_units[name] < found.variance[name].numel())


def _informed(found: Any) -> list[str]:
    info = found.information
    if info is None:
        return []
    # Far codes can be told apart beyond what the floats of another datum's density hold.
    finite = math.isfinite(info.upper)
    least = (info.lower, info.stderr)
    told = (
        _crossed(least, (info.upper, info.upper_stderr))
        or f"{_between(*least)} to {_between(info.upper, info.upper_stderr)}"
        if finite
        else f"{_between(*least)} or more"
    )
    text = f"Mutual information {told} nats"
    if info.saturated:
        some = info.rows < found.rows  # the others were left out, for speed
        of = f" of the {found.rows}" if some else ""
        way_out = f"more of them: rows={found.rows}" if some else "more data"
        most = f"{info.rows}{of} data tell log N = {math.log(info.rows):.2f} nats at most"
        return [f"{text}: {most}, to tell more takes {way_out}."]
    if math.isnan(info.marginal_kl):  # an auxiliary variable of the guide
        return [f"{text}."]
    least = (info.marginal_kl_lower, info.marginal_kl_lower_stderr)
    above = (info.marginal_kl, info.marginal_kl_stderr)
    told = _crossed(least, above) or f"at least {_between(*least)} and at most {_between(*above)}"
    return [f"{text}, KL(q(z) || p(z)) {told}."]


def _crossed(lower: tuple[float, float], upper: tuple[float, float]) -> str:
    """Return estimates of two bounds as one number, at least 0, where noise has crossed them."""
    if round(lower[0], 2) <= round(upper[0], 2) and round(upper[0], 2) >= 0:
        return ""
    return f"about {_between(max(0.0, (lower[0] + upper[0]) / 2), max(lower[1], upper[1]))}"


def _between(value: float, stderr: float) -> str:
    return f"{_unsigned(value)} ± {stderr:.2f}"


def _unsigned(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no number is -0.00


def _alphabet(found: Any) -> list[str]:
    told = [
        f"{name}: {codes.used} of {counted(len(codes.counts), 'code')} in use, "
        f"perplexity {codes.perplexity:.1f}."
        for name, codes in found.codes.items()
    ]
    told += [
        f"{name} (summed out): perplexity {each.perplexity:.1f} of {len(each.shares)} values, of "
        f"which data and codes tell {_unsigned(each.information)} nats."
        for name, each in [*found.summed.items()][:_NAMED]
    ]
    more = len(found.summed) - _NAMED
    return [*told, f"{more} more are summed out (.summed)."] if more > 0 else told


def cures(found: Any) -> list[str]:
    """Return what may help, the cheapest first: only what runs on the very program."""
    silent = list(found.collapsed)
    idle = [name for name in found.kl if _idle(found, name)]
    advice: list[str] = []
    if _is_shared(found):
        once = len(found.kl) == 1 and _has_paths(found)
        longer = "q(z | x) ignores x: train longer, before anything else"
        return [longer, f"{_WARM_UP}: warm up", *[_LAGGING] * once]
    if silent:
        advice += _against_silence(found, silent)
    elif idle:
        advice.append("; ".join(_against_idleness(found, idle)))
    info = found.information
    far = info and not info.saturated and info.marginal_kl_lower > max(1.0, 0.2 * found.total_kl)
    if far and _is_gaussian(found):
        advice.append(
            "q(z) is far from p(z): learn the prior, as models.VAE does by prior=VampPrior"
        )
    for name, codes in found.codes.items():
        if codes.used < len(codes.counts) / 2:
            advice.append(f"{name}: a smaller alphabet, or revive unused codes")
    return advice


def _against_silence(found: Any, silent: list[str]) -> list[str]:
    advice = [f"{_WARM_UP}, or beta=pv.schedules.cyclical(): warm up"]
    if not _has_paths(found):
        advice.append(
            "objective=pv.VIMCO(5) or pv.RLOO(5): more draws, less noise in the encoder's gradient"
        )
        return advice
    if set(silent) & set(found.codes):
        return [*advice, "objective=pv.VQ(): ties encodings to codes"]
    if not found.weighted:
        if set(silent) <= set(found.closed_form):
            advice.append("objective=pv.AnalyticELBO(): the KL in closed form, without its noise")
        if _has_units(found):
            advice.append(f"{_FREE_BITS}: nats per unit that cost nothing")
        total = max(5, round(found.total_kl + 5))
        advice.append(f"objective=pv.TargetKL({total}): a KL to hold")
    if len(found.kl) == 1:
        advice.append(_LAGGING)
    else:
        advice.append("a guide from the top down (LadderVAE, TopDownVAE): each layer sees the data")
    if _is_gaussian(found):
        advice += _BY_CONSTRUCTION
        if set(found.observed.values()) <= set(_BINARY):
            advice.append("a weaker decoder, as observation=partial(MADE, input_dropout=0.5)")
    advice.append("stronger inference: objective=pv.IWAE(5)")
    if found.refinable:
        advice.append(
            "inference beyond the guide: objective=pv.HMCRefined(), and "
            'pv.infer(program, x, how="semi") to see what it misses'
        )
    return advice


def _against_idleness(found: Any, idle: list[str]) -> list[str]:
    cost = sum(found.idle_kl.get(name, 0.0) for name in idle)
    costs = "nothing" if cost < SILENT else f"{cost:.2f} nats, and tell nothing"
    advice = [f"idle units cost {costs}: a smaller latent_dim would do"]
    if set(idle) & set(found.codes):
        return advice
    wake = [_WARM_UP]
    if _has_paths(found) and _has_units(found) and not found.weighted:
        wake.insert(0, _FREE_BITS)
    return [*advice, f"to wake them: {' or '.join(wake)}"]


_WARM_UP = "beta=pv.schedules.linear(0, 1, over=0.3)"
_LAGGING = "objective=pv.Lagging(x): train the encoder ahead of the decoder"
_FREE_BITS = "objective=pv.FreeBits(0.1)"
_BY_CONSTRUCTION = (
    "posterior=BatchNormGaussian, DeltaGaussian or FixedScaleGaussian: a floor by construction",
    "posterior=InverseAutoregressiveFlow: a guide that can follow the posterior",
    'network="skip": the code enters each layer of the decoder',
)


def _has_paths(found: Any) -> bool:
    """Return whether every latent has a pathwise gradient: most objectives refuse others."""
    return all(found.reparametrised.values())


def _has_units(found: Any) -> bool:
    return all(name in found.unit_kl for name in found.kl)


def _is_gaussian(found: Any) -> bool:
    """Return whether the program is a VAE of one Gaussian code: its parts can be exchanged."""
    return len(found.kl) == 1 and set(found.kinds.values()) <= set(_NORMAL)


def report(found: Any) -> str:
    """Return the diagnosis as text of at most 100 columns."""
    masked = any(share < 1 for share in found.share.values())
    row, global_row = (_wide(form, [*found.kl, *found.global_kl]) for form in (_ROW, _GLOBAL_ROW))
    lines = [
        *_wrapped(found.verdict),
        "",
        row("site", "KL", "±", "active", "by KL", "Var q") + "   % of data" * masked,
    ]
    for name, kl in found.kl.items():
        known = name in found.variance and found.rows != 1
        units = found.variance[name].numel() if known else None
        by_kl = found.active_by_kl.get(name)
        spread = found.posterior_variance.get(name)
        lines.append(
            row(
                name,
                _unsigned(kl, 3),
                f"{found.kl_stderr.get(name, math.nan):.3f}",
                "-" if units is None else f"{found.active_units[name]}/{units}",
                "-" if by_kl is None else str(by_kl),
                "-" if spread is None else f"{spread.nanmean().item():.3f}",
            )
            + f"{found.share.get(name, 1.0):12.0%}" * masked
        )
    lines += _of_globals(found, global_row)
    lines.append("")
    lines.append(f"log p(x | z), z from the guide  {found.reconstruction:10.3f} nats")
    if not math.isnan(found.other_reconstruction):
        lines.append(f"log p(x | z), z of another datum{found.other_reconstruction:10.3f} nats")
    lines.append(f"log p(x | z), z from the prior  {found.prior_reconstruction:10.3f} nats")
    if found.cures:
        lines += [
            "",
            "What may help:",
            *(line for cure in found.cures for line in _wrapped(f"- {cure}")),
        ]
    return "\n".join(lines)


_ROW = "{:>10}{:>9}{:>10}{:>8}{:>9}"
_GLOBAL_ROW = "{:>10}{:>9}{:>18}"
_LETTERS = 40  # of a name in a table, at most


def _wide(form: str, names: list[str]) -> Callable[..., str]:
    """Return a function of the cells of a row, the first a name, as wide as the longest needs."""
    width = max(12, 1 + min(_LETTERS, max(map(len, names))))
    return lambda name, *cells: f"{shortened(name, _LETTERS):<{width}}" + form.format(*cells)


def _of_globals(found: Any, row: Callable[..., str]) -> list[str]:
    """Return the rows of the global latents: nats of the data set, and the share of each datum."""
    lines = [
        row(
            name,
            _unsigned(kl, 3),
            f"{found.global_kl_stderr.get(name, math.nan):.3f}",
            f"{kl / max(1, found.rows):.6f}",
        )
        for name, kl in found.global_kl.items()
    ]
    head = row("global", "KL, once", "±", f"each of {found.rows} data")
    return ["", head, *lines] if lines else []


def _wrapped(text: str, width: int = 100) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def as_dict(found: Any) -> dict[str, Any]:
    """Return everything a diagnosis holds, tensors as lists, and what is not finite as None."""
    info = found.information
    return {
        name: _plain(value)
        for name, value in {
            "rows": found.rows,
            "share": found.share,
            "unit_share": found.unit_share,
            "verdict": found.verdict,
            "cures": found.cures,
            "collapsed": found.collapsed,
            "kl": found.kl,
            "kl_stderr": found.kl_stderr,
            "total_kl": found.total_kl,
            "active_units": found.active_units,
            "active_by_kl": found.active_by_kl,
            "reconstruction": found.reconstruction,
            "prior_reconstruction": found.prior_reconstruction,
            "other_reconstruction": found.other_reconstruction,
            "gain_stderr": found.gain_stderr,
            "information": None if info is None else vars(info) | {"saturated": info.saturated},
            "codes": {
                name: {"used": codes.used, "of": len(codes.counts), "perplexity": codes.perplexity}
                for name, codes in found.codes.items()
            },
            "summed": {
                name: {"shares": each.shares, "information": each.information}
                for name, each in found.summed.items()
            },
            "kinds": found.kinds,
            "observed": found.observed,
            "reparametrised": found.reparametrised,
            "closed_form": found.closed_form,
            "weighted": found.weighted,
            "refinable": found.refinable,
            "global_kl": found.global_kl,
            "global_kl_stderr": found.global_kl_stderr,
            "unit_kl": found.unit_kl,
            "variance": found.variance,
            "posterior_variance": found.posterior_variance,
            "histogram": found.histogram,
        }.items()
    }


def _plain(value: Any) -> Any:
    """Return what JSON can hold: tensors as lists, and numbers that are not finite as None."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
