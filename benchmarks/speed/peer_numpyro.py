"""NumPyro's side: the same programs as plain functions of arrays, under ``numpyro.infer.SVI``."""

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from serve import measured, serve

Net = Callable[[Any], Any]


def limit_threads(threads: int) -> None:
    """Let XLA make a pool of so many threads (it counts the cores it may use), then free them."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(everywhere)[:threads]))
    import jax

    jax.block_until_ready(jax.numpy.zeros(2) + 1)
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), everywhere)


def on_the_card(jax: Any) -> None:
    """Require that JAX runs on a GPU, with products in float32 as PyTorch has them by default.

    Raises:
        RuntimeError: It fell back to the CPU, as it does without its CUDA plugin.
    """
    found = jax.devices()[0].platform
    if found != "gpu":
        raise RuntimeError(f"JAX runs on {found!r}, expected 'gpu'; pip install 'jax[cuda13]'")
    jax.config.update("jax_default_matmul_precision", "float32")


class Worker:
    """One program under ``jit`` of ``SVI.update``, and under a ``lax.scan`` of it."""

    def start(self, *, file: str, threads: int, device: str, **case: Any) -> dict[str, Any]:
        if device == "cpu":
            os.environ["JAX_PLATFORMS"] = "cpu"
            limit_threads(threads)
        else:
            os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch is on the card too
        import jax
        import numpyro

        if device != "cpu":
            on_the_card(jax)

        with np.load(file, allow_pickle=False) as arrays:
            weights = {k[2:]: arrays[k] for k in arrays if k.startswith("w:")}
            data = arrays["data"]
        if case["kind"] == "conv":
            data = np.moveaxis(data, 2, -1)  # channels last, as Flax and XLA have it
        self.batches = [jax.numpy.asarray(x) for x in data]
        self.stacked = jax.numpy.asarray(data)
        model, guide = program(case, weights)
        optimizer = numpyro.optim.Adam(1e-3)
        self.svi = numpyro.infer.SVI(model, guide, optimizer, objective(case))
        self.first = self.svi.init(jax.random.PRNGKey(0), self.batches[0])
        self.states = {"jit": self.first, "scan": self.first}
        self.update = jax.jit(self.svi.update)
        self.scan = jax.jit(lambda state, xs: jax.lax.scan(self.svi.update, state, xs))
        return {"versions": {"numpyro": numpyro.__version__, "jax": jax.__version__}}

    def run(self, *, mode: str, steps: int) -> dict[str, float]:
        return measured(partial(self._steps, mode, steps))

    def _steps(self, mode: str, steps: int) -> None:
        import jax

        state, size = self.states[mode], len(self.batches)
        if mode == "scan":
            for _ in range(steps // size):
                state, _ = self.scan(state, self.stacked)
        else:
            for index in range(steps):
                state, _ = self.update(state, self.batches[index % size])
        self.states[mode] = jax.block_until_ready(state)

    def losses(self, *, draws: int, mode: str = "first") -> dict[str, list[float]]:
        """Return losses of the first batch at the first weights, or those of a mode."""
        import jax

        state = self.first if mode == "first" else self.states[mode]
        x = self.batches[0]
        evaluate = jax.jit(lambda key: self.svi.evaluate(state._replace(rng_key=key), x))
        keys = jax.random.split(jax.random.PRNGKey(7), draws)
        return {"losses": [float(evaluate(key)) / len(x) for key in keys]}


def objective(case: dict[str, Any]) -> Any:
    """Return NumPyro's loss of the same estimator."""
    from numpyro.infer import RenyiELBO, Trace_ELBO

    if case["kind"] == "iwae":
        return RenyiELBO(alpha=0, num_particles=case["num_particles"])
    return Trace_ELBO()


def program(case: dict[str, Any], weights: dict[str, Any]) -> tuple[Any, Any]:
    """Return model and guide."""
    if case["kind"] == "layered":
        return ladder(case, weights)
    if case["kind"] == "conv":
        return gaussian_vae(case, *convolutions(case, weights))
    encoder = partial(dense, weights, "encoder", case["activation"])
    return gaussian_vae(case, encoder, partial(dense, weights, "decoder", case["activation"]))


def gaussian_vae(case: dict[str, Any], encoder: Net, decoder: Net) -> tuple[Any, Any]:
    """Return model and guide of a VAE."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    dims = len(case["shape"])

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            prior = dist.Normal(jnp.zeros(case["latent"]), 1.0).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(dims), obs=x)

    def guide(x: Any) -> None:
        outputs = encoder(x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", gaussian(outputs))

    return model, guide


def ladder(case: dict[str, Any], weights: dict[str, Any]) -> tuple[Any, Any]:
    """Return model and guide of the ladder of Gaussians."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    levels = case["levels"]

    def net(name: str) -> Net:
        return partial(dense, weights, name, "tanh")

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            prior = dist.Normal(jnp.zeros(case["latent"]), 1.0).to_event(1)
            z = numpyro.sample(f"z{levels}", prior)
            for level in range(levels - 1, 0, -1):
                z = numpyro.sample(f"z{level}", gaussian(net(f"down.{level}")(z)))
            likelihood = dist.Bernoulli(logits=net("down.0")(z)).to_event(1)
            numpyro.sample("x", likelihood, obs=x)

    def guide(x: Any) -> None:
        z = x
        with numpyro.plate("data", len(x)):
            for level in range(1, levels + 1):
                z = numpyro.sample(f"z{level}", gaussian(net(f"up.{level - 1}")(z)))

    return model, guide


def gaussian(outputs: Any) -> Any:
    """Return a diagonal Gaussian from loc and log-scale."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    loc, log_scale = jnp.split(outputs, 2, axis=-1)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def param(weights: dict[str, Any], name: str, kernel: str = "dense") -> Any:
    """Return a weight as NumPyro's parameter, laid out as JAX users have it."""
    import numpyro

    value = weights[name]
    if kernel == "dense" and value.ndim == 2:
        value = value.T
    elif kernel == "conv" and value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)  # (out, in, H, W) -> (H, W, in, out)
    elif kernel == "transposed" and value.ndim == 4:
        value = value.transpose(2, 3, 0, 1)[::-1, ::-1]  # (in, out, H, W), mirrored
    return numpyro.param(name, np.ascontiguousarray(value))


def dense(weights: dict[str, Any], prefix: str, activation: str, x: Any) -> Any:
    """Apply a stack of dense layers."""
    import jax

    act = {"relu": jax.nn.relu, "tanh": jax.numpy.tanh}[activation]
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    found = sorted(int(m[1]) for m in map(pattern.fullmatch, weights) if m)
    for index in found:
        x = x @ param(weights, f"{prefix}.{index}.weight") + param(
            weights, f"{prefix}.{index}.bias"
        )
        x = x if index == found[-1] else act(x)
    return x


def convolutions(case: dict[str, Any], weights: dict[str, Any]) -> tuple[Net, Net]:
    """Return encoder and decoder of the convolutional VAE, channels last."""
    import jax
    import jax.numpy as jnp

    small, channels = case["small"], case["channels"][-1]
    dims = ("NHWC", "HWIO", "NHWC")
    w = partial(param, weights)

    def down(x: Any, name: str) -> Any:
        out = jax.lax.conv_general_dilated(
            x, w(f"{name}.weight", "conv"), (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims
        )
        return out + w(f"{name}.bias")

    def up(x: Any, name: str) -> Any:
        kernel = w(f"{name}.weight", "transposed")
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2), dimension_numbers=dims
        )
        return out + w(f"{name}.bias")

    def encoder(x: Any) -> Any:
        x = jax.nn.relu(down(x, "encoder.0"))
        x = jax.nn.relu(down(x, "encoder.2"))
        x = jnp.moveaxis(x, -1, -3).reshape(*x.shape[:-3], -1)  # PyTorch's order of the units
        return x @ w("encoder.5.weight") + w("encoder.5.bias")

    def decoder(z: Any) -> Any:
        h = z @ w("decoder.0.weight") + w("decoder.0.bias")
        h = jnp.moveaxis(h.reshape(*z.shape[:-1], channels, small, small), -3, -1)
        h = jax.nn.relu(up(jax.nn.relu(h), "decoder.3"))
        return up(h, "decoder.5")

    return encoder, decoder


if __name__ == "__main__":
    serve(Worker())
