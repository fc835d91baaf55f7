"""``pyro-vae generate``."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.arguments import counted, positive
from pyro_vae.cli.answer_files import WEIGHTS, write_picture
from pyro_vae.cli.datasets import SETS, kind_of, load_data
from pyro_vae.cli.report import say
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import open_run
from pyro_vae.errors import ConfigError
from pyro_vae.storage.atomic import atomic_write_bytes, atomic_write_text

_SHOWN = 6  # piano rolls in one picture


def generate(
    run: str, n: int = 64, mean: bool | None = None, seed: int = 0, device: str = "auto"
) -> None:
    """Draw images, chorales, sentences or rows from a trained model into its run folder.

    Images and piano rolls are written to samples.png and samples.npz, sentences to samples.txt, the
    rows of a table to samples.csv; those of your own program to samples.npz by site, beside the
    inputs that they were drawn for (lengths, labels), which are training rows taken at random.
    Sequences get the lengths of the first test data.

    Arguments:
        run: run folder.
        n: number of images, chorales, sentences or rows.
        mean: the means of p(x | z), and the likeliest words; false draws from it. Null is true for
            chorales and images (of a file too, where they are (C, H, W)), false for all else.
        seed: of the draws.
        device: auto, cpu, cuda or cuda:N.
    """
    program, settings = open_run(run, device)
    kind = kind_of(settings["model"])
    if kind == "documents":
        raise ConfigError(f"generate: {settings['model']} draws counts; use pyro_vae.generate")
    own = kind == "images" and settings["data"] not in SETS["images"]
    pictured = kind == "sequences" or (kind == "images" and not own)
    source = None if kind in ("images", "tables") else load_data(settings).source
    inputs = None if source is None else _inputs(source.test, positive("n", n))
    others: dict[str, torch.Tensor] = {}
    if own:  # a program of the user's own learns its sizes from rows
        split = "all" if settings.get("undivided") else "train"
        loaded = load_data(settings, whole=split == "all").taken_by(program, settings["data"])
        rows = loaded.drawn(split, seed)
        pictured = bool(_pictures(rows if isinstance(rows, dict) else {"x": rows}))
        _introduce(program, rows)
    mean = pictured if mean is None else mean
    positive("n", n)
    torch.manual_seed(seed)
    if own:
        inputs, others = _own_inputs(program, n, rows)
    drawn: Any = pv.generate(program, n, given=inputs, mean=mean)
    folder = Path(run)
    if kind == "tables":
        atomic_write_text(folder / "samples.csv", drawn.to_csv(index=False))
        say(f"{drawn.head()}\n\nwritten to {folder / 'samples.csv'}")
        return
    drawn = drawn.cpu() if isinstance(drawn, torch.Tensor) else drawn
    if kind == "sentences":
        text = "\n".join(source.vocabulary.text(drawn))  # type: ignore[union-attr]
        atomic_write_text(folder / "samples.txt", text + "\n")
        say(f"{text}\n\nwritten to {folder / 'samples.txt'}")
        return
    if own:
        site = pv.Program.of(program).sites.observed[0]
        named = drawn if isinstance(drawn, dict) else {site: drawn}
        _write_own(folder, others | named, sample_title(n, mean), settings[WEIGHTS])
        return
    if inputs is None:
        shape = (1, 8, 8) if settings["data"] == "digits" else (1, 28, 28)
        arrays = {"images": drawn.reshape(n, *shape)}
        figure = pv.plots.samples(arrays["images"], title=sample_title(n, mean))
    else:
        arrays = {"rolls": drawn, "lengths": inputs["lengths"]}
        rolls = zip(drawn[:_SHOWN], inputs["lengths"].tolist(), strict=False)
        named = {f"{row + 1}": roll[:length] for row, (roll, length) in enumerate(rolls)}
        figure = pv.plots.piano_rolls(named, title=sample_title(len(named), mean))
    write_picture(folder / "samples.png", figure, settings[WEIGHTS])
    _write_npz(folder / "samples.npz", arrays)
    write_report(folder)
    say(f"written to {folder / 'samples.png'} and {folder / 'samples.npz'}")


def _inputs(test: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    """Return n rows, of which only the lengths count: those of the test data, again and again."""
    rows = torch.arange(n) % len(test["lengths"])
    return {name: x[rows] for name, x in test.items()}


def _introduce(program: Any, rows: Any) -> None:
    """Let a program see rows of its data: its sizes, and inputs to draw for."""
    wrapped = pv.Program.of(program)
    batch = wrapped.adapt(rows)
    wrapped.read(batch)
    wrapped.examples.remember(batch)


def _own_inputs(program: Any, n: int, rows: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return n rows of a program's data to draw for, and what of them it does not observe.

    None and nothing where all is observed: lengths, labels and masks are to be told beside draws.
    """
    wrapped = pv.Program.of(program)
    whole = wrapped.adapt(rows)  # a guide with one factor per datum takes no other number
    observed, names = wrapped.examples.observed(whole), wrapped.as_given(whole)
    if not isinstance(names, dict) or observed.keys() >= names.keys():
        return None, {}
    drawn: Any = wrapped.as_given(wrapped.examples.inputs(n))
    return drawn, {name: x for name, x in drawn.items() if name not in observed}


def sample_title(n: int, mean: bool) -> str:
    """Return the title of a figure of draws."""
    return f"{counted(n, 'draw')} from the prior" + (", decoded to E[x | z]" if mean else "")


def _write_own(
    folder: Path, arrays: dict[str, torch.Tensor], title: str, weights: str | None
) -> None:
    """Write the rows of a user's own data by site, and a picture where they are images."""
    _write_npz(folder / "samples.npz", {name: x.cpu() for name, x in arrays.items()})
    written = f"{folder / 'samples.npz'}"
    pictures = _pictures(arrays)
    if pictures:
        figure = pv.plots.samples(pictures[0], title=title)
        write_picture(folder / "samples.png", figure, weights)
        written += " and samples.png"
    write_report(folder)
    say(f"written to {written}")


def _pictures(arrays: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the arrays that are images, ``(N, C, H, W)``."""
    return [x for x in arrays.values() if x.ndim == 4 and x.shape[1] in (1, 3)]


def _write_npz(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    buffer = io.BytesIO()
    columns: dict[str, Any] = {name: x.numpy() for name, x in arrays.items()}
    np.savez_compressed(buffer, **columns)
    atomic_write_bytes(path, buffer.getvalue())
