"""Every answer of a verb draws itself: what it holds is on the figure."""

import typing

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.inference.posterior.datum_posterior import PassPosterior

N = 30
ROW = torch.linspace(0.5, 1.5, N)
NAN = torch.full((N,), torch.nan)
LATENT = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
DRAWS = torch.randn(2, 9, N, 2, generator=torch.Generator().manual_seed(1))


class _Posterior(PassPosterior):
    """An answer of `infer` whose means are known."""

    def __init__(self, mean):
        self._mean = mean

    mean = property(lambda self: self._mean)


def refined(samples):
    rows = {name: value.mean((0, 1)) for name, value in samples.items()}
    each = (ROW, ROW, ROW, ROW.long(), ROW)
    return pv.Refined(samples, rows, rows, *each, 5)


def refined_globals(samples):
    parts = [{name: value.mean((0, 1)) for name, value in samples.items()} for _ in range(4)]
    return pv.RefinedGlobals(samples, *parts, 0.9, 0, 0.1, 5)


HISTORY = {"epoch": np.arange(3.0), "elbo": np.zeros(3), "loss": np.array([3.0, 2.0, 1.0])}
TOPICS = [[f"word{k}{t}" for t in range(5)] for k in range(40)]
HOLES = torch.arange(N * 2).reshape(N, 2) % 3 == 0
# One of each kind, and the number that its figure must show, by what is read off it.
ANSWERS = {
    "Run": pv.Run(None, HISTORY, 3, 3, torch.device("cpu")),
    "LogLikelihood": pv.LogLikelihood(-ROW, 9 * ROW, ROW, 30),
    "AnnealedLikelihood": pv.AnnealedLikelihood(-ROW, 9 * ROW, NAN, 8, ROW),
    "Sandwich": pv.Sandwich(-ROW, ROW, LATENT),
    "Classes": pv.Classes(torch.softmax(4 * LATENT, 1), -ROW, 9 * ROW),
    "CodeUsage": pv.CodeUsage(torch.tensor([0, 5, 20, 1])),
    "Imputed": pv.Imputed(LATENT, HOLES, HOLES * 0.1, 9 * ROW, 20),
    "Gaps": pv.Gaps(ROW, ROW - 1, ROW - 2, ROW / 9, ROW / 9, ROW / 9, "a", {"a": ROW}, ROW),
    "Topics": pv.Topics(TOPICS, torch.zeros(40, 5).long(), torch.linspace(-1, 1, 40), 0.5),
    "Perplexity": pv.Perplexity(800.0, 9.0, 700.0, torch.nan),
    "PerStep": pv.PerStep(3.0, 0.1, 2.0, 0.1, kl=ROW),
    "FeatureDistances": pv.FeatureDistances(ROW, 0.3, LATENT, LATENT + 1),
    "AggregatedPosterior": pv.AggregatedPosterior(1.0, 0.1, 0.5, LATENT, LATENT + 1, 0.9),
    "Refined": refined({"z": DRAWS}),
    "RefinedGlobals": refined_globals({"w": DRAWS, "b": DRAWS[..., 0, 0]}),
    "Amortised": _Posterior(LATENT),
    "LocalPosterior": _Posterior({"a": LATENT, "b": LATENT[:, :1]}),
}


def returned():
    """Yield the classes of this library that public functions and methods of results return."""
    for name in pv.__all__:
        verb = getattr(pv, name)
        if callable(verb) and not isinstance(verb, type):
            hint = typing.get_type_hints(verb).get("return")
            yield from typing.get_args(hint) or (hint,)


def test_every_answer_has_a_figure():
    own = [each for each in returned() if getattr(each, "__module__", "").startswith("pyro_vae")]
    assert len(own) > 12
    assert [each.__name__ for each in own if not hasattr(each, "plot")] == []
    own = {each.__name__ for each in own} - {"Posterior"}  # the protocol of those of `infer`
    assert own <= {*ANSWERS, "Diagnosis"}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_draws_itself(name):
    figure = ANSWERS[name].plot()
    assert figure.axes and all(axes.has_data() for axes in figure.axes)
    assert all(axes.get_xlabel() for axes in figure.axes)


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_what_a_likelihood_shows():
    left, middle, right = ANSWERS["LogLikelihood"].plot().axes
    assert sum(heights(left)) == sum(heights(middle)) == N
    assert right.lines[0].get_xdata()[0] == 0.7
    some = torch.where(torch.arange(N) < 9, torch.nan, ROW)
    *_, unknown = pv.LogLikelihood(-ROW, 9 * ROW, some, 30).plot().axes
    assert "9 not known" in unknown.get_title(loc="left") and sum(heights(unknown)) == N - 9
    assert len(ANSWERS["AnnealedLikelihood"].plot().axes) == 2  # it has no Pareto shapes
    far = pv.LogLikelihood(-6000310.0 - 2 * (ROW > 1), NAN, ROW * 0 + 0.5, 30).plot()
    left, middle, right = far.axes
    assert [height for height in heights(left) if height] == [N / 2, N / 2]
    assert [t.get_text() for t in middle.texts] == ["known of no datum"]
    (bar,) = [each for each in right.patches if each.get_height()]
    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(0.5)  # one number is one bar there


def test_chains_are_those_of_the_worst():
    *_, chains = ANSWERS["Refined"].plot().axes
    drawn = torch.tensor(np.array([line.get_ydata() for line in chains.lines]))
    assert any(torch.allclose(drawn, DRAWS[:, :, -1, unit]) for unit in (0, 1))
    left, right = refined_globals({"w": DRAWS}).plot().axes
    worst = DRAWS.mean((0, 1)).flatten().argmax()
    assert len(left.get_yticklabels()) == 30 and "30 more" in left.get_title(loc="left")
    drawn = torch.tensor(np.array([line.get_ydata() for line in right.lines]))
    assert torch.allclose(drawn, DRAWS.flatten(2)[..., worst])


def test_what_the_others_show():
    lower = ANSWERS["Sandwich"].plot().axes[0].collections[0].get_offsets()
    assert np.allclose(lower, torch.stack([-ROW, ROW], 1))
    (codes,) = ANSWERS["CodeUsage"].plot().axes
    assert codes.patches[0].get_data().values.tolist() == pytest.approx(
        [20 / 26, 5 / 26, 1 / 26, 0]
    )
    holes, draws = ANSWERS["Imputed"].plot().axes
    assert sum(heights(holes)) == int(HOLES.sum()) and sum(heights(draws)) == N
    (topics,) = ANSWERS["Topics"].plot().axes
    assert len(topics.patches) == 30 and "10 between" in topics.get_title(loc="left")
    assert topics.get_yticklabels()[0].get_text().startswith("word390 word391")
    (means,) = ANSWERS["Amortised"].plot().axes
    assert np.allclose(means.collections[0].get_offsets(), LATENT)


def test_costs_are_told_with_their_numbers():
    """Errors where they are known: that of the corpus is not."""
    (axes,) = ANSWERS["Perplexity"].plot().axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["per document  800 ± 9", "of the corpus  700"]


def test_a_diagnosis_draws_itself():
    found = pv.diagnose(pv.models.VAE(4, 2, (3,)), torch.ones(30, 4), probes=5)
    assert len(found.plot().axes) == 3


def test_a_monitor_draws_what_it_saw():
    x, monitor = torch.ones(8, 4), pv.CollapseMonitor(torch.ones(8, 4), probes=5)
    pv.fit(pv.models.VAE(4, 2, (3,)), x, epochs=1, callbacks=[monitor], compile=False)
    assert monitor.plot().axes[0].lines
    assert repr(monitor).startswith("CollapseMonitor(1 diagnosis, last Diagnosis(z: ")


def test_errors_of_several_sites_and_of_data_frames_are_drawn():
    found = ANSWERS["Imputed"]
    two = {"a": found.stderr, "b": found.stderr}
    both = pv.Imputed(two, {"a": HOLES, "b": HOLES}, two, found.ess, 20)
    assert sum(heights(both.plot().axes[0])) == 2 * int(HOLES.sum())
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(np.asarray(part)) for part in (HOLES, found.stderr)]
    one = pv.Imputed(frames[1], *frames, found.ess, 20)
    assert sum(heights(one.plot().axes[0])) == int(HOLES.sum())
