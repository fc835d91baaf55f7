"""``python -m benchmarks.faults``: all fault tables, or some, each bounded and resumable."""

import argparse
import importlib
from pathlib import Path

import torch

from benchmarks.faults.trials import Kind, measure
from benchmarks.results import FOLDER

# Imported where asked for: each needs other parts of the library.
KINDS = {
    "kills": ("killed_runs", "KILLS"),
    "signals": ("killed_runs", "SIGNALS"),
    "interrupts": ("interrupts", "INTERRUPTS"),
    "stops": ("stopped_runs", "STOPS"),
    "mutations": ("mutations", "MUTATIONS"),
    "files": ("hostile_files", "HOSTILE"),
    "disks": ("disks", "DISKS"),
    "races": ("races", "RACES"),
    "calls": ("bad_calls", "CALLS"),
    "data": ("bad_data", "BAD_DATA"),
    "ranks": ("ranks", "RANKS"),
    "restarts": ("restarted_ranks", "RESTARTS"),
}


def kind_of(name: str) -> Kind:
    """Return a kind of fault by its name."""
    module, constant = KINDS[name]
    found: Kind = getattr(importlib.import_module(f"benchmarks.faults.{module}"), constant)
    return found


def main() -> None:
    """Measure what the command line asks for, and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON files")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(KINDS)
    if unknown:
        parser.error(f"--only: got {sorted(unknown)[0]!r}, expected some of {', '.join(KINDS)}")
    torch.set_num_threads(1)
    for name in options.only.split(","):
        found = measure(
            kind_of(name), seconds=options.seconds, seed=options.seed, folder=options.out.resolve()
        )
        print(f"{name}: {found['value']:.0f} {found['unit']}; {found['details']['total']}")
        for line in found["details"]["faults"]:
            print(f"  {line}")


if __name__ == "__main__":
    main()
