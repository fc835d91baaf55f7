"""Peers in another process: a worker under another interpreter answers "run n steps".

Weights and data go over as ``.npz``, requests and answers as lines of JSON. The worker measures
itself, so that the pipe costs it nothing.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.speed.cases import Case

FOLDER = Path(__file__).parent
JIT = "NumPyro, jit"
SCAN = "NumPyro, lax.scan"
PYTHAE = "pythae"
NAMES = {"numpyro": "peer_numpyro.py", "pythae": "peer_pythae.py"}


class PeerError(RuntimeError):
    """A worker that did not answer, or said what failed."""


class Peer:
    """A worker with one program.

    Arguments:
        python: The peers' interpreter.
        kind: ``numpyro`` or ``pythae``.
        case: The program; its weights are those of the hand-written twin.
        folder: Where weights and data are put.
        threads: CPU threads.
        batches: Batches of data.
        device: Where it runs.
    """

    def __init__(
        self,
        python: str,
        kind: str,
        case: Case,
        folder: Path,
        *,
        threads: int = 1,
        batches: int = 8,
        device: str = "cpu",
    ) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            [python, str(FOLDER / NAMES[kind])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        path = folder / f"{kind}.npz"
        by_hand, _ = case.twins()
        arrays = {f"w:{n}": p.detach().numpy() for n, p in by_hand.named_parameters()}
        np.savez(path, data=np.stack([x.numpy() for x in case.data(batches)]), **arrays)
        sizes = {"threads": threads, "device": device, **case.peer}
        try:
            self.versions = self.ask("start", file=str(path), **sizes)["versions"]
        except PeerError:
            self.close()
            raise

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            PeerError: The worker failed or is gone.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"{self.kind}: the worker is gone, exit code {self.process.poll()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.kind}: {answer['error']}")
        return answer

    def block(self, mode: str, steps: int) -> Callable[[], tuple[float, float]]:
        """Return the work of one block: it returns the worker's own (wall, CPU) seconds."""

        def work() -> tuple[float, float]:
            answer = self.ask("run", mode=mode, steps=steps)
            return answer["wall"], answer["cpu"]

        return work

    def losses(self, draws: int) -> list[float]:
        """Return losses per datum of the first batch at the present weights."""
        return self.ask("losses", draws=draws)["losses"]

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def numpyro_can(case: Case) -> bool:
    """Return whether the NumPyro worker knows the program: it knows all of them."""
    return case.peer["kind"] in ("vae", "conv", "layered", "iwae")


def pythae_can(case: Case) -> bool:
    """Return whether pythae has the program: it has no ladder of Gaussians."""
    return case.peer["kind"] in ("vae", "conv", "iwae")


def interpreter(path: str | None, device: str = "cpu") -> str | None:
    """Return the peers' interpreter, if it is one with both peers in it; on a GPU NumPyro will do.

    Raises:
        PeerError: It is not there, or lacks a peer.
    """
    if path is None:
        return None
    wanted = "jax, numpyro, torch, pythae" if device == "cpu" else "jax, numpyro"
    code = f"import {wanted}; print('ok')"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise PeerError(f"--peers: {type(error).__name__}, expected a Python") from error
    if "ok" not in done.stdout:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise PeerError(f"--peers: {last}")
    return path


if __name__ == "__main__":
    sys.exit("run python -m benchmarks.speed")
