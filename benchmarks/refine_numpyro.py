"""The worker of ``benchmarks/refine.py`` in the peers' environment: NumPyro's HMC under vmap.

The log joint is written by hand in ``jax.numpy`` and handed over to ``numpyro.infer.hmc.hmc``, one
kernel per datum and chain, vectorised by ``jax.vmap`` and scanned under ``jax.jit``: one accept,
one step size and one diagonal mass per datum and chain. Requests are lines on stdin (the path of an
``.npz``), answers lines of JSON; draws go back beside the request.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc


def log_joint(weights: Any, z: Any, x: Any) -> Any:
    """Return log p(x, z) of one datum: z ~ N(0, I), x ~ Bernoulli(logits of one hidden layer)."""
    hidden = jax.nn.relu(weights["w1"] @ z + weights["b1"])
    logits = weights["w2"] @ hidden + weights["b2"]
    likelihood = x * logits - jax.nn.softplus(logits)
    return likelihood.sum() - 0.5 * (z * z).sum() - 0.5 * z.size * jnp.log(2 * jnp.pi)


def sampler(weights: Any, warmup: int, steps: int, num_leapfrog: int) -> Any:
    """Return the compiled sampler of all chains of all data: ``(key, z, x) -> draws``."""
    init, step = hmc(potential_fn_gen=lambda x: lambda z: -log_joint(weights, z, x), algo="HMC")

    def one(key: Any, z: Any, x: Any) -> Any:
        state = init(
            z,
            warmup,
            step_size=0.1,
            num_steps=num_leapfrog,
            trajectory_length=None,
            model_args=(x,),
            rng_key=key,
        )

        def move(state: Any, _: None) -> Any:
            state = step(state, model_args=(x,))
            return state, (state.z, state.accept_prob)

        state, _ = jax.lax.scan(lambda s, _: (step(s, model_args=(x,)), None), state, None, warmup)
        return jax.lax.scan(move, state, None, steps)[1]

    chains = jax.vmap(jax.vmap(one, (0, 0, 0)), (0, 0, None))
    return jax.jit(chains)


def main() -> None:
    """Answer requests until stdin ends."""
    jax.config.update("jax_platforms", "cpu")
    compiled = None
    for line in sys.stdin:
        path = line.strip()
        with np.load(path) as file:
            request = dict(file)
        weights = {k: jnp.asarray(request[k]) for k in ("w1", "b1", "w2", "b2")}
        z, x = jnp.asarray(request["z"]), jnp.asarray(request["x"])
        if compiled is None:
            sizes = (int(request[k]) for k in ("warmup", "num_draws", "num_leapfrog"))
            compiled = sampler(weights, *sizes)
        keys = jax.random.split(jax.random.PRNGKey(int(request["seed"])), z.shape[:2])
        wall, cpu = time.perf_counter(), time.process_time()
        draws, accept = jax.block_until_ready(compiled(keys, z, x))
        seconds = (time.perf_counter() - wall, time.process_time() - cpu)
        density = jax.vmap(log_joint, (None, 0, 0))(weights, z[0], x)
        np.savez(path, draws=np.asarray(draws), density=np.asarray(density))
        answer = {"wall": seconds[0], "cpu": seconds[1], "acceptance": float(accept.mean())}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
