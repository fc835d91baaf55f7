"""Sixty wrong calls, as people write them: each ends in one sentence with what was got, what is
expected and what to do, by an error of ours or Python's own of a call that does not fit."""

import inspect

import pytest
from wrong_calls import CALLS
from wrong_calls.subjects import X, fit, pair, vae

import pyro_vae as pv
from benchmarks.faults.bad_calls import doors
from pyro_vae import models, plots
from pyro_vae.errors import PyroVaeError


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("fit", "fit"),
        ("train_model", "fit"),
        ("sample", "generate"),
        ("predict", "generate"),
        ("encode", "encode"),
        ("embed", "encode"),
        ("evaluate", "log_likelihood"),
        ("decode", "reconstruct"),
    ],
)
def test_a_verb_asked_of_a_program_is_named(name, verb):
    for program in (vae(), pair()):
        with pytest.raises(AttributeError, match=rf"write pv\.{verb}\(program, \.\.\.\)"):
            getattr(program, name)


@pytest.mark.parametrize("kind", [pv.models.VAE, pv.Program])
def test_a_property_that_fails_shows_its_own_error(kind):
    """Though it is called as a verb of another library is."""

    class Own(kind):
        @property
        def sample(self):
            return self.absent

    own = Own(6, 2) if kind is pv.models.VAE else Own(lambda x: None, lambda x: None)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        own.sample  # noqa: B018


def test_they_are_sixty_at_least():
    assert len(CALLS) >= 60


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_told_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, words = CALLS[name]
    with pytest.raises((PyroVaeError, TypeError), match=words) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400
    if not isinstance(caught.value, PyroVaeError):  # a call that does not fit, told at the door
        last = caught.traceback[-1].path
        assert "argument" in said
        assert last.parent.name == "wrong_calls" or last.name in ("arguments.py", "contextlib.py")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit(learning_rate=1e-3), "'learning_rate'; did you mean lr"),
        (lambda: fit(early_stopping=3), "did you mean patience"),
        (lambda: fit(max_epochs=3), "did you mean epochs"),
        (lambda: fit(eval_data=X), "did you mean valid"),
        (lambda: fit(train_size=0.8), "did you mean valid"),
        (lambda: fit(per_device_train_batch_size=8), "did you mean batch_size"),
        (lambda: vae(likelihood="poisson"), "did you mean observation"),
        (lambda: fit(weight_decay=0.1), "did you mean optimizer"),
        (lambda: fit(use_gpu=True), "did you mean device"),
        (lambda: fit(train_loader=X), "did you mean data"),
        (lambda: pv.log_likelihood(vae(), X, n_samples=5), "did you mean num_particles"),
        (lambda: pv.generate(vae(), num_samples=5), "did you mean n"),
        (lambda: pv.diagnose(vae(), X, n_samples=3), "did you mean num_particles"),
        (lambda: pv.IWAE(n_samples=3), r"'n_samples'; did you mean num_particles"),
        (
            lambda: pv.refine(vae(), X, num_draws=3),
            r"did you mean settings=pv\.HMC\(num_draws=3\)",
        ),
        (
            lambda: pv.refine(vae(), X, num_samples=3),
            r"did you mean settings=pv\.HMC\(num_draws=3\)",
        ),
        (lambda: pv.infer(vae(), X, num_chains=3), r"did you mean settings=pv\.HMC\(chains=3\)"),
    ],
)
def test_the_name_that_other_libraries_give_an_argument_is_understood(call, words):
    with pytest.raises(TypeError, match=f"unexpected argument .*{words}\\?$"):
        call()


@pytest.mark.parametrize(
    ("room", "name", "meant"),
    [
        (pv, "evaluate", r"pv\.log_likelihood"),
        (pv, "sample", r"pv\.generate"),
        (pv, "train", r"pv\.fit"),
        (pv, "MCMC", r"pv\.refine"),
        (pv, "VAE", r"pv\.models\.VAE"),
        (pv, "AutoNormal", r"pyro\.infer\.autoguide\.AutoNormal"),
        (pv, "Adam", r"torch\.optim\.Adam, as pv\.fit\(\.\.\., optimizer=torch\.optim\.Adam\)"),
        (pv, "StudentT", r"pyro\.distributions\.StudentT"),
        (pv, "log_likelyhood", r"pv\.log_likelihood"),
        (models, "BetaVAE", r"pv\.models\.VAE, with .*beta="),
        (models, "ProdLda", r"pv\.models\.ProdLDA"),
        (models, "IWAE", r"pv\.IWAE"),
        (pv.conditionals, "Normal", r"pv\.conditionals\.Gaussian"),
        (plots, "loss", r"pv\.plots\.curves"),
        (pv.schedules, "warmup", r"pv\.schedules\.linear"),
        (pv.schedules, "cosin", r"pv\.schedules\.cosine"),
    ],
)
def test_the_name_of_something_elsewhere_is_understood(room, name, meant):
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'; did you mean {meant}"):
        getattr(room, name)
    assert not hasattr(room, "_no_such") and not hasattr(room, "zzz")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: fit().loss, r"Run has no attribute 'loss'; did you mean history\['loss'\]\?"),
        (lambda: fit().best_epochs, r"'best_epochs'; did you mean best_epoch\?"),
        (lambda: fit().zzz, r"'zzz'; it has best_epoch, compiled, .*history"),
        (lambda: pv.log_likelihood(vae(), X, num_particles=5).item(), r"'item'; did you mean mean"),
        (
            lambda: pv.Refined({"z": X}, {}, {}, X, X, X, X, X, 3).draws,
            r"Refined has no attribute 'draws'; did you mean samples\?",
        ),
        (lambda: pv.infer(vae(), X).samples, r"Amortised has .*; did you mean sample\(n\)\?"),
        (lambda: pair().fit(X), r"no method 'fit': write pv\.fit\(program, \.\.\.\)"),
        (lambda: vae().loss(X), r"no method 'loss': write pv\.elbo\(program, \.\.\.\) \(its neg"),
    ],
)
def test_what_an_answer_has_not_is_told(ask, said):
    with pytest.raises(AttributeError, match=said):
        ask()


def test_a_callback_needs_no_list():
    seen = []
    fit(callbacks=lambda run: seen.append(run.steps))
    assert seen == [1]


# Called at each step, with arguments that stand without a name: they are spared the check.
WITHIN_STEPS = {"forward", "log_prob", "step", "see", "read", "adapt", "summed_joint", "chain"}


def test_every_door_says_what_its_arguments_are_called():
    """All public functions, constructors and methods but those that take any name."""
    told = {}
    for door in doors():
        kinds = {p.kind for p in inspect.signature(door.function).parameters.values()}
        name = door.name.rpartition(".")[2]
        if inspect.Parameter.VAR_KEYWORD in kinds or name in WITHIN_STEPS:
            continue
        with pytest.raises(TypeError) as caught:
            door.function(*[None] * bool(door.owner), no_such=3)
        told[door.name] = str(caught.value)
        known = f"{name}() got an unexpected argument 'no_such'; "
        assert known in told[door.name] or door.owner, told[door.name]
    raw = [text for text in told.values() if "got an unexpected argument 'no_such'; " not in text]
    assert not raw and len(told) > 200
