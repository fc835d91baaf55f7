"""The first step in a fresh process: seconds from empty and from full caches, and peak memory.

``python -m benchmarks.speed.first --program vae_64_32_8 --variant "pyro_vae, compile=True"`` prints
one line of JSON. Inductor's cache is ``$TORCHINDUCTOR_CACHE_DIR``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
STEPS = 24
LIMIT = 300  # seconds after which a first step is given up


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB.

    Linux's ``ru_maxrss`` starts at the parent's, hence ``VmHWM``.
    """
    try:
        lines = Path("/proc", "self", "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def first(program: str, name: str, threads: int, device: str) -> dict[str, float]:
    """Build a variant, take its first steps, and return what they cost."""
    began = time.perf_counter()
    import torch
    import torch._dynamo

    from benchmarks.speed.cases import CASES
    from benchmarks.speed.variants import needs_compiler, synchronise, variants

    if needs_compiler(name):
        import torch._inductor.compile_fx
    imported = time.perf_counter()
    torch.set_num_threads(threads)
    case = CASES[program]
    data = case.data(device=device)
    at_rest = peak_mib()
    before = time.perf_counter()
    variant = variants(case, device)[name]()
    with variant.running():
        variant.step(data[0])
        synchronise(device)
        seconds = time.perf_counter() - before
        for index in range(STEPS):
            variant.step(data[index % len(data)])
        synchronise(device)
    found = {
        "import_seconds": imported - began,
        "first_step_seconds": seconds,
        "peak_mib": peak_mib(),
        "peak_mib_before": at_rest,
    }
    if device == "cuda":
        found["peak_device_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def fresh(program: str, name: str, cache: Path, threads: int, device: str) -> dict[str, Any]:
    """Return what the first step costs in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.first", "--program", program]
    command += ["--variant", name, "--threads", str(threads), "--device", device]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"failed": lines[-1].replace(str(ROOT), "")}
    return json.loads(done.stdout.splitlines()[-1])


def first_steps(
    program: str, names: dict[str, bool], cache: Path, threads: int, device: str
) -> dict[str, dict[str, Any]]:
    """Return, for each variant, the cost from an empty cache, and from a full one.

    Arguments:
        program: A key of ``CASES``.
        names: The variants, and whether each has a cache to fill.
        cache: An empty folder; what the first of two processes compiled is left in it.
        threads: CPU threads.
        device: ``cpu`` or ``cuda``.
    """
    found = {}
    for index, (name, cached) in enumerate(names.items()):
        folder = cache / str(index)
        folder.mkdir(parents=True)
        found[name] = {"cold": fresh(program, name, folder, threads, device)}
        if cached:
            found[name]["cached"] = fresh(program, name, folder, threads, device)
    return found


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        print(json.dumps(first(args.program, args.variant, args.threads, args.device)))


if __name__ == "__main__":
    main()
