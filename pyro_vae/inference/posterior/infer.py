"""``pv.infer``: the posterior of each datum, by the guide, by a climb of its own, or by HMC."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.arguments import counted, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.posterior.datum_posterior import Amortised, LocalPosterior, Posterior
from pyro_vae.inference.posterior.local_fits import Local, fit_local, semi
from pyro_vae.inference.posterior.local_guide import LocalGuide
from pyro_vae.inference.posterior.refine import HMC, refine
from pyro_vae.program.batches.batch import Batch, map_rows, num_rows
from pyro_vae.program.batches.streams import is_stream
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program

How = Literal["amortised", "local", "semi", "hmc"]
_NO_LOCAL = "there is no datum's posterior to infer; refine draws the global latents"
_AMORTISED = Verb("infer", local=_NO_LOCAL)
_FITTED = Verb(
    "infer",
    prior=True,
    local=_NO_LOCAL,
    continuous="use how='amortised', or log_likelihood",
    sums=True,
    each=True,
)
_GLOBALS = Verb("infer", simulates=True)  # rows that are not remembered as data
_SETTINGS = {"amortised": type(None), "local": Local, "semi": Local, "hmc": HMC}


@typed
def infer(
    program: Any,
    data: Any,
    *,
    how: How = "amortised",
    settings: Local | HMC | None = None,
    progress: bool = True,
) -> Posterior:
    r"""Return the posterior of the local latents of each datum, by one of four ways.

    .. math:: q_n(z) \approx p(z \mid x_n)

    - ``"amortised"``: the guide's q(z | x), one pass of a network;
    - ``"semi"``: a Gaussian per datum that starts at the guide's moments and takes 20 steps;
    - ``"local"``: a Gaussian per datum, from the prior to its optimum; no network is asked;
    - ``"hmc"``: draws from p(z | x) itself, by ``pv.refine``.

    Gaussians live in unconstrained coordinates, and not on circles. With global latents all but the
    first are conditional on one draw of them, the first on one for each draw of ``sample``. All but
    the first sum over discrete latents of few values. Data of any number are worked on piece by
    piece; random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``. Of rows that a guide with one factor per
            datum has none for (``AutoNormal``; a ``pv.LocalGuide`` at data without ``row``)
            ``"local"`` and ``"hmc"`` ask the model, at a draw of the globals from the guide.
        data: One row per datum, ``(N, ...)``.
        how: The way.
        settings: ``pv.Local(...)`` for ``"local"`` and ``"semi"``, ``pv.HMC(...)`` for ``"hmc"``.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        An object with ``.sample(n)``, ``(n, N, *plates, *event)`` by site, and ``.mean``; all but
        HMC also with ``.log_prob(values)`` and ``.log_weight(n)``, ``(n, N)``: log p(x, z) - log
        q(z) at n draws, whose mean is the ELBO of each datum.

    Raises:
        ConfigError: An unknown way, or settings of another.
        DataError: Data that the program cannot take.
        ProgramError: No local latent; discrete ones of too many values, angles or no prior (all but
            ``"amortised"``).

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013), arXiv:1206.7051
        | Semi-Amortized Variational Autoencoders (Kim et al., 2018), arXiv:1802.02550
    """
    if how not in get_args(How):
        raise ConfigError(f"how: got {how!r}, expected one of {', '.join(get_args(How))}")
    wanted = _SETTINGS[how]
    if settings is not None and not isinstance(settings, wanted):
        raise ConfigError(
            f"settings: got {type(settings).__name__}, expected "
            f"{'none' if how == 'amortised' else f'pv.{wanted.__name__}(...)'} for how={how!r}"
        )
    asked, data = _program_for(program, data, how)
    if isinstance(settings, HMC) or how == "hmc":
        return refine(asked, data, settings, progress=progress)  # type: ignore[arg-type, return-value]
    if how == "amortised":
        return Amortised(asked.passes(data, _AMORTISED))
    chosen = settings or (semi() if how == "semi" else Local(start="prior"))
    passes = asked.passes(data, replace(_FITTED, of_model=chosen.start == "prior"))
    return LocalPosterior(passes, fit_local(asked, passes.batch, chosen, progress=progress))


def _program_for(program: Any, data: Any, how: How) -> tuple[Program, Batch]:
    """Return who answers: of rows that a guide has no factor for, the model alone."""
    source = program.source if isinstance(program, Program) else program
    if isinstance(source, LocalGuide) and not source.has_rows(data):
        return source.alone, source.named(data)
    asked = Program.of(program)
    alone = how in ("local", "hmc") and not is_stream(data)
    if alone and asked.rows.are_new(asked.adapt(data)):
        model = asked.under_prior()
        few = map_rows(lambda leaf: leaf[:2], model.adapt(data))
        shared = model.read(few).global_
        if shared:
            model.held = _draw_of_globals(asked, asked.adapt(data), shared)
        return model, data
    return asked, data


def _draw_of_globals(
    program: Program, others: Batch, names: tuple[str, ...]
) -> list[dict[str, Tensor]]:
    """Return a draw of what all data share from a guide that has no factor for some rows.

    They stand in for its own, which tell nothing of it.

    Raises:
        ProgramError: They do.
    """
    own = program.rows.own or 0
    places = torch.arange(own) % num_rows(others)
    stand_ins = map_rows(lambda leaf: leaf[places.to(leaf.device)], others)
    with program.passes(program.as_given(stand_ins), _GLOBALS) as passes:
        found = passes.sites.dependence
        if found.informed or found.following:
            raise ProgramError(
                f"infer: got {counted(num_rows(others), 'row')}, expected the {own} that the guide "
                "was trained on, off which it reads its global latents; fit once more with the new "
                "rows among the data"
            )
        next(iter(passes))
        return [{name: draw[name] for name in names} for draw in passes.draws]
