"""What is modelled: one file per family, each a short Pyro program."""

from pyro_vae.models.vae import VAE, Autoencoder, LinearVAE

__all__ = ["VAE", "Autoencoder", "LinearVAE"]
