"""What a diagnosis says in words: the verdict, its evidence, and which cures apply."""

import math
from typing import Any

SILENT = 0.1  # nats; a site below it tells nothing of the data
DEAF = 0.5  # nats; a decoder that gains less from the right code than from any does not listen
_NORMAL = ("Normal",)


def verdict(found: Any) -> str:
    """Return one or a few sentences with their numbers."""
    sites = list(found.kl)
    layered = len(sites) > 1
    gain = found.reconstruction - found.prior_reconstruction
    evidence = [_units(found, name) for name in sites]
    if found.collapsed and len(found.collapsed) == len(sites):
        head = "Collapsed: the code tells nothing of the data."
    elif found.collapsed:
        silent = ", ".join(found.collapsed)
        carried = sum(found.kl[name] for name in found.collapsed)
        head = f"Partly collapsed: {silent} carry {carried:.2f} nats together."
    elif any(_idle(found, name) for name in sites):
        head = "Alive, with idle units."
    else:
        head = "Alive."
    told = f"{'Layers' if layered else 'Code'}: {'; '.join(evidence)}."
    heard = f"The right code gains {gain:.1f} nats over a random one"
    heard += ", so the decoder ignores it." if gain < DEAF else "."
    return " ".join([head, told, heard, *_informed(found), *_alphabet(found)])


def _units(found: Any, name: str) -> str:
    kl = f"KL({name}) {found.kl[name]:.2f} nats"
    if name not in found.variance:
        return kl
    return f"{found.active_units[name]} of {found.variance[name].numel()} units active, {kl}"


def _idle(found: Any, name: str) -> bool:
    return name in found.variance and found.active_units[name] < found.variance[name].numel()


def _informed(found: Any) -> list[str]:
    info = found.information
    if info is None:
        return []
    # Far codes can be told apart beyond what the floats of another datum's density hold.
    most = f"to {info.upper:.2f}" if math.isfinite(info.upper) else "or more"
    text = (
        f"Mutual information {info.lower:.2f} {most} nats (± {info.stderr:.2f}), "
        f"KL(q(z) || p(z)) {info.marginal_kl:.2f}."
    )
    if info.saturated:
        text += f" {info.rows} data tell log N = {math.log(info.rows):.2f} nats at most: more need"
        text += " more data."
    return [text]


def _alphabet(found: Any) -> list[str]:
    return [
        f"{name}: {codes.used} of {len(codes.counts)} codes in use, "
        f"perplexity {codes.perplexity:.1f}."
        for name, codes in found.codes.items()
    ]


def cures(found: Any) -> list[str]:
    """Return what may help, the cheapest first."""
    silent = list(found.collapsed)
    idle = [name for name in found.kl if _idle(found, name)]
    advice: list[str] = []
    if silent:
        advice += _against_silence(found, silent)
    elif idle:
        advice.append(
            "idle units cost nothing: a smaller latent_dim would do; to wake them: "
            "objective=pv.FreeBits(0.1) or beta=pv.schedules.linear(0, 1, over=0.3)"
        )
    info = found.information
    if info and not info.saturated and info.marginal_kl > max(1.0, 0.2 * found.total_kl):
        advice.append("q(z) is far from p(z): learn the prior, as prior=VampPrior")
    for name, codes in found.codes.items():
        if codes.used < len(codes.counts) / 2:
            advice.append(f"{name}: a smaller alphabet, or revive unused codes")
    return advice


def _against_silence(found: Any, silent: list[str]) -> list[str]:
    kinds = {found.kinds.get(name, "") for name in silent}
    advice = ["beta=pv.schedules.linear(0, 1, over=0.3), or pv.schedules.cyclical(): warm up"]
    if all(name in found.unit_kl for name in silent) and not set(silent) & set(found.codes):
        advice.append("objective=pv.FreeBits(0.1): nats per unit that cost nothing")
        total = max(5, round(found.total_kl + 5))
        advice.append(f"objective=pv.TargetKL({total}): a KL to hold")
    if len(found.kl) == 1:
        advice.append("objective=pv.Lagging(x): train the encoder ahead of the decoder")
        if kinds <= set(_NORMAL):
            advice.append(
                "posterior=BatchNormGaussian, DeltaGaussian or FixedScaleGaussian: a floor by "
                "construction"
            )
        advice.append('network="skip": the code enters each layer of the decoder')
    else:
        advice.append("a guide from the top down (LadderVAE, TopDownVAE): each layer sees the data")
    advice.append("a weaker decoder, as observation=partial(MADE, input_dropout=0.5)")
    advice.append(
        "stronger inference: objective=pv.IWAE(5), or posterior=InverseAutoregressiveFlow"
    )
    return advice


def report(found: Any) -> str:
    """Return the diagnosis as text of at most 100 columns."""
    lines = [
        *_wrapped(found.verdict),
        "",
        _ROW.format("site", "KL", "±", "active", "by KL", "Var q"),
    ]
    for name, kl in found.kl.items():
        units = found.variance[name].numel() if name in found.variance else None
        by_kl = found.active_by_kl.get(name)
        spread = found.posterior_variance.get(name)
        lines.append(
            _ROW.format(
                name,
                f"{kl:.3f}",
                f"{found.kl_stderr.get(name, math.nan):.3f}",
                "-" if units is None else f"{found.active_units[name]}/{units}",
                "-" if by_kl is None else str(by_kl),
                "-" if spread is None else f"{spread.mean().item():.3f}",
            )
        )
    lines.append("")
    lines.append(f"log p(x | z), z from the guide  {found.reconstruction:10.3f} nats")
    lines.append(f"log p(x | z), z from the prior  {found.prior_reconstruction:10.3f} nats")
    if found.cures:
        lines += ["", "What may help:", *(f"- {cure}" for cure in found.cures)]
    return "\n".join(lines)


_ROW = "{:<12}{:>10}{:>9}{:>10}{:>8}{:>9}"


def _wrapped(text: str, width: int = 100) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def as_dict(found: Any) -> dict[str, Any]:
    """Return everything a diagnosis holds, tensors as lists, and what not finite is as None."""
    info = found.information
    return {
        "rows": found.rows,
        "verdict": found.verdict,
        "cures": found.cures,
        "collapsed": list(found.collapsed),
        "kl": found.kl,
        "kl_stderr": {name: _number(value) for name, value in found.kl_stderr.items()},
        "total_kl": found.total_kl,
        "active_units": found.active_units,
        "active_by_kl": found.active_by_kl,
        "reconstruction": found.reconstruction,
        "prior_reconstruction": _number(found.prior_reconstruction),
        "information": None
        if info is None
        else {name: _number(value) for name, value in vars(info).items()},
        "codes": {
            name: {"used": codes.used, "of": len(codes.counts), "perplexity": codes.perplexity}
            for name, codes in found.codes.items()
        },
        **{
            name: {site: value.tolist() for site, value in getattr(found, name).items()}
            for name in ("unit_kl", "variance", "posterior_variance", "histogram")
        },
    }


def _number(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None
