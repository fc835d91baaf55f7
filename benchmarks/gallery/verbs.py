"""The verbs, each on one subject: run, and held against stock Pyro where stock Pyro can say."""

import re
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict

import pyro_vae as pv
from benchmarks.gallery import stock, training
from benchmarks.gallery.stock import Disagreement, agree, tensors
from benchmarks.gallery.subject import Published, Subject
from pyro_vae.errors import ProgramError, PyroVaeError

REPEATS = 24


@dataclass
class Outcome:
    """What came of one verb.

    Arguments:
        status: ``ok``, ``refused``, ``wrong`` or ``raw``.
        message: What was raised, or which numbers disagree.
        checked: Whether a number of stock Pyro stood against it.
        seconds: Wall time.
        measured: When, in UTC.
    """

    status: str
    message: str = ""
    checked: bool = False
    seconds: float = 0.0
    measured: str = ""


class Bench:
    """One published program, and how to make it anew."""

    def __init__(self, row: Published, source: Path) -> None:
        self.row, self.path = row, source / row.path

    def fresh(self, seed: int = 0) -> Subject:
        """Return the subject with the weights of a seed, no parameter of it in Pyro's store."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return self.row.build(self.path)

    def aligned(self) -> tuple[Subject, pv.Program]:
        """Return a subject and its program on the same parameters.

        Stock Pyro runs first: the parameters that the functions ask the store for are then handed
        to the program as ``params``, so that both speak of the same weights.
        """
        subject = self.fresh()
        args, kwargs = subject.arguments
        with torch.no_grad():
            subject.elbo().loss(subject.model, subject.guide, *args, **kwargs)
        stock.evaluating(subject)
        program = pv.Program(subject.model, subject.guide, **_taken_over(), **subject.options)
        return subject, program


def _taken_over() -> dict[str, Any]:
    """Return ``params=`` with what ``pyro.param`` made; a module brings its own tensors along."""
    state = pyro.get_param_store().get_state()
    plain = {
        part: {name: value for name, value in state[part].items() if "$$$" not in name}
        for part in ("params", "constraints")
    }
    store = ParamStoreDict()
    store.set_state(plain)
    return {"params": store} if plain["params"] else {}


def fit_default(bench: Bench) -> bool:
    """Train on minibatches of half of the rows, by the default objective."""
    subject, _ = bench.aligned()
    size = subject.rows if subject.joint else max(1, subject.rows // 2)
    training.require_equal(bench.aligned, None, subject.elbo, size)
    return True


def fit_published(bench: Bench) -> bool:
    """Train on all rows by the objective of the publication."""
    subject, _ = bench.aligned()
    objective = subject.objective or subject.elbo
    training.require_equal(bench.aligned, objective, objective, subject.rows)
    return True


def elbo(bench: Bench) -> bool:
    subject, program = bench.aligned()
    theirs = [-value for value in stock.losses(subject, subject.elbo, REPEATS)]
    ours = [float(pv.elbo(program, subject.data).mean()) for _ in range(REPEATS)]
    per_datum = pv.elbo(program, subject.data)
    if per_datum.shape != (subject.rows,):
        raise Disagreement(f"shape {tuple(per_datum.shape)}, expected ({subject.rows},)")
    agree("elbo", ours, theirs)
    return True


def log_likelihood(bench: Bench) -> bool:
    """At one sample the estimate is the ELBO in expectation; at more it lies above."""
    subject, program = bench.aligned()
    bounds = _bounds(subject)
    answer = pv.log_likelihood(program, subject.data, num_particles=64, num_global_samples=2)
    if answer.log_prob.shape != (subject.rows,):
        raise Disagreement(f"shape {tuple(answer.log_prob.shape)}, expected ({subject.rows},)")
    _finite(answer.log_prob)
    if program.sites.global_:
        return False  # given the globals: no number of stock Pyro's
    single = [
        pv.log_likelihood(program, subject.data, num_particles=1, num_global_samples=1).mean
        for _ in range(REPEATS)
    ]
    agree("log_likelihood of one sample", single, bounds)
    _above("log_likelihood", answer.mean, bounds)
    return True


def _bounds(subject: Subject) -> list[float]:
    """Return stock Pyro's ELBO without weights: what bounds a likelihood."""
    return [-loss for loss in stock.losses(subject, subject.elbo, REPEATS, weighted=False)]


def ais(bench: Bench) -> bool:
    subject, program = bench.aligned()
    bounds = _bounds(subject)
    answer = pv.ais(program, subject.data, _annealing())
    _finite(answer.log_prob)
    if program.sites.global_:
        return False
    _above("ais", answer.mean, bounds)
    return True


def _above(what: str, value: float, bounds: list[float]) -> None:
    """Require that an estimate of log p(x) does not lie below stock Pyro's bound."""
    floor = statistics.fmean(bounds)
    spread = statistics.stdev(bounds)  # of one evaluation: the estimate is one as well
    if value < floor - stock.Z * spread - 1e-3 * abs(floor):
        raise Disagreement(f"{what}: {value:.5g} lies below stock Pyro's ELBO {floor:.5g}")


def bdmc(bench: Bench) -> bool:
    subject, program = bench.aligned()
    pv.elbo(program, subject.data)
    sandwich = pv.bdmc(program, subject.rows, _annealing(), given=subject.data)
    _finite(sandwich.lower)
    _finite(sandwich.upper)
    gap = sandwich.upper - sandwich.lower
    if gap.mean() < -stock.Z * gap.std() / len(gap) ** 0.5 - 1e-3:
        raise Disagreement(f"bdmc: upper minus lower is {gap.mean():.4g}")
    return False


def diagnose(bench: Bench) -> bool:
    subject, program = bench.aligned()
    report = pv.diagnose(program, subject.data, probes=4)
    if not str(report):
        raise Disagreement("an empty report")
    return False


def refine(bench: Bench) -> bool:
    subject, program = bench.aligned()
    settings = pv.HMC(num_draws=6, warmup=6, chains=2, num_leapfrog=2)
    refined = pv.refine(program, subject.data, settings, compile=False)
    if not refined.samples:
        raise Disagreement("no draws of any site")
    _finite(refined.samples)
    _finite(refined.means)
    return False


def infer(bench: Bench) -> bool:
    subject, program = bench.aligned()
    pv.infer(program, subject.data, how="amortised")
    pv.infer(program, subject.data, how="semi", settings=_local())
    return False


def gaps(bench: Bench) -> bool:
    subject, program = bench.aligned()
    bounds = _bounds(subject)
    answer = pv.gaps(program, subject.data, local=_local(), annealed=_annealing(), num_particles=16)
    _finite([answer.log_prob, answer.local_elbo, answer.elbo])
    if program.sites.global_:
        return False  # given the globals: no number of stock Pyro's
    if abs(float(answer.elbo.mean()) - statistics.fmean(bounds)) > stock.Z * (
        statistics.stdev(bounds) + 1e-3 * abs(bounds[0])
    ):
        raise Disagreement(f"gaps: ELBO {answer.elbo.mean():.5g}, stock {bounds[0]:.5g}")
    return True


def generate(bench: Bench) -> bool:
    subject, program = bench.aligned()
    repeats = 8
    drawn = [
        _by_site(pv.generate(program, subject.rows, given=subject.data), subject)
        for _ in range(repeats)
    ]
    theirs = [stock.observed_values(subject, unconditioned=True) for _ in range(repeats)]
    data = stock.observed_values(subject, unconditioned=False)
    for name, value in data.items():
        if name not in drawn[0]:
            raise Disagreement(f"site {name!r} was not generated; got {sorted(drawn[0])}")
        if drawn[0][name].numel() != value.numel():
            raise Disagreement(
                f"site {name!r}: shape {tuple(drawn[0][name].shape)}, data {tuple(value.shape)}"
            )
        if not program.sites.global_ and value.numel() == theirs[0][name].numel():
            ours_m = [float(d[name].double().mean()) for d in drawn]
            agree(f"mean of {name}", ours_m, [float(d[name].double().mean()) for d in theirs])
    return True


def reconstruct(bench: Bench) -> bool:
    subject, program = bench.aligned()
    answer = _by_site(pv.reconstruct(program, subject.data), subject)
    for name, value in stock.observed_values(subject, unconditioned=False).items():
        if name not in answer or answer[name].numel() != value.numel():
            got = tuple(answer[name].shape) if name in answer else sorted(answer)
            raise Disagreement(f"site {name!r}: got {got}, data {tuple(value.shape)}")
        _finite(answer[name])
    return True


def encode(bench: Bench) -> bool:
    subject, program = bench.aligned()
    codes = pv.encode(program, subject.data)
    found = tensors(codes)
    if not found:
        raise Disagreement(f"no code: got {codes!r}")
    _finite(codes)
    if any(len(code) != subject.rows for code in found):
        raise Disagreement(f"shapes {[tuple(c.shape) for c in found]}, {subject.rows} rows")
    means = stock.guide_means(subject)
    named = codes if isinstance(codes, dict) else {}
    if len(means) == 1 and (not named or next(iter(means)) in named):
        name, mean = next(iter(means.items()))
        code = named.get(name, found[0])
        if code.numel() == mean.numel() and not torch.allclose(
            code.reshape(mean.shape).to(mean), mean, rtol=1e-4, atol=1e-5
        ):
            raise Disagreement(f"code {name!r} is not the mean of the guide")
        return True
    return False


def interpolate(bench: Bench) -> bool:
    subject, program = bench.aligned()
    answer = pv.interpolate(program, subject.data, subject.data, steps=3)
    found = tensors(answer)
    if not found or any(value.shape[:2] != (subject.rows, 3) for value in found):
        raise Disagreement(f"shapes {[tuple(v.shape) for v in found]}")
    _finite(answer)
    return False


def save_load(bench: Bench) -> bool:
    """Save a program and load it into one with other weights: equal bounds at equal noise."""
    subject, program = bench.aligned()
    _bound_at(program, subject)
    with torch.no_grad():
        for parameter in program.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1.01)
    expected = _bound_at(program, subject)
    with tempfile.TemporaryDirectory() as folder:
        pv.save(program, Path(folder) / "saved")
        other = bench.fresh(1)
        loaded = other.program()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pv.load(Path(folder) / "saved", into=loaded)
        stock.evaluating(other)
        got = _bound_at(loaded, subject)  # the first data: the seed may have made others
    if not torch.allclose(expected, got, rtol=1e-5, atol=1e-5):
        for warning in told:
            if "only parameters and buffers are kept" in str(warning.message):
                raise ProgramError(f"told in a warning: {warning.message}")
        raise Disagreement(f"bound {got.mean():.6g} after loading, {expected.mean():.6g} before")
    return True


def _bound_at(program: Any, subject: Subject) -> torch.Tensor:
    torch.manual_seed(7)
    return pv.elbo(program, subject.data)


def _by_site(answer: Any, subject: Subject) -> dict[str, torch.Tensor]:
    if isinstance(answer, dict):
        return answer
    names = list(stock.observed_values(subject, unconditioned=False))
    if len(names) != 1:
        raise Disagreement(f"one tensor for the sites {names}")
    return {names[0]: answer}


def _finite(answer: Any) -> None:
    for value in tensors(answer):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise Disagreement(f"not finite: {value.flatten()[:4].tolist()}")


def _annealing() -> pv.AIS:
    return pv.AIS(num_temperatures=6, chains=2, num_leapfrog=2, pilot=60)


def _local() -> pv.Local:
    return pv.Local(num_steps=10, num_particles=2)


VERBS: dict[str, Callable[[Bench], bool]] = {
    "fit": fit_default,
    "fit, published objective": fit_published,
    "elbo": elbo,
    "log_likelihood": log_likelihood,
    "ais": ais,
    "bdmc": bdmc,
    "diagnose": diagnose,
    "refine": refine,
    "infer": infer,
    "gaps": gaps,
    "generate": generate,
    "reconstruct": reconstruct,
    "encode": encode,
    "interpolate": interpolate,
    "save, load": save_load,
}


def outcome(bench: Bench, verb: str) -> Outcome:
    """Run one verb and say what came of it."""
    start = time.perf_counter()
    try:
        checked = VERBS[verb](bench)
        answer = Outcome("ok", checked=checked)
    except Disagreement as error:
        answer = Outcome("wrong", str(error))
    except PyroVaeError as error:
        named = re.search(r"'\w+'|\w+:|\bplate\b|guide|model", str(error)) is not None
        kind = f"{type(error).__name__}: {error}"
        answer = Outcome("refused" if named else "raw", kind)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        answer = Outcome("raw", f"{type(error).__name__}: {str(error)[:300]} ({where})")
    answer.seconds = round(time.perf_counter() - start, 2)
    answer.measured = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    answer.message = re.sub(r"(?<!\w)/(tmp|home|work)/\S+", "...", answer.message)
    return answer
