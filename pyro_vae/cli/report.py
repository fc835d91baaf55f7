"""What is said: progress, the figures of a run as a table, and complaints."""

import os
import sys
from typing import Any


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


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a table a person reads."""

    def value(name: str) -> str:
        error = figures[f"{name}_stderr"]
        return f"{figures[name]:8.2f}" + ("" if error is None else f" ± {error:.2f}")

    lines = [
        ("ELBO", value("elbo"), "nats per datum, 1 draw each"),
        (
            "log-likelihood",
            value("log_likelihood"),
            f"nats per datum, K = {figures['num_particles']}",
        ),
    ]
    if "reconstruction" in figures:
        told = f"{figures['reconstruction']:8.2f}"
        lines.append(("reconstruction", told, "E_q log p(x | z), by other draws"))
    if "per_step" in figures:
        lines.insert(
            1, ("bound per step", value("per_step"), "nats, minus the sum of ELBOs / steps")
        )
    for site, kl in figures.get("kl", {}).items():
        active, units = figures["active_units"].get(site), figures["units"].get(site)
        lines.append((f"KL of {site}", f"{kl:8.2f}", "nats per datum, by these draws"))
        if units is not None:
            lines.append(
                (
                    f"active units of {site}",
                    f"{active:5d} of {units}",
                    "variance of the mean > 0.01",
                )
            )
    rows = figures["rows"]
    for site, kl in figures.get("global_kl", {}).items():
        share = f"nats once, {kl / rows:.2f} for each of {rows} data"
        lines.append((f"KL of global {site}", f"{kl:8.2f}", share))
    body = "\n".join(f"  {name:<18}{number:<19}{note}" for name, number, note in lines)
    return f"{heading(figures)}\n{'─' * 66}\n{body}\n{'─' * 66}"
