"""Run folders: making one, going on in one, and opening what lies there."""

import json
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyro_vae as pv
from pyro_vae.callers import of_user
from pyro_vae.cli.datasets import SETS, default_binarization, kind_of, load_data
from pyro_vae.cli.options import MODELS, Split
from pyro_vae.cli.own_program import is_own, own_program
from pyro_vae.cli.training_file import (
    contents,
    describe_file,
    file_of_training,
    is_file,
    is_other,
    remember_file,
    tell_of_change,
)
from pyro_vae.device import resolve_device
from pyro_vae.errors import ConfigError
from pyro_vae.storage.atomic import atomic_write_text
from pyro_vae.storage.bundle import read_bundle
from pyro_vae.storage.save import NAME

SETTINGS = "train.json"  # what `train` was asked for; itself a file for --config
PROGRAM = "program_path.json"  # where the file of a program of one's own lay
VOCABULARY = "vocabulary.txt"  # the words by number, without which a run is mute
# What `--resume settings` lets differ, beside these.
_RENEWABLE = {"lr", "lr_schedule", "beta", "warmup", "clip_norm"}
_OF_MODELS = {"network", "posterior", "observation", "hidden", "latent_dim", "kinds"}
# Not part of what a run is; a continuation may choose them anew.
_FREE = {"out", "resume", "device", "progress", "checkpoint_every", "patience"}
# Ways out where the file of a run has changed since its training.
NAME_IT = "name the file of the training (--data FILE)"
TAKE_ALL = "take all rows of one that has none of them (--split all)"


def fresh_folder(folder: Path) -> Path:
    """Return the folder, or the first of folder-2, folder-3, ... that does not exist."""
    number, path = 1, folder
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")
    return path


def record(
    run: Any,
    settings: dict[str, Any],
    words: Sequence[str] = (),
    file: dict[str, str] | None = None,
) -> None:
    """Write the settings once the run folder is there, and when a continuation changes some.

    Arguments:
        run: what `fit` hands its callbacks.
        settings: of the run.
        words: those of its sentences or documents; none where they are only numbered.
        file: what `describe_file` says of its data.
    """
    if words and not (run.folder / VOCABULARY).exists():
        atomic_write_text(run.folder / VOCABULARY, "\n".join(words) + "\n")
    remember_file(run.folder, file or {})
    if is_own(settings["model"]):
        _remember_program(run.folder, settings["model"])
    without = _FREE | (_OF_MODELS if is_own(settings["model"]) else set())
    kept = {k: v for k, v in settings.items() if k not in without}
    _write_if_new(run.folder / SETTINGS, kept)


def _remember_program(folder: Path, model: str) -> None:
    """Write where the file of a program lies, which its name tells from one directory alone."""
    _write_if_new(folder / PROGRAM, {"program": str(Path(model.partition(":")[0]).resolve())})


def _write_if_new(path: Path, found: dict[str, Any]) -> None:
    """Write settings, unless they stand there: the record is made after each epoch."""
    text = json.dumps(found, indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        atomic_write_text(path, text)


def _own_file(folder: Path, model: str) -> str:
    """Return a program of one's own with its file where it lay, if there is none of the name."""
    file, colon, name = model.partition(":")
    here = Path(file).exists()
    try:
        found = str(json.loads((folder / PROGRAM).read_text(encoding="utf-8"))["program"])
        differs = here and contents(Path(found)) != contents(Path(file))
    except (OSError, ValueError, KeyError, TypeError):
        return model
    if not here:
        return f"{found}{colon}{name}"
    if differs:  # a copy of a project means its own file, another project does not
        warnings.warn(
            f"program: {Path(file).resolve()} is taken, and differs from {found}, the file of the "
            f"training; say once which is meant: pyro-vae evaluate {folder} --program "
            f"{found}{colon}{name}, or --program {model}",
            UserWarning,
            stacklevel=of_user(),
        )
    return model


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what `train` was asked for; a folder that does not say is a `ConfigError`."""
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        lacks = f"{SETTINGS} is missing" if folder.is_dir() else "there is no such folder"
        raise ConfigError(
            f"{folder}: no run of `pyro-vae train`, pv.fit(out=...) or pv.save ({lacks})"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict) or not {"model", "data", "binarization", "seed"} <= set(found):
        raise ConfigError(f"{path}: not the settings of a run")
    return found


def check_same_run(folder: Path, settings: dict[str, Any], *, renew: bool = False) -> None:
    """Require of a continuation the settings of its run, but for those that it renews."""
    if not (folder / SETTINGS).exists():
        return
    # Where no schedule runs over the whole of them, the epochs only say when to stop.
    free = set() if settings["lr_schedule"] != "constant" or settings["warmup"] else {"epochs"}
    free |= _RENEWABLE if renew else set()
    known = read_settings(folder)
    if "undivided" in known:
        raise ConfigError(
            f"resume: pv.fit wrote the run in {folder}; go on with pv.fit(..., resume=True)"
        )
    for name, before in known.items():
        now = settings.get(name)
        if name not in free and (list(now) if isinstance(now, tuple) else now) != before:
            raise ConfigError(
                f"resume: {name} is {now!r}, but the run in {folder} has {before!r}; "
                f"use its settings (--config {folder / SETTINGS}), or another --out"
                + (", or --resume settings" if name in _RENEWABLE else "")
            )


def check_words(folder: Path, words: Sequence[str]) -> None:
    """Require the words of a run, where it has recorded some: by number, they are what it learnt.

    Arguments:
        folder: of the run.
        words: of the data.
    """
    path = folder / VOCABULARY
    if not path.exists():
        return
    known = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if list(words) != known:
        pairs = enumerate(zip_longest(words, known))
        place, (got, expected) = next(each for each in pairs if each[1][0] != each[1][1])
        raise ConfigError(
            f"vocab: got {got!r} as word {place}, but the run in {folder} was trained with "
            f"{expected!r} ({path}); its own words are taken where --vocab is left out"
        )


def open_run(
    run: str, device: str, program: str | None = None, **changed: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the program of a run and its settings, with those that are not None changed.

    Among them is then the ``run``, and whether the data are ``other`` ones than those of the
    training.

    The words of sentences and documents are those of the run, whatever the data. What `fit` or
    `save` wrote says from then on what its program and data were said to be, until both are said
    anew.

    Arguments:
        run: run folder.
        device: where the program goes.
        program: ``file.py:name``, where the run does not say, or says another place.
        changed: other settings.
    """
    where, folder = resolve_device(device), Path(run)
    if folder.is_file():
        raise ConfigError(
            f"{run}: got a file, expected the folder of pv.save or pv.fit(out=...) that holds it, "
            f"{folder.parent}"
        )
    python = any((folder / name).exists() for name in ("config.json", f"{NAME}.safetensors"))
    by_python = python and not (folder / SETTINGS).exists()
    settings = _settings_of_python(folder, program, changed) if by_python else read_settings(folder)
    data, said_anew = changed.get("data"), by_python
    if program is not None:
        settings["model"] = program
        if settings.get("undivided") and data:  # nothing but these words says it
            settings["data"], said_anew = data, True
    told = dict(settings)
    if (Path(run) / VOCABULARY).exists():
        settings["vocab"] = str(Path(run) / VOCABULARY)
    into = None
    if is_own(settings["model"]):
        if program is None:
            settings["model"] = _own_file(folder, settings["model"])
        into = own_program(settings["model"], dict(settings.get("options") or {}))
    loaded = pv.load(run, into=into, device=where)
    pv.Program.of(loaded).to(where)
    asked = settings | {k: v for k, v in changed.items() if v is not None}
    if data is None and is_file(settings, settings["data"]):
        asked["data"] = file_of_training(folder, settings)
    asked["run"] = run
    asked["other"] = other = not said_anew and is_other(folder, settings, data)
    if other and is_file(settings, asked["data"]):
        asked["undivided"] = True
    if by_python or program is not None:
        load_data(asked).taken_by(loaded, asked["data"])  # what is remembered is sound
        atomic_write_text(folder / SETTINGS, json.dumps(told, indent=2) + "\n")
        if said_anew:
            remember_file(folder, describe_file(told))
        if is_own(told["model"]):
            _remember_program(folder, settings["model"])
    return loaded, asked


def _settings_of_python(folder: Path, program: str | None, said: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of what `fit` or `save` wrote, as far as a command needs them."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        _, config = read_bundle(folder, NAME)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / 'config.json'}: cannot be read ({error})") from None
    named = config.get("program") if isinstance(config, dict) else None
    model, data = program or (named if named in MODELS else None), said.get("data")
    if model is None or data is None:
        asked = ["--program my_program.py:NAME"] * (model is None) + ["--data FILE"]
        raise ConfigError(
            f"{folder}: Python wrote it (pv.fit, pv.save), and it does not say where its "
            f"{'program and data are' if model is None else 'data are'}; say it once, and all "
            f"commands know it from then on: pyro-vae evaluate {folder} {' '.join(asked)}"
        )
    return {
        "model": model,
        "data": data,
        "binarization": said.get("binarization") or default_binarization(model, data),
        "seed": 0,
        "undivided": kind_of(model) == "images" and data not in SETS["images"],
    }


def chosen_split(split: Split | None, settings: dict[str, Any]) -> Split:
    """Return the part of the data that a command takes: all rows, where `train` divided none."""
    return split or ("all" if settings.get("undivided") else "test")


def rows_to_judge(
    program: Any,
    settings: dict[str, Any],
    split: Split,
    seed: int,
    count: int | None = None,
    way_out: str = f"{NAME_IT}, or {TAKE_ALL}",
) -> Any:
    """Return the rows of a split, as a program takes them; the first of them where some are asked.

    Arguments:
        program: what they are for.
        settings: of the run, with the data that are asked for.
        split: the part of the data.
        seed: of data that training draws afresh.
        count: None takes all.
        way_out: what to do about a file that has changed since the training.
    """
    data = load_data(settings, whole=split == "all").taken_by(program, settings["data"])
    if split != "all":
        tell_of_change(settings, way_out)
    return data.drawn(split, seed, count)
