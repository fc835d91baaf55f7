"""The programs of Pyro's own examples and tutorials."""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, init_to_feasible

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
    one_hot,
    real,
)


def vae(path: Path) -> Subject:
    program = load(path).VAE(z_dim=3, hidden_dim=8)
    return Subject(program.model, program.guide, binary(N, 1, 28, 28), N)


def m2(path: Path, labelled: bool) -> Subject:
    program = load(path).SSVAE(
        output_size=3, input_size=6, z_dim=2, hidden_layers=[5], config_enum="parallel"
    )
    guide = config_enumerate(program.guide, "parallel", expand=True)
    data: Any = (binary(N, 6), one_hot(N, 3)) if labelled else binary(N, 6)
    return Subject(program.model, guide, data, N, elbo=ENUM)


def m2_classifier(path: Path) -> Subject:
    program = load(path).SSVAE(
        output_size=3, input_size=6, z_dim=2, hidden_layers=[5], aux_loss_multiplier=4.0
    )
    data = binary(N, 6), one_hot(N, 3)
    return Subject(program.model_classify, program.guide_classify, data, N)


def cvae(path: Path) -> Subject:
    baseline = load(path.parent / "baseline.py").BaselineNet(5, 5)
    program = load(path).CVAE(2, 5, 5, baseline)
    images = binary(N, 28, 28)
    seen = images.clone()
    seen[:, :14, :14] = -1.0
    return Subject(program.model, program.guide, (seen, images), N)


def dmm(path: Path, num_iafs: int = 0, annealing: float | None = None) -> Subject:
    module = load(path)
    program = module.DMM(
        input_dim=5,
        z_dim=2,
        emission_dim=4,
        transition_dim=4,
        rnn_dim=4,
        num_iafs=num_iafs,
        iaf_dim=4,
    )
    lengths = torch.tensor([4, 3, 4, 2, 3, 4, 2, 4])
    batch = module.poly.get_mini_batch(torch.arange(8), binary(8, 4, 5), lengths)
    data = batch if annealing is None else (*batch, annealing)
    return Subject(program.model, program.guide, data, 8)


def lda(path: Path) -> Subject:
    module = load(path, assign=())
    args = argparse.Namespace(
        num_topics=2, num_words=6, num_docs=N, num_words_per_doc=5, layer_sizes="4"
    )
    words = torch.randint(0, 6, (5, N), generator=generator(4))
    guide = functools.partial(module.parametrized_guide, module.make_predictor(args))
    data = {"data": words, "args": args}
    return Subject(module.model, guide, data, N, elbo=ENUM_2, options={"dim": 1}, joint=True)


def gamma_def(path: Path, kind: str) -> Subject:
    module = load(path)
    program = module.SparseGammaDEF()
    program.top_width, program.mid_width, program.bottom_width, program.image_size = 3, 2, 2, 5
    guide = {
        "custom": lambda: program.guide,
        "auto": lambda: AutoDiagonalNormal(program.model, init_loc_fn=init_to_feasible),
        "easy": lambda: module.MyEasyGuide(program.model),
    }[kind]()
    return Subject(
        program.model,
        guide,
        counts(N, 5),
        N,
        objective=TraceMeanField_ELBO,
        joint=True,
    )


def scanvi(path: Path, labelled: bool) -> Subject:
    program = load(path).SCANVI(
        num_genes=6, num_labels=3, l_loc=2.0, l_scale=0.5, scale_factor=1 / (N * 6)
    )
    guide = config_enumerate(program.guide, "parallel", expand=True)
    data = counts(N, 6), one_hot(N, 3) if labelled else None
    elbo = functools.partial(TraceEnum_ELBO, strict_enumeration_warning=False)
    return Subject(program.model, guide, data, N, elbo=elbo)


def air(path: Path) -> Subject:
    module = load(path)
    program = module.AIR(
        num_steps=2,
        x_size=8,
        window_size=4,
        z_what_size=2,
        rnn_hidden_size=6,
        encoder_net=[5],
        decoder_net=[5],
        predict_net=[5],
        bl_predict_net=[4],
    )
    data = {"data": binary(N, 8, 8), "batch_size": N}
    # The program draws batch_size of the rows itself: the publication hands over all of them.
    return Subject(program.model, program.guide, data, N, objective=TraceGraph_ELBO, joint=True)


def hmm(path: Path, number: int) -> Subject:
    module = load(path)
    model = module.models[str(number)]
    args = argparse.Namespace(
        hidden_dim=4, jit=False, nn_dim=4, nn_channels=2, raftery_parameterization=False
    )
    guide = AutoDelta(poutine.block(model, expose_fn=lambda m: m["name"].startswith("probs_")))
    lengths = torch.tensor([4, 3, 4, 2, 3, 4, 2, 4])
    data = {"sequences": binary(8, 4, 3), "lengths": lengths, "args": args}
    elbo = functools.partial(
        TraceEnum_ELBO,
        max_plate_nesting=1 if number == 0 else 2,
        strict_enumeration_warning=number != 7,
    )
    rows = 1 if number == 0 else 8  # the first loops over its sequences: they are one datum
    return Subject(model, guide, data, rows, elbo=elbo, joint=number == 0)


def capture(path: Path, number: int) -> Subject:
    model = load(path).models[str(number)]
    guide = AutoDiagonalNormal(
        poutine.block(model, expose_fn=lambda msg: msg["name"][:3] in ["phi", "rho"])
    )
    history = binary(N, 4)
    sex = torch.arange(N) % 2.0 if number > 3 else None
    return Subject(model, guide, (history, sex), N, elbo=ENUM)


def gmm(path: Path, full: bool) -> Subject:
    module = load(path, assign=("data", "K"))
    model: Any = module.model
    guide: Any = AutoDelta(
        poutine.block(model, expose=["weights", "locs", "scale"]),
        init_loc_fn=module.init_loc_fn,
    )
    if full:
        module.global_guide, guide = guide, module.full_guide  # type: ignore[attr-defined]
    return Subject(model, guide, module.data, 5, elbo=ENUM, joint=full)


def dpmm(path: Path) -> Subject:
    module = load(path)
    module.T, module.alpha, module.N = 4, 0.5, N  # type: ignore[attr-defined]
    # The notebook defines the pair twice; the second one counts sunspots.
    data = counts(N, 1, rate=40.0)[:, 0]
    return Subject(module.model, module.guide, data, N, joint=True)


def regression(path: Path) -> Subject:
    model = load(path).BayesianRegression(3, 1)
    data = real(N, 3), real(N, 1)[:, 0]
    return Subject(model, AutoDiagonalNormal(model), data, N)


def coins(path: Path, kind: str) -> Subject:
    module = load(path)
    model = {"mle": module.model_mle, "masked": module.masked_model}.get(
        kind, module.original_model
    )
    guide = {"mle": lambda: module.guide_mle, "map": lambda: module.guide_map}.get(
        kind, lambda: AutoDelta(model)
    )()
    return Subject(model, guide, binary(10, 1)[:, 0], 10)


def flow_guide(path: Path) -> Subject:
    module = load(path, assign=("prior", "flow"))
    flow: Any = module.flow
    flow.transform = flow.transform.inv  # the notebook's next line
    drawn = module.likelihood(real(N, 3)).sample((5,))
    elbo = functools.partial(Trace_ELBO, num_particles=4, vectorize_particles=True)
    return Subject(module.model, module.guide, drawn, N, objective=elbo, options={"dim": 1})


def prodlda(path: Path) -> Subject:
    program = load(path).ProdLDA(vocab_size=8, num_topics=3, hidden=5, dropout=0.2)
    return Subject(program.model, program.guide, counts(N, 8), N, objective=TraceMeanField_ELBO)


def flow_prior(path: Path) -> Subject:
    program = load(path).VAE(6, 2)
    return Subject(program.model, program.guide, binary(N, 6), N)


def _rows() -> list[Published]:
    rows = [
        Published("vae", EXAMPLES + "vae/vae.py", vae),
        Published(
            "ss_vae_M2",
            EXAMPLES + "vae/ss_vae_M2.py",
            functools.partial(m2, labelled=False),
        ),
        Published(
            "ss_vae_M2, labels", EXAMPLES + "vae/ss_vae_M2.py", functools.partial(m2, labelled=True)
        ),
        Published("ss_vae_M2, classifier", EXAMPLES + "vae/ss_vae_M2.py", m2_classifier, NO_LATENT),
        Published("cvae", EXAMPLES + "cvae/cvae.py", cvae),
        Published("dmm", EXAMPLES + "dmm.py", dmm),
        Published("dmm, annealed", EXAMPLES + "dmm.py", functools.partial(dmm, annealing=0.3)),
        Published("dmm, flows", EXAMPLES + "dmm.py", functools.partial(dmm, num_iafs=1)),
        Published("lda", EXAMPLES + "lda.py", lda),
    ]
    for kind in ("custom", "auto", "easy"):
        build = functools.partial(gamma_def, kind=kind)
        rows.append(Published(f"sparse_gamma_def, {kind}", EXAMPLES + "sparse_gamma_def.py", build))
    rows += [
        Published(
            "scanvi",
            EXAMPLES + "scanvi/scanvi.py",
            functools.partial(scanvi, labelled=False),
        ),
        Published(
            "scanvi, labels",
            EXAMPLES + "scanvi/scanvi.py",
            functools.partial(scanvi, labelled=True),
        ),
        Published("air", EXAMPLES + "air/air.py", air),
    ]
    for number in range(8):
        build = functools.partial(hmm, number=number)
        without = {6: (*NO_LOCAL, "refine"), 7: NO_CODE}.get(number, NO_LOCAL)
        rows.append(Published(f"hmm {number}", EXAMPLES + "hmm.py", build, without))
    for number in range(1, 6):
        build = functools.partial(capture, number=number)
        path = EXAMPLES + "capture_recapture/cjs.py"
        rows.append(Published(f"capture_recapture {number}", path, build, NO_LOCAL))
    rows += [
        Published("gmm", TUTORIALS + "gmm.ipynb", functools.partial(gmm, full=False), NO_LOCAL),
        Published(
            "gmm, full guide",
            TUTORIALS + "gmm.ipynb",
            functools.partial(gmm, full=True),
            NO_CONTINUOUS,
        ),
        Published(
            "dirichlet_process_mixture",
            TUTORIALS + "dirichlet_process_mixture.ipynb",
            dpmm,
            NO_CONTINUOUS,
        ),
        Published(
            "bayesian_regression",
            TUTORIALS + "bayesian_regression.ipynb",
            regression,
            NO_CODE,
        ),
    ]
    for kind in ("mle", "map", "masked", "auto map"):
        build = functools.partial(coins, kind=kind)
        without = NO_LATENT if kind == "mle" else NO_CODE
        rows.append(Published(f"mle_map, {kind}", TUTORIALS + "mle_map.ipynb", build, without))
    rows += [
        Published("svi_flow_guide", TUTORIALS + "svi_flow_guide.ipynb", flow_guide, needs="zuko"),
        Published("prodlda", TUTORIALS + "prodlda.ipynb", prodlda),
        Published("vae_flow_prior", TUTORIALS + "vae_flow_prior.ipynb", flow_prior, needs="zuko"),
    ]
    return rows


ROWS = _rows()
