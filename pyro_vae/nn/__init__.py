"""Networks that programs are built of: dense ones, images, steps, critics."""

from pyro_vae.nn.convolutions import ConvDecoder, ConvEncoder
from pyro_vae.nn.critics import ConvCritic, Critic, InnerProductCritic
from pyro_vae.nn.layers import ACTIVATIONS, MLP, BatchNorm, OneHot, activation_layer
from pyro_vae.nn.shapes import Shape, as_shape, image_shape, sizes
from pyro_vae.nn.steps import GRU, CausalBlock, Transformer

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "MLP",
    "BatchNorm",
    "CausalBlock",
    "ConvCritic",
    "ConvDecoder",
    "ConvEncoder",
    "Critic",
    "InnerProductCritic",
    "OneHot",
    "Shape",
    "Transformer",
    "activation_layer",
    "as_shape",
    "image_shape",
    "sizes",
]
