"""Data sets by name, as tensors with named splits and an explicit binarization.

Nothing here is shipped: ``digits`` comes with scikit-learn, the others from
``$PYRO_VAE_DATA/<name>.npz``, the cache, or a download whose SHA-256 is known.
"""

from pyro_vae.data.catalogue import BINARISATIONS, NAMES, load
from pyro_vae.data.corpora import Corpus
from pyro_vae.data.mixed import mixed
from pyro_vae.data.readers import read_idx, read_npz
from pyro_vae.data.sequence_sets import SequenceSets, bucketed, pad
from pyro_vae.data.splits import Splits
from pyro_vae.data.vocabulary import Vocabulary

__all__ = [
    "BINARISATIONS",
    "NAMES",
    "Corpus",
    "SequenceSets",
    "Splits",
    "Vocabulary",
    "bucketed",
    "load",
    "mixed",
    "pad",
    "read_idx",
    "read_npz",
]
