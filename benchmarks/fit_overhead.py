"""What ``pv.fit`` costs over a bare loop: same loss, optimizer and batches (784-400-20, B = 128).

``OMP_NUM_THREADS=1 python benchmarks/fit_overhead.py`` writes ``results/fit_overhead.json``.
"""

import time

import pyro
import torch
from paired import paired_ratio
from results import Result, by_threads

import pyro_vae as pv

STEPS = 50
BATCH = 128


def data() -> torch.Tensor:
    """Return made-up binary images: the cost of a step does not depend on the pixels."""
    return torch.bernoulli(torch.full((STEPS * BATCH, 784), 0.3))


def bare_loop(x: torch.Tensor) -> float:
    """Train one epoch in the fewest lines: differentiable loss, fused Adam, indexed batches."""
    torch.manual_seed(0)
    vae = pv.models.VAE(784, 20, hidden=(400,))
    loss_of = pv.ELBO()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    start = time.perf_counter()
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        for index in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = loss_of.differentiable_loss(vae.model, vae.guide, x[index]) / BATCH
            loss.backward()
            optimizer.step()
    pyro.clear_param_store()
    return time.perf_counter() - start


def fit(x: torch.Tensor) -> None:
    """Train one epoch with ``pv.fit``: checks, history and progress bar included."""
    torch.manual_seed(0)
    vae = pv.models.VAE(784, 20, hidden=(400,))
    pv.fit(vae, x, epochs=1, batch_size=BATCH, device="cpu", progress=False)


def main() -> None:
    """Measure and write the ratio."""
    start = time.perf_counter()
    x = data()
    ratios = paired_ratio(lambda: fit(x), lambda: bare_loop(x))
    wall, cpu = ratios["wall"], ratios["cpu"]
    result = Result(
        name=by_threads("fit_overhead"),
        value=wall.median,
        stderr=wall.stderr,
        unit="time of pv.fit over a bare loop (uncompiled)",
        estimator=f"median of {wall.blocks} paired ratios of blocks of {STEPS} steps, wall clock",
        published="",
        target="<= 1.15",
        data="made-up binary images, 784-400-20, batch 128",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - start,
        device=f"cpu, {torch.get_num_threads()} thread",
        details={"wall": vars(wall), "cpu": vars(cpu)},
    )
    print(result.write())
    print(f"pv.fit / bare loop: wall {wall.median:.3f}, CPU {cpu.median:.3f}")


if __name__ == "__main__":
    main()
