"""What a diagnosis advises can be done to the very program that was diagnosed."""

import dataclasses
import functools
import re

import pytest
import torch
from programs import CASES

import pyro_vae as pv
from pyro_vae import conditionals
from pyro_vae.inference.objectives.stock import as_objective

KINDS = [
    "sbn", "sbn_autoregressive", "vq", "vq_conv", "hierarchical", "ladder", "top_down", "vae",
    "vae_gaussian", "vae_made", "vae_iaf", "vae_mixture", "linear_full", "def_gamma", "def_layers",
    "def_poisson", "bayesian_vae", "bayesian", "sequences", "tutorial", "functions", "pyroparam",
]  # fmt: skip


@functools.cache
def advised(name):
    """Return program, data and the advice for the program as if all its sites were silent."""
    torch.manual_seed(0)
    program, data = CASES[name].build(), CASES[name].data(24)
    found = pv.diagnose(program, data)
    silent = dataclasses.replace(found, kl=dict.fromkeys(found.kl, 0.01))
    idle = dataclasses.replace(
        found, variance={site: torch.zeros_like(v) for site, v in found.variance.items()}
    )
    return program, data, [*silent.cures, *idle.cures, *found.cures]


@pytest.mark.parametrize("name", KINDS)
def test_every_objective_that_is_advised_gives_a_loss(name):
    program, data, advice = advised(name)
    calls = re.findall(r"pv\.[A-Z]\w*\([^()]*\)", " ".join(advice))
    assert advice
    for call in calls:
        objective = as_objective(eval(call, {"pv": pv, "x": data}))
        wrapped = pv.Program.of(program)
        batch = wrapped.adapt(data)
        updates = objective.updates(wrapped)
        with wrapped.running():
            loss = updates[-1].loss(wrapped.joint(batch))
        assert torch.isfinite(loss) and loss.requires_grad, call
    for call in re.findall(r"pv\.schedules\.\w+\([^()]*\)", " ".join(advice)):
        assert 0 <= eval(call, {"pv": pv})(0.5) <= 1
    if "how=" in " ".join(advice):
        settings = pv.Local(num_steps=2)
        pv.infer(program, data, how="semi", settings=settings)


@pytest.mark.parametrize("name", [name for name in KINDS if CASES[name].rebuilt])
def test_arguments_are_advised_where_the_program_takes_them(name):
    program, _, advice = advised(name)
    text = " ".join(advice)
    for argument in ("posterior", "prior", "network", "observation"):
        if f"{argument}=" in text:
            assert argument in program.config
    for option in re.findall(r"\b\w+(?:Gaussian|Flow|Prior)\b", text):
        kind = "prior" if option.endswith("Prior") else "posterior"
        pv.models.VAE(6, 2, (8,), **{kind: getattr(conditionals, option)})
    if "MADE" in text:
        made = functools.partial(conditionals.MADE, input_dropout=0.5)
        pv.models.VAE(6, 2, (8,), observation=made, network="skip")


def test_no_number_is_minus_nothing():
    found = pv.diagnose(CASES["vae"].build(), CASES["vae"].data(24))
    silent = dataclasses.replace(found, kl=dict.fromkeys(found.kl, -1e-5))
    assert not re.search(r"-0\.0+(?!\d)", silent.report())


def test_a_closed_form_is_advised_where_there_is_one():
    for name, known in (
        ("vae", True),
        ("ladder", True),
        ("hierarchical", False),  # of its top layer alone
        ("vae_vamp", False),
        ("vae_iaf", False),
        ("sbn", False),
    ):
        _, _, advice = advised(name)
        assert ("AnalyticELBO" in " ".join(advice)) is known, name


def test_what_is_advised_depends_on_the_program():
    _, _, sbn = advised("sbn")
    text = " ".join(sbn)
    assert "VIMCO(5)" in text and "RLOO(5)" in text and "schedules" in text
    for refused in (
        "FreeBits",
        "TargetKL",
        "IWAE",
        "posterior=",
        "network=",
        "HMC",
        "semi",
        "MADE",
    ):
        assert refused not in text
    _, _, vae = advised("vae")
    text = " ".join(vae)
    for cure in (
        "FreeBits",
        "TargetKL",
        "Lagging",
        "IWAE",
        "HMCRefined",
        'how="semi"',
        "skip",
        "MADE",
    ):
        assert cure in text
    assert "VIMCO" not in text
    assert "MADE" not in " ".join(advised("vae_gaussian")[2])
    layered = " ".join(advised("hierarchical")[2])
    assert "TopDownVAE" in layered and "HMCRefined" in layered
    assert "posterior=" not in layered and "network=" not in layered
    codes = " ".join(advised("vq")[2])
    assert "pv.VQ()" in codes and "FreeBits" not in codes and "HMC" not in codes
    weights = " ".join(advised("bayesian")[2])
    assert "HMCRefined" not in weights  # it refuses a global latent


def test_what_a_masked_latent_is_advised():
    from evaluation.test_collapse_layers import Masked

    x, on = torch.randn(60, 4), torch.arange(60)[:, None].expand(60, 4) % 2 == 0
    found = pv.diagnose(Masked("rows"), {"x": x, "on": on})
    silent = dataclasses.replace(found, kl={"z": 0.01})
    assert "FreeBits" not in " ".join(silent.cures) and "TargetKL" not in " ".join(silent.cures)
