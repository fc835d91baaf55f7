"""Programs of the zoo: each has ``model``, ``guide``, ``config`` and ``example``."""

from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.linear import LinearVAE
from pyro_vae.models.vae import VAE

__all__ = ["VAE", "Autoencoder", "LinearVAE"]
