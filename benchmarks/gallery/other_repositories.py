"""Programs of eight other repositories that hold Pyro programs."""

import functools
import sys
from pathlib import Path

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from torch.nn import functional

from benchmarks.gallery.loading import load
from benchmarks.gallery.subject import (
    ENUM_2,
    NO_CODE,
    N,
    Published,
    Subject,
    binary,
    counts,
    real,
)


def plain_vae(path: Path) -> Subject:
    program = load(path, assign=()).VAE(z_dim=3, hidden_dim=8)
    return Subject(program.model, program.guide, binary(N, 1, 28, 28), N)


def cvae(path: Path) -> Subject:
    baseline = load(path.parent / "baseline.py").BaselineNet(5, 5)
    program = load(path).CVAE(2, 5, 5, baseline)
    images = binary(N, 28, 28)
    seen = images.clone()
    seen[:, 14:, :14] = -1.0
    return Subject(program.model, program.guide, (seen, images), N)


def causal_vae(path: Path) -> Subject:
    sys.path.insert(0, str(path.parent.parent))
    program = load(path).VAE(3, 2, 2, 6, 2, functional.elu, False).double()
    x = torch.cat([real(N, 2), binary(N, 3)], -1).double()
    data = ((x, binary(N).double(), real(N).double()),)  # one argument that is a triple
    return Subject(program.model, program.guide, data, N)


def names_vae(path: Path) -> Subject:
    sys.path.insert(0, str(path.parent.parent))
    program = load(path).FormatVAE(4, 3, 4)
    return Subject(program.model, program.guide, (["ann", "bob", "eve", "joe"],), 4)


def _answers() -> tuple[torch.Tensor, ...]:
    """Return who answered what, and whether rightly: four subjects, three items."""
    number = torch.arange(N)
    return number % 4, number % 3, binary(N)


def items_of_two_parameters(path: Path) -> Subject:
    sys.path.insert(0, str(path.parents[2]))
    program = load(path).TwoParamLog(priors="vague", num_items=3, num_subjects=4)
    return Subject(program.get_model(), program.get_guide(), _answers(), N)


def items_of_words(path: Path) -> Subject:
    """Every subject answers every item, whose text the encoder reads."""
    sys.path.insert(0, str(path.parents[2]))
    program = load(path).Amortized1PL(
        priors="vague", num_items=N, num_subjects=N, vocab_size=5, dropout=0.1, hidden=8
    )
    data = torch.arange(N), counts(N, 5), binary(N, N)
    functions = program.get_model(), program.get_guide()
    return Subject(*functions, data, 1, options={"whole": True}, joint=True)


def replication(path: Path) -> Subject:
    """Reads of loci x cells; copy numbers and what has been replicated are summed out."""
    sys.path.insert(0, str(path.parents[1]))
    program = load(path).pert_infer_scRT(None, None, P=3, K=1)
    program.L = 1  # libraries, as the package counts them before it trains
    loci, cells = 5, 4
    model = functools.partial(
        program.model_s,
        torch.linspace(0.3, 0.6, loci),
        torch.zeros(cells, dtype=torch.long),
        etas=torch.ones(loci, cells, 3) + 8 * torch.eye(3)[2],
        lamb=torch.tensor([0.3]),
    )
    seen = poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("expose_"))
    data = {"data": counts(loci, cells, rate=20.0)}
    return Subject(model, AutoDelta(seen), data, loci, elbo=ENUM_2, joint=True)


def lineages(path: Path, likelihood: str) -> Subject:
    sys.path.insert(0, str(path.parents[1]))
    module = load(path, package="pyrocov")
    times, places, clades, features = 3, 2, 4, 2
    weekly = counts(times, places, clades, rate=4.0)
    index = weekly.nonzero().unbind(-1)
    dataset = {
        "features": real(clades, features),
        "time": torch.arange(float(times)),
        "weekly_clades": weekly,
        "sparse_counts": {"index": index, "total": weekly.sum(-1), "value": weekly[index]},
        "clade_id_to_lineage_id": torch.arange(clades) % 3,
        "lineage_id": {"A": 0, "B": 1, "C": 2},
        "pc_index": torch.arange(places * clades),
    }
    kind = f"reparam-localrate-localinit-{likelihood}"

    def model() -> None:
        module.model(dataset, kind)

    start = module.InitLocFn({**dataset, "weekly_clades": weekly.clone()})
    guide = module.Guide(model, start, 0.1, 2)
    return Subject(model, guide, (), 1, joint=True)


def dense_lineages(path: Path) -> Subject:
    return lineages(path, "dense")


def sparse_lineages(path: Path) -> Subject:
    return lineages(path, "sparse")


_NO_DRAWS = "bdmc", "generate", "reconstruct"  # of data that enter by a factor
_IRT = "nd-ball/py-irt/py_irt/models"
_IRT_2PL = f"{_IRT}/two_param_logistic.py"
_COV = "broadinstitute/pyro-cov/pyrocov/mutrans.py"
_PERT = "shahcompbio/scdna_replication_tools/scdna_replication_tools/pert_model.py"
ROWS = [
    Published("SwordShieldMouse/vae-pyro", "SwordShieldMouse/vae-pyro/architectures.py", plain_vae),
    Published("shenkev/Pyro-Tutorial", "shenkev/Pyro-Tutorial/7_VAE.py", plain_vae),
    Published("ucals/cvae", "ucals/cvae/src/cvae.py", cvae),
    Published("kim-hyunsu/CEVAE-pyro", "kim-hyunsu/CEVAE-pyro/model/vae.py", causal_vae),
    Published(
        "jason-yoo-108/FormatSSVAE",
        "jason-yoo-108/FormatSSVAE/FormatSSVAE/vae.py",
        names_vae,
    ),
    Published("nd-ball/py-irt 2PL", _IRT_2PL, items_of_two_parameters, NO_CODE),
    Published("nd-ball/py-irt amortized", f"{_IRT}/amortized_1pl.py", items_of_words, NO_CODE),
    Published("shahcompbio PERT", _PERT, replication),
    Published("broadinstitute/pyro-cov dense", _COV, dense_lineages, NO_CODE),
    Published("broadinstitute/pyro-cov sparse", _COV, sparse_lineages, (*NO_CODE, *_NO_DRAWS)),
]
