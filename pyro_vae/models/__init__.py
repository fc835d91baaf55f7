"""Programs of the zoo: each has ``model``, ``guide``, ``config`` and ``example``."""

from typing import TYPE_CHECKING, NoReturn

from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.bayesian import BayesianVAE
from pyro_vae.models.conditional_vae import ConditionalVAE
from pyro_vae.models.deep_exponential import DEF
from pyro_vae.models.ladder import HierarchicalVAE, LadderVAE
from pyro_vae.models.linear import LinearVAE
from pyro_vae.models.multimodal import MultimodalVAE
from pyro_vae.models.sbn import SBN
from pyro_vae.models.semi_supervised import M2, Resampled
from pyro_vae.models.sentences import SentenceLM, SentenceVAE
from pyro_vae.models.sequences import DMM, VRNN
from pyro_vae.models.table_vae import TableVAE
from pyro_vae.models.top_down import TopDownVAE
from pyro_vae.models.topic_models import ETM, GSM, LDA, NVDM, ProdLDA
from pyro_vae.models.vae import VAE
from pyro_vae.models.vqvae import VQVAE
from pyro_vae.names import refuse as _refuse

__all__ = [
    "DEF",
    "DMM",
    "ETM",
    "GSM",
    "LDA",
    "M2",
    "NVDM",
    "SBN",
    "VAE",
    "VQVAE",
    "VRNN",
    "Autoencoder",
    "BayesianVAE",
    "ConditionalVAE",
    "HierarchicalVAE",
    "LadderVAE",
    "LinearVAE",
    "MultimodalVAE",
    "ProdLDA",
    "Resampled",
    "SentenceLM",
    "SentenceVAE",
    "TableVAE",
    "TopDownVAE",
]


if not TYPE_CHECKING:  # as of the library itself

    def __getattr__(name: str) -> NoReturn:
        """Say what a model of another library is called here."""
        _refuse(__name__, name, __all__, {})
