"""Threads and processes that do things at once: to one process, to one folder."""

import os
import random
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from benchmarks.faults.children import Forked, Say, is_ours
from benchmarks.faults.trials import Kind, Trial

_X = (torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_SPAWNS = 50  # one in so many trials: a spawned process imports everything anew


def _program(seed: int) -> pv.models.VAE:
    torch.manual_seed(seed)
    return pv.models.VAE(6, 2, (5,))


def _weights(program: Any) -> dict[str, Any]:
    return {k: v.tolist() for k, v in program.state_dict().items()}


def _train(seed: int, out: Path | None = None) -> dict[str, Any]:
    """Train a program of a seed; return its weights as lists, which any process can send."""
    program = _program(seed)
    _fit(program, seed, out)
    return _weights(program)


def _fit(program: Any, seed: int, out: Path | None = None, **options: Any) -> pv.Run:
    settings = {"epochs": 3, "batch_size": 12, "progress": False, "compile": False}
    return pv.fit(program, _X, seed=seed, out=out, **{**settings, **options})


class _Here:
    """The answers of one process and one thread."""

    def __init__(self) -> None:
        self.trained = {seed: _train(seed) for seed in range(4)}
        self.codes = {seed: pv.encode(_program(seed), _X) for seed in range(4)}


def _pool(pool: Executor, here: _Here, rng: random.Random) -> str:
    """Fit in the workers of a pool, and say what differs from a fit alone."""
    seeds = [rng.randrange(4) for _ in range(3)]
    futures = [pool.submit(_train, seed) for seed in seeds]
    wrong = []
    for seed, future in zip(seeds, futures, strict=True):
        error = future.exception()
        if error is not None and not isinstance(error, pv.errors.ConfigError):
            wrong.append(f"{type(error).__name__}: {error}")
        elif error is None and future.result() != here.trained[seed]:
            wrong.append(f"seed {seed} differs from a fit alone")
    return "; ".join(wrong)


def _threads(here: _Here, rng: random.Random) -> str:
    """Build programs first: a constructor draws from the generator that a fit in a thread uses."""
    seeds = [rng.randrange(4) for _ in range(3)]
    programs = [_program(seed) for seed in seeds]
    wrong: list[str] = []

    def work(seed: int, program: Any) -> None:
        try:
            _fit(program, seed)
        except pv.errors.ConfigError:
            return
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        if _weights(program) != here.trained[seed]:
            wrong.append(f"seed {seed} differs from a fit alone")

    before = torch.get_rng_state()
    _together([partial(work, *pair) for pair in zip(seeds, programs, strict=True)])
    if not torch.equal(before, torch.get_rng_state()):
        wrong.append("the global generator has moved")
    return "; ".join(wrong)


def _verbs_beside_a_fit(here: _Here, rng: random.Random) -> str:
    """Call verbs in other threads while one trains: refused, or before and after it."""
    seed, wrong = rng.randrange(4), []
    trained, asked, stop = _program(seed), _program(3 - seed), threading.Event()
    calls = [pv.encode, pv.elbo, pv.reconstruct, lambda p, x: pv.generate(p, 3)]
    rng.shuffle(calls)

    def ask(call: Callable[..., Any]) -> None:
        while not stop.is_set():
            try:
                call(asked, _X)
            except pv.errors.ConfigError:
                continue
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
                return

    pv.encode(asked, _X)
    threads = [threading.Thread(target=ask, args=(call,)) for call in calls[:2]]
    for thread in threads:
        thread.start()
    try:
        _fit(trained, seed)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if _weights(trained) != here.trained[seed]:
        wrong.append(f"{calls[:2]}: the fit differs from one alone")
    return "; ".join(wrong)


def _verbs(here: _Here, rng: random.Random) -> str:
    """Ask several programs at once: each answers as alone."""
    programs, wrong = {seed: _program(seed) for seed in range(4)}, []

    def ask(seed: int) -> None:
        if not torch.equal(pv.encode(programs[seed], _X), here.codes[seed]):
            wrong.append(f"the codes of {seed} differ")

    _together([partial(ask, seed) for seed in range(4)])
    return "; ".join(wrong)


def _thread_pool(here: _Here, rng: random.Random) -> str:
    """Forked workers of a pool that another thread has made while one trains."""
    seed, answers = rng.randrange(4), []
    trained = _program(seed)

    def beside(run: pv.Run) -> None:
        if len(run.history["loss"]) == 1:
            with ThreadPoolExecutor(1) as threads:
                answers.append(threads.submit(_fork_pool, here, rng).result())

    _fit(trained, seed, callbacks=[beside])
    if _weights(trained) != here.trained[seed]:
        answers.append("the fit differs from one alone")
    return "; ".join(answer for answer in answers if answer)


def _fork_pool(here: _Here, rng: random.Random) -> str:
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        return _pool(pool, here, rng)


def _spawn_pool(here: _Here, rng: random.Random) -> str:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return _pool(pool, here, rng)


def _one_folder(here: _Here, rng: random.Random) -> str:
    """Runs of several processes that want one folder: one gets it, the others are told."""
    with tempfile.TemporaryDirectory() as home:
        folder, wrong = Path(home) / "run", []

        def action(seed: int) -> Callable[[Say], None]:
            return lambda say: say(f"done {_train(seed, folder) == here.trained[seed]}")

        children = [Forked(action(seed)) for seed in range(3)]
        for child in children:
            if not child.wait(60):
                wrong.append("hung")
            elif child.error is not None and not is_ours(child.error):
                wrong.append(child.error)
        done = sum("done True" in child.lines for child in children)
        if done != 1:
            wrong.append(f"{done} of 3 runs have the folder: {[c.error for c in children]}")
        elif _weights(pv.load(folder)) not in here.trained.values():
            wrong.append("the folder holds another program than was trained")
        left = {path.name for path in folder.iterdir() if path.name.startswith((".", "lock"))}
        return "; ".join([*wrong, *left])


def _saves(here: _Here, rng: random.Random) -> str:
    """Processes that save different programs into one folder while one reads it."""
    with tempfile.TemporaryDirectory() as folder:
        programs = {seed: _program(seed) for seed in range(3)}
        expected = [_weights(program) for program in programs.values()]

        def action(seed: int) -> Callable[[Say], None]:
            def save(say: Say) -> None:
                for _ in range(10):
                    pv.save(programs[seed], folder)

            return save

        pv.save(programs[0], folder)
        children, wrong = [Forked(action(seed)) for seed in programs], []
        while any(not child.ends_within(0.0) for child in children) and not wrong:
            try:
                if _weights(pv.load(folder)) not in expected:
                    wrong.append("a mixture of programs was read")
            except pv.errors.PyroVaeError as error:
                wrong.append(f"{type(error).__name__}: {error}")
        for child in children:
            child.wait(60)
            if child.error is not None:
                wrong.append(child.error)
        if os.listdir(folder) != ["program.safetensors"]:
            wrong.append(f"left behind: {os.listdir(folder)}")
        return "; ".join(wrong)


def _together(actions: list[Callable[[], None]]) -> None:
    barrier = threading.Barrier(len(actions))

    def begin(action: Callable[[], None]) -> None:
        barrier.wait()
        action()

    threads = [threading.Thread(target=begin, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_RACES: dict[str, Callable[[_Here, random.Random], str]] = {
    "fits in threads": _threads,
    "verbs beside a fit": _verbs_beside_a_fit,
    "verbs in threads": _verbs,
    "forked pool": _fork_pool,
    "forked pool beside a fit": _thread_pool,
    "runs in one folder": _one_folder,
    "saves in one folder": _saves,
}


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    here = _Here()
    for number in range(first, 10**9):
        rng = random.Random(f"{seed}/{number}")
        name = "spawned pool" if number % _SPAWNS == 0 else rng.choice(list(_RACES))
        race = _RACES.get(name, _spawn_pool)
        try:
            wrong = race(here, rng)
        except Exception as error:
            yield Trial(name, "raw", f"{type(error).__name__}: {error}")
        else:
            yield Trial(name, "wrong" if wrong else "ok", wrong)


RACES = Kind(
    name="races",
    unit="races of threads and processes",
    target=400,
    how="fits, verbs, pools of threads and of forked and spawned processes, runs and saves in one "
    "folder, at once; each answer is that of one thread alone, bit by bit, or an error of the "
    "library, and the folder holds one whole program",
    trials=_trials,
)
