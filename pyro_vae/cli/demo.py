"""``pyro-vae demo``: one small run from data to pictures."""

import shlex
import time
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.cli.answer_files import weights_in, write_figures, write_picture
from pyro_vae.cli.datasets import load_data
from pyro_vae.cli.evaluate import judge
from pyro_vae.cli.generate import sample_title
from pyro_vae.cli.programs import build_program
from pyro_vae.cli.report import say, table
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import fresh_folder, record, removed_if_empty
from pyro_vae.device import resolve_device


def demo(
    out: str | None = None,
    epochs: int = 50,
    latent_dim: int = 2,
    num_particles: int = 1000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Train a VAE on the embedded digits, judge it and draw what it learned, in under a minute.

    Arguments:
        out: run folder; null is a fresh one, runs/demo.
        epochs: passes over the training data.
        latent_dim: latent units; two can be drawn as they are.
        num_particles: importance samples per datum behind the log-likelihood.
        seed: of weights, noise and order.
        device: auto, cpu, cuda or cuda:N.
        progress: show a progress bar.
    """
    start = time.perf_counter()
    settings: dict[str, Any] = {"model": "VAE", "data": "digits", "binarization": "threshold"}
    settings |= {"latent_dim": latent_dim, "hidden": (256, 128), "network": "mlp", "epochs": epochs}
    settings |= {"observation": "Bernoulli", "batch_size": 64, "lr": 3e-3, "seed": seed}
    settings |= {"lr_schedule": "cosine", "warmup": 0.2}
    loaded = load_data(settings)
    splits = loaded.source
    torch.manual_seed(seed)
    vae = build_program(settings, loaded)
    where = resolve_device(device)
    say(f"Training a VAE with {latent_dim} latent units on {len(splits.train)} digits ({where})")
    begun = None if out else fresh_folder(Path("runs") / "demo")
    folder = begun or Path(str(out))
    with removed_if_empty(begun):
        run = pv.fit(
            vae,
            splits.train,
            valid=splits.valid,
            epochs=epochs,
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            lr_schedule=pv.schedules.cosine(1.0, 0.02),
            beta=pv.schedules.linear(0.0, 1.0, over=settings["warmup"]),
            callbacks=[lambda run: record(folder, settings)],
            seed=seed,
            device=where,
            out=folder,
            progress=progress,
        )
    figures = {"data": "digits", "binarization": "threshold", "split": "test"}
    figures |= judge(vae, splits.test, num_particles, seed, progress)
    write_figures(folder / "evaluation.json", figures, weights_in(folder))
    drawn = _draw(vae, splits, run, folder, seed)
    write_report(folder)
    say("\n" + table(figures))
    say(f"\n{folder} holds, after {time.perf_counter() - start:.0f} seconds:")
    say(f"  pictures         {', '.join(drawn)}")
    events = (folder / "tensorboard").exists()  # where that extra is installed
    say(f"  numbers          history.csv, evaluation.json{', tensorboard/' * events}")
    say("  in one page      report.html")
    say("  the model        config.json and program.safetensors")
    say("\nNext:")
    say(f'  python -c "import pyro_vae as pv; print(pv.load({str(folder)!r}))"')
    say(f"  pyro-vae generate {shlex.quote(str(folder))} -n 100")
    say("  pyro-vae train --data mnist --latent_dim 20 --epochs 20")
    if events:
        say(f"  tensorboard --logdir {folder.parent}")


def _draw(vae: Any, splits: pv.data.Splits, run: Any, folder: Path, seed: int) -> list[str]:
    """Write the demo's figures; return their names."""
    torch.manual_seed(seed)
    some = splits.test[:24]
    generated: Any = pv.generate(vae, 100, mean=True)
    reconstructed: Any = pv.reconstruct(vae, some)
    codes: Any = pv.encode(vae, torch.cat([splits.train, splits.test]))
    figures = {
        "samples.png": pv.plots.samples(splits.images(generated), title=sample_title(100, True)),
        "reconstructions.png": pv.plots.reconstructions(
            splits.images(some), splits.images(reconstructed)
        ),
        "latent_map.png": pv.plots.latent_map(
            codes,
            torch.cat([splits.labels["train"], splits.labels["test"]]),
            title="Posterior means of training and test digits",
        ),
        "curves.png": pv.plots.curves(run.history),
    }
    for name, figure in figures.items():
        write_picture(folder / name, figure, weights_in(folder))
    return list(figures)
