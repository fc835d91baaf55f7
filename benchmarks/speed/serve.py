"""The worker's side of the pipe: standard library only, since it runs under the peers' Python."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(worker: Any) -> None:
    """Answer requests: each names a method of the worker; what it returns is the answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peer prints must not look like an answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("op"))(**request)
        except Exception as error:  # the other side reports it
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Return the wall and CPU seconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
