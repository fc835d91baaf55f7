"""The prior of a model as its guide."""

from collections.abc import Callable
from typing import Any

from pyro import poutine

from pyro_vae.program.densities.enumeration import can_be_summed


def prior_of(model: Callable[..., Any]) -> Callable[..., None]:
    """Return the prior as a guide: the model's draws of its latents, its data left out.

    Discrete latents that can be summed out are left out too: a Gaussian stands for none of them.
    """

    def left_out(site: Any) -> bool:
        return site["infer"].get("was_observed", False) or can_be_summed(site["fn"])

    def guide(*args: Any, **kwargs: Any) -> None:
        with poutine.block(hide_fn=left_out):
            poutine.uncondition(model)(*args, **kwargs)

    return guide
