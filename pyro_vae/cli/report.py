"""What is said: progress, the figures of a run as a table, and complaints."""

import os
import sys
from typing import Any

from pyro_vae.arguments import shortened


def complain(message: str, code: int) -> int:
    """Write one line to stderr; return the exit code."""
    print(f"pyro-vae: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def warn(message: Any, *where: Any) -> None:
    """Write a warning as one line; a `warnings.showwarning`."""
    print(f"pyro-vae: warning: {' '.join(str(message).split())}", file=sys.stderr)


def say(text: str, end: str = "\n") -> None:
    """Write to stdout at once; end the process quietly where nobody reads on, as behind ``| head``.

    Arguments:
        text: what to write.
        end: what follows it.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end: that must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as the shell has it of a process that SIGPIPE ended


def heading(figures: dict[str, Any]) -> str:
    """Return on which data figures were measured; no binarization is not worth a word."""
    drawn = "" if figures["binarization"] == "none" else ", binarization {binarization}"
    part = "all rows" if figures["split"] == "all" else f"{figures['split']} split"
    return f"{{data}}, {part}, {{rows}} data{drawn}".format(**figures)


_Row = tuple[str, str, str, str]  # a name, its number, what follows it, a note
_LETTERS = 44  # of a name of a row, at most


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a table a person reads: as wide as the longest name and number need."""
    rows = _rows(figures)
    name, number, rest = (max(len(row[column]) for row in rows) for column in range(3))
    lines = [f"  {a:<{name}}  {b:>{number}}{c:<{rest}}  {note}" for a, b, c, note in rows]
    rule = "─" * max(map(len, lines))
    return "\n".join([heading(figures), rule, *lines, rule])


def _rows(figures: dict[str, Any]) -> list[_Row]:
    def value(label: str, name: str, note: str) -> _Row:
        error = figures[f"{name}_stderr"]
        return label, f"{figures[name]:.2f}", "" if error is None else f" ± {error:.2f}", note

    def of(what: str, site: str) -> str:
        return f"{what} {shortened(site, _LETTERS - len(what))}"

    count, shared = figures["rows"], "global_kl" in figures
    draws = f"1/{count} of the KL of globals in it" if shared else "1 draw each"
    rows = [
        value("ELBO", "elbo", f"nats per datum, {draws}"),
        value(
            "log-likelihood", "log_likelihood", f"nats per datum, K = {figures['num_particles']}"
        ),
    ]
    if figures.get("median_ess") is not None:
        share = figures["share_k_above_0.7"]
        told = "k unknown" if share is None else f"k > 0.7 for {100 * share:.1f} % of the data"
        of_all = f" of {figures['num_samples']}"
        rows.append(
            ("effective samples", f"{figures['median_ess']:.2f}", of_all, f"median; {told}")
        )
    if "per_step" in figures:
        note = "nats, minus the sum of ELBOs / steps"
        rows.insert(1, value("bound per step", "per_step", note))
    if "reconstruction" in figures:
        note = "E_q log p(x | z), by other draws"
        rows.append(("reconstruction", f"{figures['reconstruction']:.2f}", "", note))
    for site, kl in figures.get("kl", {}).items():
        rows.append((of("KL of", site), f"{kl:.2f}", "", "nats per datum, by these draws"))
        active, units = figures["active_units"].get(site), figures["units"].get(site)
        if units is not None:
            note = "variance of the mean > 0.01 of the prior's, or > that of q"
            rows.append((of("active units of", site), str(active), f" of {units}", note))
    for site, kl in figures.get("global_kl", {}).items():
        note = f"nats once, {kl / count:.2f} for each of {count} data"
        rows.append((of("KL of global", site), f"{kl:.2f}", "", note))
    return rows
