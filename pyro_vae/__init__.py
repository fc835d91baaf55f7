"""Deep latent-variable models as plain Pyro programs."""

from pyro_vae import conditionals, data, distributions, errors, models, nn, plots
from pyro_vae._version import __version__
from pyro_vae.evaluation.annealing import AIS, AnnealedLikelihood, Sandwich, ais, bdmc
from pyro_vae.evaluation.codes import CodeUsage, code_usage
from pyro_vae.evaluation.collapse import Diagnosis, diagnose
from pyro_vae.evaluation.fitted import fitted_log_likelihood
from pyro_vae.evaluation.gaps import Gaps, gaps
from pyro_vae.evaluation.generation import encode, generate, interpolate, reconstruct
from pyro_vae.evaluation.likelihood import LogLikelihood, log_likelihood
from pyro_vae.evaluation.monitor import CollapseMonitor
from pyro_vae.inference.bounds import elbo
from pyro_vae.inference.compiled import CompiledLoss
from pyro_vae.inference.discrete import NVIL, RLOO, VIMCO, DisARM
from pyro_vae.inference.floors import FreeBits, TargetKL
from pyro_vae.inference.importance import IWAE, STL, DReG, Renyi
from pyro_vae.inference.infer import infer
from pyro_vae.inference.lagging import Lagging
from pyro_vae.inference.local import Local
from pyro_vae.inference.local_guide import LocalGuide
from pyro_vae.inference.objectives import ELBO, AnalyticELBO, Update
from pyro_vae.inference.program import Program
from pyro_vae.inference.refine import HMC, Refined, refine
from pyro_vae.inference.refined import HMCRefined
from pyro_vae.inference.vq import VQ
from pyro_vae.inference.wake_sleep import ReweightedWakeSleep
from pyro_vae.loading import load
from pyro_vae.training import schedules
from pyro_vae.training.fit import Run, fit
from pyro_vae.training.saving import save

__all__ = [
    "AIS",
    "ELBO",
    "HMC",
    "IWAE",
    "NVIL",
    "RLOO",
    "STL",
    "VIMCO",
    "VQ",
    "AnalyticELBO",
    "AnnealedLikelihood",
    "CodeUsage",
    "CollapseMonitor",
    "CompiledLoss",
    "DReG",
    "Diagnosis",
    "DisARM",
    "FreeBits",
    "Gaps",
    "HMCRefined",
    "Lagging",
    "Local",
    "LocalGuide",
    "LogLikelihood",
    "Program",
    "Refined",
    "Renyi",
    "ReweightedWakeSleep",
    "Run",
    "Sandwich",
    "TargetKL",
    "Update",
    "__version__",
    "ais",
    "bdmc",
    "code_usage",
    "conditionals",
    "data",
    "diagnose",
    "distributions",
    "elbo",
    "encode",
    "errors",
    "fit",
    "fitted_log_likelihood",
    "gaps",
    "generate",
    "infer",
    "interpolate",
    "load",
    "log_likelihood",
    "models",
    "nn",
    "plots",
    "reconstruct",
    "refine",
    "save",
    "schedules",
]
