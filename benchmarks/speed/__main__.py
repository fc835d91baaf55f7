"""Measure, print and write: ``python -m benchmarks.speed``."""

import argparse
import json
import os
import sys
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import torch

import benchmarks.speed
from benchmarks.results import FOLDER, Result
from benchmarks.speed.cases import CASES
from benchmarks.speed.measure import Settings, measure
from benchmarks.speed.peers import PeerError, interpreter
from benchmarks.speed.report import summary, table

FRESH = timedelta(hours=12)


def parsed(argv: list[str]) -> argparse.Namespace:
    """Return the arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=benchmarks.speed.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--programs", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--blocks", type=int, default=11, help="rounds")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a hand-written block")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", metavar="PYTHON", default=os.environ.get("PYRO_VAE_PEERS"))
    parser.add_argument("--parts", nargs="*", choices=("first", "epochs"))
    parser.add_argument("--resume", action="store_true", help="skip what was measured today")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    if args.blocks < 2:
        parser.error("--blocks: quartiles need at least 2")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is at hand")
    try:
        args.peers = interpreter(args.peers, args.device)
    except PeerError as error:
        parser.error(str(error))
    return args


def typed(argv: list[str]) -> str:
    """Return the command; the interpreter of the peers is named as the documentation does."""
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--peers" and index + 1 < len(words):
            words[index + 1] = "peers/bin/python"
    return " ".join(["python -m benchmarks.speed", *words])


def settings_of(args: argparse.Namespace, argv: list[str]) -> Settings:
    """Return how to measure."""
    parts = args.parts
    if parts is None:  # other threads: what a compiler takes and a process holds is known by then
        parts = ("first", "epochs") if args.threads == 1 else ("epochs",)
    return Settings(
        blocks=args.blocks,
        seconds=args.seconds,
        threads=args.threads,
        device=args.device,
        peers=args.peers,
        parts=tuple(parts),
        command=typed(argv),
    )


def measured_today(name: str, settings: Settings, folder: Path) -> Result | None:
    """Return a program's result of the same settings, if it is fresh."""
    path = folder / f"speed_{name}{settings.suffix}.json"
    if not path.exists():
        return None
    row = json.loads(path.read_text())
    details = row["details"]
    if details.get("settings") != settings.record():
        return None
    age = datetime.now(timezone.utc) - datetime.fromisoformat(details["finished"])
    return Result(**row) if age < FRESH else None


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    argv = sys.argv[1:] if argv is None else argv
    args = parsed(argv)
    settings = settings_of(args, argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
    results = []
    for name in args.programs:
        result = measured_today(name, settings, args.out) if args.resume else None
        if result is None:
            result = measure(name, CASES[name], settings)
            result.write(args.out)
        print(table(result.details, f"{result.name}: {result.data} ({result.device})"))
        print(f"  {result.name}.json, {result.seconds:.0f} s\n", flush=True)
        results.append(result)
    print(summary(results))


if __name__ == "__main__":
    main()
