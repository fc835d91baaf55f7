"""Measured figures as JSON files: one file per figure, with what is needed to measure it again."""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_vae as pv

FOLDER = Path(__file__).parent / "results"
_CPUINFO = Path("/proc") / "cpuinfo"
_KINDS = {"family": "cpu family", "model": "model"}  # virtual machines leave out more of the name


def versions() -> dict[str, str]:
    """Return the versions behind a figure."""
    return {
        "pyro_vae": pv.__version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """Return the processor's name, where the system tells it, and which instructions torch uses.

    Ratios depend on it: one does denormal numbers a hundred times slower than others, another one
    has a library of matrix products made for it.
    """
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    facts = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
    name = facts.get("model name") or platform.processor() or platform.machine()
    kind = [f"{word} {facts[key]}" for word, key in _KINDS.items() if key in facts]
    return ", ".join([name, *kind, torch.backends.cpu.get_cpu_capability()])


def command_line() -> str:
    """Return the command that is running, as it is typed in the repository's root."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def by_threads(name: str) -> str:
    """Return the name of a timing: one thread is the main row, others say how many."""
    threads = torch.get_num_threads()
    return name if threads == 1 else f"{name}_{threads}_threads"


@dataclass
class Result:
    """One figure: its value, its standard error, and how it came about."""

    name: str
    value: float
    stderr: float | None
    unit: str
    estimator: str
    published: str
    target: str
    data: str
    binarization: str
    seed: int
    seconds: float
    device: str = "cpu, 1 thread"
    processor: str = field(default_factory=processor)
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    command: str = field(default_factory=command_line)

    def write(self, folder: Path = FOLDER) -> Path:
        """Write the figure to ``<name>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path
