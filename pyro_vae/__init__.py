"""Deep latent-variable models as plain Pyro programs."""

from typing import TYPE_CHECKING, NoReturn

from pyro_vae import conditionals, data, distributions, errors, models, nn, plots
from pyro_vae._version import __version__
from pyro_vae.evaluation.annealed_likelihood import AIS, AnnealedLikelihood, Sandwich, ais, bdmc
from pyro_vae.evaluation.classify import Classes, classify
from pyro_vae.evaluation.codebook_usage import CodeUsage, code_usage
from pyro_vae.evaluation.codes import encode, interpolate, reconstruct
from pyro_vae.evaluation.diagnose import Diagnosis, diagnose
from pyro_vae.evaluation.feature_space import FeatureDistances, feature_distances
from pyro_vae.evaluation.fitted_likelihood import fitted_log_likelihood
from pyro_vae.evaluation.gaps import Gaps, gaps
from pyro_vae.evaluation.generation import generate
from pyro_vae.evaluation.impute import Imputed, impute
from pyro_vae.evaluation.likelihood import LogLikelihood, log_likelihood
from pyro_vae.evaluation.monitor import CollapseMonitor
from pyro_vae.evaluation.step_costs import PerStep, per_step
from pyro_vae.evaluation.topics import Perplexity, Topics, completion, perplexity, topics
from pyro_vae.evaluation.two_samples import AggregatedPosterior, aggregated_posterior
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.inference.objectives.adversarial_bayes import AVB
from pyro_vae.inference.objectives.aggregated_posterior import AAE, WAE
from pyro_vae.inference.objectives.critics_of_data import VAEGAN, LatentAutoencoder
from pyro_vae.inference.objectives.elbo import ELBO, AnalyticELBO
from pyro_vae.inference.objectives.hmc_refined import HMCRefined
from pyro_vae.inference.objectives.importance_weighted import IWAE, MIWAE, Renyi
from pyro_vae.inference.objectives.kl_control import FreeBits, TargetKL
from pyro_vae.inference.objectives.labelled import SemiSupervised
from pyro_vae.inference.objectives.lagging import Lagging
from pyro_vae.inference.objectives.objective import Objective, TermsObjective, Update
from pyro_vae.inference.objectives.pathwise import STL, DReG
from pyro_vae.inference.objectives.score_function import NVIL, RLOO, VIMCO, DisARM
from pyro_vae.inference.objectives.vector_quantised import VQ
from pyro_vae.inference.objectives.wake_sleep import ReweightedWakeSleep
from pyro_vae.inference.posterior.global_posterior import RefinedGlobals
from pyro_vae.inference.posterior.infer import infer
from pyro_vae.inference.posterior.local_fits import Local
from pyro_vae.inference.posterior.local_guide import LocalGuide
from pyro_vae.inference.posterior.refine import HMC, Refined, refine
from pyro_vae.names import refuse as _refuse
from pyro_vae.program.bounds import elbo
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.terms import Terms
from pyro_vae.program.program import Program
from pyro_vae.storage.hub import push_to_hub
from pyro_vae.storage.load import load
from pyro_vae.storage.save import save
from pyro_vae.training import schedules
from pyro_vae.training.fit import Run, fit
from pyro_vae.training.shared_verbs import across_ranks

__all__ = [
    "AAE",
    "AIS",
    "AVB",
    "ELBO",
    "HMC",
    "IWAE",
    "MIWAE",
    "NVIL",
    "RLOO",
    "STL",
    "VAEGAN",
    "VIMCO",
    "VQ",
    "WAE",
    "AggregatedPosterior",
    "AnalyticELBO",
    "AnnealedLikelihood",
    "Classes",
    "CodeUsage",
    "CollapseMonitor",
    "CompiledLoss",
    "DReG",
    "Diagnosis",
    "DisARM",
    "FeatureDistances",
    "FreeBits",
    "Gaps",
    "HMCRefined",
    "Imputed",
    "Joint",
    "Lagging",
    "LatentAutoencoder",
    "Local",
    "LocalGuide",
    "LogLikelihood",
    "Objective",
    "PerStep",
    "Perplexity",
    "Program",
    "Refined",
    "RefinedGlobals",
    "Renyi",
    "ReweightedWakeSleep",
    "Run",
    "Sandwich",
    "SemiSupervised",
    "TargetKL",
    "Terms",
    "TermsObjective",
    "Topics",
    "Update",
    "__version__",
    "across_ranks",
    "aggregated_posterior",
    "ais",
    "bdmc",
    "classify",
    "code_usage",
    "completion",
    "conditionals",
    "data",
    "diagnose",
    "distributions",
    "elbo",
    "encode",
    "errors",
    "feature_distances",
    "fit",
    "fitted_log_likelihood",
    "gaps",
    "generate",
    "impute",
    "infer",
    "interpolate",
    "load",
    "log_likelihood",
    "models",
    "nn",
    "per_step",
    "perplexity",
    "plots",
    "push_to_hub",
    "reconstruct",
    "refine",
    "save",
    "schedules",
    "topics",
]


def __dir__() -> list[str]:
    """Return what the library offers: its other files are its own business."""
    return sorted(__all__)


if not TYPE_CHECKING:  # which would take any name for one of the library

    def __getattr__(name: str) -> NoReturn:
        """Say what a name of another library is called here, and where one of the zoo is."""
        rooms = (models, distributions, conditionals, nn, plots, data)
        inside = {f"pv.{room.__name__.removeprefix(f'{__name__}.')}": room for room in rooms}
        _refuse(__name__, name, __all__, inside)
