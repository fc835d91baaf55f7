"""More of Pyro's examples and tutorials: regressions, hierarchies, series, mixtures, a tracker."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.contrib.gp as gp
import torch
from pyro import poutine
from pyro.infer import (
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.reparam import DiscreteCosineReparam, LocScaleReparam, StableReparam

from benchmarks.gallery.loading import load
from benchmarks.gallery.subject import (
    ENUM,
    ENUM_2,
    EXAMPLES,
    NO_CODE,
    NO_CONTINUOUS,
    NO_LATENT,
    NO_LOCAL,
    TUTORIALS,
    N,
    Published,
    Subject,
    binary,
    counts,
    generator,
    real,
)

WHOLE = {"whole": True}  # steps of a plate of time depend on each other


def coins_in_a_loop(path: Path) -> Subject:
    module = load(path)
    flips = [torch.tensor(float(i < 6)) for i in range(10)]
    return Subject(module.model, module.guide, {"data": flips}, 1, joint=True)


def coins_held(path: Path) -> Subject:
    program = load(path).BernoulliBetaExample(2)
    return Subject(program.model, program.guide, (True,), 1, objective=TraceGraph_ELBO, joint=True)


def terrain() -> tuple[torch.Tensor, ...]:
    return binary(N), real(N, 1)[:, 0], real(N, 2)[:, 1]


def ruggedness(path: Path, kind: str) -> Subject:
    module = load(path)
    model = module.simple_model if kind == "mle" else module.model
    guide = {
        "mle": lambda: lambda *_: None,
        "custom": lambda: module.custom_guide,
        "normal": lambda: AutoNormal(model),
        "mvn": lambda: AutoMultivariateNormal(model),
    }[kind]()
    return Subject(model, guide, terrain(), N)


def ruggedness_2(path: Path) -> Subject:
    module = load(path)
    return Subject(module.model, module.guide, terrain(), N)


def logits_over_time(path: Path, cells: int | None) -> Subject:
    module = load(path, assign=("rank", "smoke_test"), cells=cells)
    data = {"batch": binary(4, N), "subsample": torch.arange(N), "full_size": N}
    return Subject(module.model, module.guide, data, N, options={"dim": 1}, joint=True)


def boosting(path: Path) -> Subject:
    module = load(path)
    guide = functools.partial(module.guide, index=0)
    return Subject(module.model, guide, 4 + 0.1 * real(N, 1)[:, 0], N)


def of_modules(path: Path, name: str) -> Subject:
    model = getattr(load(path), name)()
    return Subject(model, AutoNormal(model), real(N, 1)[:, 0], N)


def tracker(path: Path) -> Subject:
    module = load(path)
    args = argparse.Namespace(
        num_frames=5,
        max_num_objects=3,
        expected_num_objects=2.0,
        expected_num_spurious=1.0,
        emission_prob=0.8,
        emission_noise_scale=0.1,
    )
    seen = module.generate_data(args)[-1]
    data = {"args": args, "observations": seen}
    return Subject(module.model, module.guide, data, 1, elbo=ENUM_2, joint=True)


def growth(path: Path, name: str, reparam: bool = False) -> Subject:
    module = load(path)
    module.dataset = {"time_step_days": 14.0}  # type: ignore[attr-defined]
    model = getattr(module, name)
    shape = (4, 3) if name == "basic_model" else (4, 2, 3)
    if reparam:
        model = poutine.reparam(model, {"rate": LocScaleReparam(), "init": LocScaleReparam()})
    return Subject(
        model,
        AutoNormal(model, init_scale=0.01),
        counts(*shape, rate=9.0),
        1,
        options=WHOLE,
        joint=True,
    )


def strains(path: Path, kind: str) -> Subject:
    module = load(path)
    seen = counts(4, 2, 3, rate=9.0)
    index = seen.nonzero(as_tuple=False).T
    sparse = {"index": index, "total": seen.sum(-1), "value": seen[tuple(index)]}
    dataset = {
        "features": binary(3, 5),
        "counts": seen,
        "sparse_counts": sparse,
        "time_step_days": 14.0,
    }
    module.dataset = dataset  # type: ignore[attr-defined]
    model = poutine.reparam(module.model, {"rate": LocScaleReparam(), "init": LocScaleReparam()})
    guide: Any = AutoNormal(model, init_scale=0.01)
    if kind == "list":
        guide = AutoGuideList(model)
        blocks = ["coef", "rate_scale", "init_scale"]
        guide.add(
            AutoLowRankMultivariateNormal(poutine.block(model, expose=blocks), init_scale=0.01)
        )
        guide.add(AutoNormal(poutine.block(model, hide=blocks), init_scale=0.01))
    if kind == "local":
        module.guide = guide = AutoGuideList(model)  # type: ignore[attr-defined]
        hidden = ["rate_decentered", "init_decentered"]
        guide.add(AutoLowRankMultivariateNormal(poutine.block(model, hide=hidden), init_scale=0.01))
        guide.add(module.local_guide)
    return Subject(model, guide, {"dataset": dataset}, 1, options=WHOLE, joint=True)


def volatility(path: Path) -> Subject:
    model = poutine.reparam(load(path).model, {"v": DiscreteCosineReparam(), "r": StableReparam()})
    data = 0.1 * real(N, 1)[:, 0]
    return Subject(model, AutoDiagonalNormal(model), data, 1, joint=True)


def schools(path: Path) -> Subject:
    module = load(path)
    return Subject(module.model, module.guide, module.data, 8, joint=True)


def chain_of_coins(path: Path) -> Subject:
    module = load(path)
    prior, _, seen = module.generate_data(N)
    data = {"prior": prior, "obs": seen, "num_obs": N}
    return Subject(module.model, module.guide, data, N, elbo=ENUM, joint=True)


def scoped_mixture(path: Path) -> Subject:
    module = load(path)
    data = {"K": 2, "data": torch.tensor([0.0, 1.0, 2.0, 20.0, 30.0, 40.0])}
    guide = config_enumerate(module.guide)
    return Subject(module.model, guide, data, 6, elbo=ENUM, joint=True)


def named_mixture(path: Path) -> Subject:
    module = load(path)
    data = {"data": torch.tensor([0.0, 1.0, 2.0, 20.0, 30.0, 40.0]), "k": 2}
    return Subject(module.model, module.guide, data, 1, joint=True)


def tree(path: Path) -> Subject:
    module, one = load(path), torch.tensor(1.0)
    data = {"foo": one, "bar": [0 * one, one, 2 * one], "baz": {"noun": 4 * one, "verb": 2 * one}}
    return Subject(module.model, module.guide, {"data": data}, 1, joint=True)


def with_a_size(path: Path) -> Subject:
    model = load(path).Model(N)
    return Subject(model, AutoNormal(model), (real(N, 1)[:, 0], real(N, 2)[:, 1]), N)


def deep_kernel(path: Path) -> Subject:
    module = load(path)
    kernel = gp.kernels.Warping(
        gp.kernels.RBF(input_dim=10, lengthscale=torch.ones(10)), iwarping_fn=module.CNN()
    )
    images, labels = real(6, 1, 28, 28), torch.arange(6) % 3
    program = gp.models.VariationalSparseGP(
        X=images,
        y=labels,
        kernel=kernel,
        Xu=images[:4].clone(),
        likelihood=gp.likelihoods.MultiClass(num_classes=3),
        latent_shape=torch.Size([3]),
        num_data=6,
        whiten=True,
        jitter=1e-4,
    )
    return Subject(program.model, program.guide, (), 1, objective=TraceMeanField_ELBO, joint=True)


def forecast(path: Path, name: str) -> Subject:
    model = getattr(load(path), name)()
    data = {"data": real(N, 1), "covariates": real(N, 2)}
    return Subject(model, AutoNormal(model), data, 1, options=WHOLE, joint=True)


def ridership(path: Path) -> Subject:
    model = load(path).Model()
    data = {"data": real(N, 2), "covariates": torch.zeros(N, 0)}
    return Subject(model, AutoNormal(model, init_scale=0.01), data, 1, joint=True)


def sparse_kernel(path: Path) -> Subject:
    model = load(path).model
    hypers = {
        name: torch.tensor(value)
        for name, value in {
            "expected_sparsity": 2.0,
            "alpha1": 3.0,
            "beta1": 1.0,
            "alpha2": 3.0,
            "beta2": 1.0,
            "alpha3": 1.0,
            "c": 1.0,
        }.items()
    }
    data = {"X": real(N, 4), "Y": real(N, 2)[:, 1], "hypers": hypers}
    return Subject(model, AutoNormal(model, init_scale=0.01), data, 1, joint=True)


def baseball(path: Path, name: str) -> Subject:
    model = getattr(load(path), name)
    data = torch.full((N,), 45.0), torch.randint(8, 22, (N,), generator=generator(6)).float()
    return Subject(model, AutoNormal(model, init_scale=0.01), data, N, joint=True)


def grid(path: Path) -> Subject:
    """Pixels of a picture, by the plates of its rows and its columns; the program has no input."""
    module = load(path, assign=("width", "height", "sparse_pixels"), cells=12)
    module.enumerated = False  # type: ignore[attr-defined]
    return Subject(module.model4, module.guide4, (), 1, joint=True)


def compiled_inference(path: Path) -> Subject:
    module = load(path)
    data = {
        "prior_mean": torch.tensor(1.0),
        "observations": {"x1": torch.tensor(8.0), "x2": torch.tensor(9.0)},
    }
    return Subject(module.model, module.Guide(), data, 1, joint=True)


def notebook_vae(path: Path) -> Subject:
    program = load(path).VAE(z_dim=3, hidden_dim=8)
    return Subject(program.model, program.guide, binary(N, 784), N)


def _rows() -> list[Published]:
    def row(title: str, file: str, build: Callable[..., Subject], without: Any = (), **given: Any):
        return Published(
            title, file, functools.partial(build, **given) if given else build, without
        )

    def ipynb(name: str) -> str:
        return f"{TUTORIALS}{name}.ipynb"

    rows = [
        row("svi_part_i", ipynb("svi_part_i"), coins_in_a_loop, NO_CODE),
        row("svi_part_iii", ipynb("svi_part_iii"), coins_held, NO_CODE),
        row("bayesian_regression_ii", ipynb("bayesian_regression_ii"), ruggedness_2, NO_CODE),
        row("easyguide, by hand", ipynb("easyguide"), logits_over_time, cells=4),
        row("easyguide, group", ipynb("easyguide"), logits_over_time, cells=7),
        row("easyguide, amortised", ipynb("easyguide"), logits_over_time, cells=None),
        row("boosting_bbvi", ipynb("boosting_bbvi"), boosting, NO_CODE),
        row("tracking_1d", ipynb("tracking_1d"), tracker, NO_CODE),
        row("stable", ipynb("stable"), volatility, NO_CODE),
        row("tensor_shapes", ipynb("tensor_shapes"), grid, NO_CODE),
        row("csis", ipynb("csis"), compiled_inference, NO_CODE),
        row("vae, notebook", ipynb("vae"), notebook_vae),
        row("eight_schools", EXAMPLES + "eight_schools/svi.py", schools),
        row(
            "toy_mixture",
            EXAMPLES + "toy_mixture_model_discrete_enumeration.py",
            chain_of_coins,
            NO_LOCAL,
        ),
        row(
            "scoping_mixture",
            EXAMPLES + "contrib/autoname/scoping_mixture.py",
            scoped_mixture,
            NO_CONTINUOUS,
        ),
        row("named mixture", EXAMPLES + "contrib/autoname/mixture.py", named_mixture, NO_CODE),
        row("tree_data", EXAMPLES + "contrib/autoname/tree_data.py", tree, NO_CODE),
        row("svi_torch", EXAMPLES + "svi_torch.py", with_a_size, NO_CODE),
        row("svi_lightning", EXAMPLES + "svi_lightning.py", with_a_size, NO_CODE),
        row("sv-dkl", EXAMPLES + "contrib/gp/sv-dkl.py", deep_kernel, NO_CODE),
        row("bart", EXAMPLES + "contrib/forecast/bart.py", ridership, NO_CODE),
        row("sparse_regression", EXAMPLES + "sparse_regression.py", sparse_kernel, NO_CODE),
    ]
    for kind in ("mle", "custom", "normal", "mvn"):
        without = NO_LATENT if kind == "mle" else NO_CODE
        rows.append(row(f"intro_long, {kind}", ipynb("intro_long"), ruggedness, without, kind=kind))
    for name in ("GlobalModel", "LocalModel"):
        without = NO_CODE if name == "GlobalModel" else ()
        rows.append(row(f"modules, {name}", ipynb("modules"), of_modules, without, name=name))
    for name in ("basic_model", "regional_model", "regional_model2"):
        rows.append(
            row(f"logistic-growth, {name}", ipynb("logistic-growth"), growth, NO_CODE, name=name)
        )
    rows.append(
        row(
            "logistic-growth, reparam",
            ipynb("logistic-growth"),
            growth,
            NO_CODE,
            name="regional_model2",
            reparam=True,
        )
    )
    for kind in ("normal", "list", "local"):
        rows.append(row(f"workflow, {kind}", ipynb("workflow"), strains, NO_CODE, kind=kind))
    for name in ("Model1", "Model2", "Model3"):
        rows.append(
            row(f"forecasting_i, {name}", ipynb("forecasting_i"), forecast, NO_CODE, name=name)
        )
    for name in ("fully_pooled", "not_pooled", "partially_pooled", "partially_pooled_with_logit"):
        without = NO_CODE if name == "fully_pooled" else ()
        rows.append(
            row(f"baseball, {name}", EXAMPLES + "baseball.py", baseball, without, name=name)
        )
    return rows


ROWS = _rows()
