"""Threads and forks: a call gives the numbers that it gives alone, or is refused by name."""

import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

import pyro_vae as pv
from pyro_vae import threads
from pyro_vae.errors import ConfigError
from pyro_vae.training.fit import fit  # without the look at global states in each thread

X = (torch.rand(40, 7, generator=torch.Generator().manual_seed(4)) > 0.4).float()
FAST = {"epochs": 3, "batch_size": 10, "progress": False}
IN_THE_WAY = "thread 'MainThread' of this process is training"


def build(seed=1):
    torch.manual_seed(seed)
    return pv.models.VAE(7, 2, (5,))


def weights(program):
    return {k: v.clone() for k, v in program.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def alone(seed):
    program = build(seed)
    pv.fit(program, X, seed=seed, compile=False, **FAST)
    return weights(program)


# Each verb of the package that takes a program, at its cheapest.
VERBS = {
    "ais": lambda p, folder: pv.ais(p, X, pv.AIS(num_temperatures=2)),
    "bdmc": lambda p, folder: pv.bdmc(p, 3, pv.AIS(num_temperatures=2)),
    "diagnose": lambda p, folder: pv.diagnose(p, X, probes=10),
    "elbo": lambda p, folder: pv.elbo(p, X),
    "encode": lambda p, folder: pv.encode(p, X, sample=True),
    "fit": lambda p, folder: pv.fit(p, X, **FAST),
    "fitted_log_likelihood": lambda p, folder: pv.fitted_log_likelihood(p, X),
    "gaps": lambda p, folder: pv.gaps(p, X),
    "generate": lambda p, folder: pv.generate(p, 3),
    "infer": lambda p, folder: pv.infer(p, X),
    "interpolate": lambda p, folder: pv.interpolate(p, X, X.flip(0)),
    "load": lambda p, folder: pv.load(folder),
    "log_likelihood": lambda p, folder: pv.log_likelihood(p, X),
    "push_to_hub": lambda p, folder: pv.push_to_hub(p, "owner/name"),
    "reconstruct": lambda p, folder: pv.reconstruct(p, X),
    "refine": lambda p, folder: pv.refine(p, X),
    "save": lambda p, folder: pv.save(p, folder),
    "classify": lambda p, folder: pv.classify(p, X, num_particles=2),
    "aggregated_posterior": lambda p, folder: pv.aggregated_posterior(p, X),
    "feature_distances": lambda p, folder: pv.feature_distances(p, X, lambda x: x),
    "impute": lambda p, folder: pv.impute(p, X, num_particles=3),
    "code_usage": lambda p, folder: pv.code_usage(p, X),
    "topics": lambda p, folder: pv.topics(p, X),
    "perplexity": lambda p, folder: pv.perplexity(p, X),
    "completion": lambda p, folder: pv.completion(p, X, X),
    "per_step": lambda p, folder: pv.per_step(p, X[:, :, None]),
}


def test_every_verb_of_another_thread_is_refused_while_a_run_trains(tmp_path):
    """And none of them has moved a generator or a weight."""
    lower = {name for name in pv.__all__ if name[0].islower()} - {"across_ranks"}  # no verb
    assert {name for name in lower if inspect.isfunction(getattr(pv, name))} == VERBS.keys()
    other, trained = build(5), build(2)
    pv.elbo(other, X)
    pv.save(other, tmp_path)
    before, answers = weights(other), {}

    def call_all():
        for name, verb in VERBS.items():
            try:
                answers[name] = verb(other, tmp_path)
            except Exception as error:
                answers[name] = error

    def meanwhile(run):
        thread = threading.Thread(target=call_all)
        thread.start()
        thread.join(60)

    expected = alone(2)
    pv.fit(trained, X, seed=2, compile=False, callbacks=[meanwhile], **FAST)
    for name, answer in answers.items():
        assert isinstance(answer, ConfigError), (name, answer)
        assert str(answer).startswith(f"{name}: {IN_THE_WAY}"), answer
    assert answers.keys() == VERBS.keys()
    assert same(weights(trained), expected) and same(weights(other), before)
    VERBS["elbo"](other, tmp_path)  # and now it is free


@pytest.mark.parametrize("compile", [False, "trace"])
def test_fits_in_a_pool_of_threads_are_those_of_a_fit_alone_or_refused(compile):
    seeds = [1, 2, 3]
    expected = {seed: alone(seed) for seed in seeds}
    programs = {seed: build(seed) for seed in seeds}
    started, state = threading.Barrier(len(seeds)), torch.get_rng_state()

    def train(seed):
        started.wait(30)
        try:
            return fit(programs[seed], X, seed=seed, compile=compile, **FAST)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(len(seeds)) as pool:
        answers = dict(zip(seeds, pool.map(train, seeds), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    fitted = [seed for seed in seeds if isinstance(answers[seed], pv.Run)]
    assert fitted
    for seed in seeds:
        if seed in fitted:
            assert same(weights(programs[seed]), expected[seed])
        else:
            assert "of this process is training" in answers[seed]
            assert same(weights(programs[seed]), weights(build(seed)))


def test_verbs_wait_for_each_other_and_give_the_numbers_of_a_call_alone():
    programs = [build(seed) for seed in range(4)]
    expected = [pv.encode(program, X) for program in programs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda program: pv.encode(program, X), programs))
            assert all(map(torch.equal, expected, found))


def test_a_thread_that_waits_for_a_waiting_thread_does_not_hang(monkeypatch):
    """The rows of one verb come from a thread that calls another: it is told, after a while."""
    monkeypatch.setattr(threads, "PATIENCE", 0.2)
    program, errors = build(), []

    def rows():
        yield X

        def prepare():
            try:
                pv.encode(program, X)
            except ConfigError as error:
                errors.append(str(error))

        thread = threading.Thread(target=prepare)
        thread.start()
        thread.join(30)
        yield X

    assert len(pv.encode(program, rows())) == 80
    assert len(errors) == 1 and "'MainThread' of this process has been in a verb" in errors[0]


def test_a_callback_may_fit_a_probe():
    probes, probed = [], build(7)

    def probe(run):
        probes.append(pv.fit(probed, X, compile=False, **{**FAST, "epochs": 1}))

    trained = build(2)
    pv.fit(trained, X, seed=2, compile=False, callbacks=[probe], **FAST)
    assert len(probes) == 3 and same(weights(trained), alone(2))


def test_an_error_leaves_the_turn_to_others():
    with pytest.raises(RuntimeError, match="mine"):
        pv.fit(build(), X, compile=False, callbacks=[_fail], **FAST)
    with ThreadPoolExecutor(1) as pool:
        assert same(pool.submit(alone, 3).result(60), alone(3))


def _fail(run):
    raise RuntimeError("mine")


def in_a_fork(action):
    """Return whether an action is true in a forked process; a child that hangs is ended."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if action() else 1)
        finally:
            os._exit(2)
    timer = threading.Timer(20, os.kill, (pid, 9))
    timer.start()
    status = os.waitpid(pid, 0)[1]
    timer.cancel()
    return status == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_forked_while_another_thread_trains_is_free():
    """It has neither the trainer's turn nor its handlers, which no thread of it would undo."""
    expected, outcomes = alone(3), []
    codes = pv.encode(build(5), X)

    def checked():
        return (
            not _PYRO_STACK
            and torch.equal(pv.encode(build(5), X), codes)
            and same(alone(3), expected)
        )

    def inside(batch):
        if not outcomes and _PYRO_STACK:  # a step of the run: its handlers are on the stack
            with ThreadPoolExecutor(1) as pool:
                outcomes.append(pool.submit(in_a_fork, checked).result(30))
        return batch

    trained = build(2)
    pv.fit(trained, X, seed=2, compile=False, transform=inside, **FAST)
    assert outcomes == [True]
    assert same(weights(trained), alone(2))
