"""Programs of single-cell packages: scvi-tools, cell2location, CellBender."""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from pyro.infer.autoguide import AutoNormal, init_to_mean

from benchmarks.gallery.loading import load
from benchmarks.gallery.subject import (
    ENUM,
    NO_CODE,
    N,
    Published,
    Subject,
    counts,
    generator,
)

GENES, FACTORS = 8, 3
_CELL, _AMBIENT = 500.0, 30.0  # counts of a droplet


def decipher(_: Path) -> Subject:
    from scvi.external.decipher._module import DecipherPyroModule

    program = DecipherPyroModule(GENES, 2, 4, (8,), (8,))
    return Subject(program.model, program.guide, counts(N, GENES), N)


def topics(_: Path) -> Subject:
    from scvi.module import AmortizedLDAPyroModule

    program = AmortizedLDAPyroModule(GENES, FACTORS, 8)
    program.model.n_obs = program.guide.n_obs = N  # as the package's training plan sets it
    x = counts(N, GENES)
    return Subject(program.model, program.guide, (x, x.sum(1)), N)


def _batches() -> torch.Tensor:
    return (torch.arange(N) % 2)[:, None]


def _guided(model: torch.nn.Module, data: tuple[torch.Tensor, ...]) -> Subject:
    """Return a model of cell2location under the guide that it trains with."""
    guide = AutoNormal(model, init_loc_fn=init_to_mean, create_plates=model.create_plates)
    return Subject(model, guide, data, N)


def locations(path: Path) -> Subject:
    signatures = np.random.RandomState(0).gamma(1.0, 1.0, (GENES, FACTORS)).astype("float32")
    module = load(path)
    model = module.LocationModelLinearDependentWMultiExperimentLocationBackgroundNormLevelGeneAlphaPyroModel(  # noqa: E501
        n_obs=N, n_vars=GENES, n_factors=FACTORS, n_batch=2, cell_state_mat=signatures, n_groups=4
    )
    return _guided(model, (counts(N, GENES), torch.arange(N), _batches()))


def signatures(path: Path) -> Subject:
    model = load(path).RegressionBackgroundDetectionTechPyroModel(
        n_obs=N, n_vars=GENES, n_factors=FACTORS, n_batch=2
    )
    labels = (torch.arange(N) % FACTORS)[:, None]
    covariates = torch.zeros(N, 1, dtype=torch.long)
    return _guided(model, (counts(N, GENES), torch.arange(N), _batches(), labels, covariates))


def _droplets() -> torch.Tensor:
    """Return counts of droplets with a cell and of empty ones in turn, (N, genes)."""
    rates = torch.full((N, 1), _CELL / GENES)
    rates[::2] = _AMBIENT / GENES
    uneven = 2 * torch.rand(N, GENES, generator=generator(4))
    return torch.poisson(rates * uneven, generator=generator(5))


def background(path: Path, kind: str) -> Subject:
    sys.path.insert(0, str(path.parents[2]))
    module = load(path)
    encoders = load(path.parent / "vae" / "encoder.py")
    decoders = load(path.parent / "vae" / "decoder.py")
    crossover = math.log(120.0)  # between counts of empty droplets and of cells
    share = torch.full((GENES,), 1 / GENES)
    priors = {
        "d_std": 0.3,
        "d_empty_std": 0.3,
        "cell_counts": _CELL,
        "empty_counts": _AMBIENT,
        "chi_ambient": share,
        "chi_bar": share,
        "cell_logit": torch.tensor(0.0),
        "log_counts_crossover": crossover,
    }
    codes = encoders.EncodeZ(GENES, [12], FACTORS, "normalize")
    others = encoders.EncodeNonZLatents(
        n_genes=GENES,
        z_dim=FACTORS,
        log_count_crossover=crossover,
        prior_log_cell_counts=math.log1p(_CELL),
        empty_log_count_threshold=math.log1p(50),
        prior_logit_cell_prob=0.0,
        input_transform="log_normalize",
    )
    program = module.RemoveBackgroundPyroModel(
        model_type=kind,
        encoder=encoders.CompositeEncoder({"z": codes, "other": others}),
        decoder=decoders.Decoder(input_dim=FACTORS, hidden_dims=[12], output_dim=GENES),
        dataset_obj_priors=priors,
        n_analyzed_genes=GENES,
        n_droplets=N,
        analyzed_gene_names=np.arange(GENES),
        empty_UMI_threshold=50,
        log_counts_crossover=crossover,
        use_cuda=False,
    )
    # Medians over the droplets of a batch stand in its terms, and droplets of both kinds must.
    return Subject(program.model, program.guide, _droplets(), N, elbo=ENUM, joint=True)


def background_full(path: Path) -> Subject:
    return background(path, "full")


def background_ambient(path: Path) -> Subject:
    return background(path, "ambient")


_CELL2LOCATION = "BayraktarLab/cell2location/cell2location/models/"
# Where a term joins the droplets, none has a density of its own; and the published distribution
# of the counts has a density alone.
_NO_DENSITY = "log_likelihood", "ais", "bdmc", "refine", "infer", "gaps"
_NO_DRAWS = "generate", "reconstruct", "interpolate"
_CELLBENDER = "broadinstitute/CellBender/cellbender/remove_background/model.py"
ROWS = [
    Published("scvi-tools Decipher", "", decipher, ("bdmc", "generate"), needs="scvi"),
    Published("scvi-tools AmortizedLDA", "", topics, needs="scvi"),
    Published(
        "cell2location", f"{_CELL2LOCATION}_cell2location_module.py", locations, needs="scvi"
    ),
    Published(
        "cell2location reference",
        f"{_CELL2LOCATION}reference/_reference_module.py",
        signatures,
        NO_CODE,
        needs="scvi",
    ),
    Published("CellBender full", _CELLBENDER, background_full, (*_NO_DENSITY, *_NO_DRAWS)),
    Published("CellBender ambient", _CELLBENDER, background_ambient, (*_NO_DENSITY, *_NO_DRAWS)),
]
