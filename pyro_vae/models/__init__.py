"""What is modelled: one file per family, each a short Pyro program."""

from .vae import VAE as VAE
from .vae import Autoencoder as Autoencoder
from .vae import LinearVAE as LinearVAE
