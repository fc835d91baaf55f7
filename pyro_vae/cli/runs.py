"""Run folders: making one, going on in one, and opening what lies there."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyro_vae as pv
from pyro_vae.cli.answer_files import WEIGHTS, weights_in
from pyro_vae.cli.datasets import default_binarization, is_file, load_data, require_as_it_is
from pyro_vae.cli.known_files import KnownFile, is_readable, known_file, recalled
from pyro_vae.cli.options import MODELS, Split
from pyro_vae.cli.own_program import is_own, own_program, parted
from pyro_vae.cli.training_file import is_other, tell_of_changed_rows
from pyro_vae.device import resolve_device
from pyro_vae.errors import ConfigError
from pyro_vae.storage.atomic import atomic_write_text
from pyro_vae.storage.bundle import read_bundle
from pyro_vae.storage.paths import require_room
from pyro_vae.storage.save import NAME

SETTINGS = "train.json"  # what `train` was asked for; itself a file for --config
VOCABULARY = "vocabulary.txt"  # the words by number, without which a run is mute
# What `--resume settings` lets differ, beside these.
_RENEWABLE = {"lr", "lr_schedule", "beta", "warmup", "clip_norm"}
_KINDS = {"model": str, "data": str, "binarization": str, "seed": int}  # all runs have these
_OF_MODELS = {"network", "posterior", "observation", "hidden", "latent_dim", "kinds"}
_FREE = {"out", "resume", "device", "progress"}  # not part of what a run is
_ANEW = {"checkpoint_every", "patience"}  # what a continuation may choose anew
# Ways out where the file of a run has changed since its training.
NAME_IT = "name the file of the training (--data FILE)"
TAKE_ALL = "take all rows of one that has none of them (--split all)"
_AS_IT_IS = "and it is read as it is now"
_FIGURES = "and results are those of the program as it is now"


def fresh_folder(folder: Path) -> Path:
    """Make the folder, or the first of folder-2, folder-3, ... that does not exist; return it.

    It is made at once: of two commands that look for one, each gets its own.
    """
    number, path = 1, folder
    require_room("out", folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            path.mkdir()
            return path
        number += 1
        path = folder.with_name(f"{folder.name}-{number}")


@contextmanager
def removed_if_empty(folder: Path | None) -> Iterator[None]:
    """Leave no folder behind in which a command has written nothing; None is no folder."""
    try:
        yield
    finally:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()


def record(
    folder: Path,
    settings: dict[str, Any],
    words: Sequence[str] = (),
    files: Sequence[KnownFile] = (),
) -> None:
    """Write the settings once the run folder is there, and when a continuation changes some.

    Arguments:
        folder: of the run.
        settings: of the run.
        words: those of its sentences or documents; none where they are only numbered.
        files: those that `files_of` tells.
    """
    if words and not (folder / VOCABULARY).exists():
        atomic_write_text(folder / VOCABULARY, "\n".join(words) + "\n")
    for file in files:
        file.remember()
    without = _FREE | (_OF_MODELS if is_own(settings["model"]) else set())
    kept = {k: v for k, v in settings.items() if k not in without}
    text = json.dumps(kept, indent=2) + "\n"
    path = folder / SETTINGS
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        atomic_write_text(path, text)  # the record is made after each epoch


def files_of(folder: Path, settings: dict[str, Any]) -> list[KnownFile]:
    """Return the files that a run is trained with, as they are now."""
    found = [known_file(folder, what, path) for what, path in _paths(settings).items()]
    return [each for each in found if each is not None]


def _paths(settings: dict[str, Any]) -> dict[str, str]:
    """Return the names of the files of a run: its data and its program, where these are files."""
    own, data = is_own(settings["model"]), str(settings["data"])
    found = {"data": data} if is_file(settings, data) else {}
    return found | ({"program": parted(settings["model"])[0]} if own else {})


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
    known = found if isinstance(found, dict) else {}
    sound = all(isinstance(known.get(name), kind) for name, kind in _KINDS.items())
    if not sound or not isinstance(known.get("options") or {}, dict):
        raise ConfigError(f"{path}: not the settings of a run")
    return known


def nothing_to_go_on_with(folder: Path) -> str:
    """Return why a folder without settings does not say what to go on with, and what does."""
    if (folder / "config.json").exists():
        return (
            f"{_by_python(folder)}; or, if `pyro-vae train` wrote it and ended in the first epoch, "
            "name its model, --data and other settings"
        )
    lacks = f"has no {SETTINGS}" if folder.is_dir() else "is no folder"
    return (
        f"resume: {folder} {lacks}, so that nothing says what to train; check --out, or name the "
        "model or --data to begin a run"
    )


def _by_python(folder: Path) -> str:
    return f"resume: pv.fit wrote the run in {folder}; go on with pv.fit(..., resume=True)"


def go_on(
    folder: Path, settings: dict[str, Any], *, renew: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a continuation: in the words of its run, and with files to be read.

    A file under another name is the file of the run by its place or by its contents.

    Arguments:
        folder: of the run; where there is none, the settings are returned as they are.
        settings: of the continuation.
        renew: whether those that may be renewed may differ.

    Raises:
        ConfigError: The run has other settings.
    """
    if not (folder / SETTINGS).exists():
        return settings, settings
    before = read_settings(folder)
    if "undivided" in before:
        raise ConfigError(_by_python(folder))
    now, then = _paths(settings), _paths(before)
    words, asked = dict(settings), dict(settings)
    known = {what: recalled(folder, what, path) for what, path in then.items() if what in now}
    data, program = known.get("data"), known.get("program")
    if data and not (Path(now["data"]) == Path(then["data"]) or data.is_meant(now["data"])):
        data = None
    if program:
        program = _as_meant(program, settings["model"], before["model"])
    if data:
        words["data"] = before["data"]
    if program:
        words["model"] = before["model"]
    if (folder / VOCABULARY).exists():
        words["vocab"] = before.get("vocab")  # `check_words` looks at the words
        if settings["vocab"] is None or not Path(settings["vocab"]).exists():
            asked["vocab"] = str(folder / VOCABULARY)
    _require_same(folder, words, before, renew)
    if data:
        asked["data"] = data.found(now["data"])
        data.tell_of_change(asked["data"], _AS_IT_IS)
        data.tell_of_namesake(asked["data"], now["data"])
    if program:
        asked["model"] = _program_now(program, settings["model"], _AS_IT_IS)
        if parted(asked["model"])[1] != parted(before["model"])[1]:
            words["model"] = asked["model"]  # the file that was said has it by another name
    return words, asked


def _as_meant(known: KnownFile, model: str, before: str) -> KnownFile | None:
    """Return what is known of the program of a run if a model is this one, else None.

    It is by its words, place or contents, by what was said of it, or where nothing is at its place.
    What was said stands for the words of the run, and for no other file.

    Arguments:
        known: the file of the program.
        model: ``file.py:name``, of a continuation.
        before: of the run.
    """
    (file, name), (then, known_by) = parted(model), parted(before)
    by_words = Path(file) == Path(then) and name == known_by
    by_said = _full(file, name) == known.said and not known.is_kept()
    if by_words or by_said:
        return known
    is_it = known.is_meant(file) or not is_readable(known.place)
    return replace(known, said=None) if is_it and name == known_by else None


def _require_same(
    folder: Path, settings: dict[str, Any], before: dict[str, Any], renew: bool
) -> None:
    """Require of a continuation the settings of its run, but for those that it renews."""
    free = _ANEW | (_RENEWABLE if renew else set())
    if settings["lr_schedule"] == "constant" and not settings["warmup"]:
        free |= {"epochs"}  # no schedule runs over the whole of them: they only say when to stop
    for name, known in before.items():
        now = settings.get(name)
        if name not in free and (list(now) if isinstance(now, tuple) else now) != known:
            raise ConfigError(
                f"resume: {name} is {now!r}, but the run in {folder} has {known!r}; "
                f"use its settings (--config {folder / SETTINGS}), or another --out"
                + (", or --resume settings" if name in _RENEWABLE else "")
            )


def words_of(folder: Path) -> list[str]:
    """Return the words by number that a run has recorded; none where it has no such file."""
    path = folder / VOCABULARY
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n") if path.exists() else []


def check_words(folder: Path, words: Sequence[str]) -> None:
    """Require the words of a run, where it has recorded some: by number, they are what it learnt.

    Arguments:
        folder: of the run.
        words: of the data.
    """
    path = folder / VOCABULARY
    if not path.exists():
        return
    known = words_of(folder)
    if list(words) != known:
        pairs = enumerate(zip_longest(words, known))
        place, (got, expected) = next(each for each in pairs if each[1][0] != each[1][1])
        raise ConfigError(
            f"vocab: got {got!r} as word {place}, but the run in {folder} was trained with "
            f"{expected!r} ({path}); its own words are taken where --vocab is left out"
        )


def settings_of(run: str, program: str | None = None, **changed: Any) -> dict[str, Any]:
    """Return the settings of a run, with those that are not None changed; nothing is written.

    Among them is then the ``run``, and whether the data are ``other`` ones than those of the
    training.

    Arguments:
        run: run folder.
        program: ``file.py:name``, where the run does not say, or says another place.
        changed: other settings.
    """
    folder, data = Path(run), changed.get("data")
    settings, said_anew = _told(folder, program, changed)
    if program is not None:
        settings["model"] = program
    if (folder / VOCABULARY).exists():
        settings["vocab"] = str(folder / VOCABULARY)
    asked = settings | {k: v for k, v in changed.items() if v is not None}
    if data is None and is_file(settings, settings["data"]):
        typed = str(settings["data"])
        asked["data"] = recalled(folder, "data", typed).found(typed)
    if is_file(settings, asked["data"]):
        if changed.get("binarization"):
            require_as_it_is(asked)
        asked["binarization"] = "none"
    asked["run"] = run
    asked["other"] = other = not said_anew and is_other(folder, settings, data)
    if other and is_file(settings, asked["data"]):
        asked["undivided"] = True
    return asked


def open_run(
    run: str, device: str, program: str | None = None, **changed: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the program of a run, and what `settings_of` tells, with a digest of its weights.

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
    asked, into = settings_of(run, program, **changed), None
    if is_own(asked["model"]):
        if program is None:
            asked["model"] = _own_program_of(folder, asked["model"])
        into = own_program(asked["model"], dict(asked.get("options") or {}))
    asked[WEIGHTS] = weights_in(folder)  # before they are read: a run that goes on writes others
    loaded = pv.load(run, into=into, device=where)
    pv.Program.of(loaded).to(where)
    told, said_anew = _told(folder, program, changed)
    if program is not None or not (folder / SETTINGS).exists():
        load_data(asked).taken_by(loaded, asked["data"])  # what is remembered is sound
        if "undivided" in told:
            atomic_write_text(folder / SETTINGS, json.dumps(told, indent=2) + "\n")
            for file in files_of(folder, told):
                if file.what == "program" or said_anew:
                    file.remember()
        else:
            _remember_moved_program(folder, told["model"], asked["model"])
    _remember_moved_data(folder, told, changed.get("data"))
    return loaded, asked


def _told(folder: Path, program: str | None, said: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return what a run says of itself, and whether the data are said of it for the first time.

    What Python wrote says nothing but what commands are told of it.
    """
    if folder.is_file():
        raise ConfigError(
            f"{folder}: got a file, expected the folder of pv.save or pv.fit(out=...) that holds "
            f"it, {folder.parent}"
        )
    python = any((folder / name).exists() for name in ("config.json", f"{NAME}.safetensors"))
    if python and not (folder / SETTINGS).exists():
        return _settings_of_python(folder, program, said), True
    settings, data = read_settings(folder), said.get("data")
    by_python = "undivided" in settings
    if program is not None and not is_own(program) and not (by_python and program in MODELS):
        raise ConfigError(
            f"program: got {program!r}, expected FILE.py:NAME of your own; the model of the run in "
            f"{folder} is {settings['model']}"
        )
    if program is None or not by_python:
        return settings, False
    anew = bool(settings["undivided"] and data)  # nothing but these words says it
    return settings | {"model": program} | ({"data": data} if anew else {}), anew


def _own_program_of(folder: Path, model: str) -> str:
    """Return a program of one's own with its file where that can be read now."""
    known = recalled(folder, "program", parted(model)[0])
    _require_program(known, model)
    return _program_now(known, model, _FIGURES, _evaluate(folder))


def _evaluate(folder: Path) -> str:
    return f"pyro-vae evaluate {shlex.quote(str(folder))}"


def _require_program(known: KnownFile, model: str) -> None:
    """Raise `ConfigError` where the file of a program is nowhere."""
    path, name = _where(known, model)
    if not is_readable(path):
        said = f"{_evaluate(known.folder)} --program FILE.py:{name or 'NAME'}"
        raise ConfigError(f"{path}: no such file; say once where the program lies now: {said}")


def require_files(run: str, settings: dict[str, Any]) -> None:
    """Raise `ConfigError` where the file of the data or of the program of a run is nowhere.

    Arguments:
        run: run folder.
        settings: what `settings_of` returned.
    """
    folder, model = Path(run), settings["model"]
    _require_data(folder, settings)
    if is_own(model):
        _require_program(recalled(folder, "program", parted(model)[0]), model)


def _require_data(folder: Path, settings: dict[str, Any]) -> None:
    """Raise `ConfigError` where the file of the data of a run is nowhere."""
    data = str(settings["data"])
    if is_file(settings, data) and not is_readable(data):
        if settings["other"]:
            raise ConfigError(f"{data}: no such file or folder; check --data")
        raise ConfigError(
            f"{data}: no such file or folder; name once where the data of the run in {folder} lie "
            f"now: {_evaluate(folder)} --data FILE"
        )


def _where(known: KnownFile, model: str) -> tuple[str, str]:
    """Return the file of a program, where that can be read now, and the name.

    What was said last stands for a file of the training that has gone or changed.
    """
    said, (typed, name) = parted(known.said or ""), parted(model)
    if known.said and is_readable(said[0]) and not known.is_kept():
        return said
    return known.found(typed), name


def _program_now(known: KnownFile, model: str, then: str, evaluate: str = "") -> str:
    """Return a program with its file where that can be read now; tell of doubts.

    Arguments:
        known: the file of the program.
        model: ``file.py:name``, as typed.
        then: what follows if the file has changed.
        evaluate: the command that says another file, where that is a way out.
    """
    (typed, _), (path, name) = parted(model), _where(known, model)
    if (path, name) != parted(known.said or ""):
        once = f"; say once which it is: {evaluate} --program FILE.py:{name or 'NAME'}"
        known.tell_of_copy(path, once if evaluate else "")
    known.tell_of_change(path, then)
    this = f" ({evaluate} --program {shlex.quote(model)} takes that)" if evaluate else ""
    known.tell_of_namesake(path, typed, this)
    return f"{path}:{name}" if name else path


def _full(file: str, name: str) -> str:
    """Return ``file.py:name`` as a record has it, from any directory."""
    place = os.path.realpath(file)
    return f"{place}:{name}" if name else place


def _remember_moved_program(folder: Path, model: str, said: str) -> None:
    """Write which program was said, unless that of the training lies where it did, as it was."""
    known = recalled(folder, "program", parted(model)[0])
    file, name = parted(said)
    known.tell_of_change(file, _FIGURES)
    if not known.is_kept():
        replace(known, said=_full(file, name)).remember()


def _remember_moved_data(folder: Path, settings: dict[str, Any], data: str | None) -> None:
    """Write where the file of a training lies now, if it has gone from where it lay."""
    known = recalled(folder, "data", str(settings["data"]))
    if data and not is_readable(known.place) and known.is_in(data):
        replace(known, place=os.path.realpath(data)).remember()


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
        lacks = " and ".join(["program"] * (model is None) + ["data"] * (data is None))
        words = [] if named in MODELS else [f"--program {_quoted(program, 'my_program.py:NAME')}"]
        line = " ".join([str(shlex.quote(str(folder))), *words, f"--data {_quoted(data, 'FILE')}"])
        raise ConfigError(
            f"{folder}: Python wrote it (pv.fit, pv.save), and it does not say where its {lacks} "
            f"{'is' if lacks == 'program' else 'are'}; say it once, and all commands know it from "
            f"then on: pyro-vae evaluate {line}"
        )
    return {
        "model": model,
        "data": data,
        "binarization": said.get("binarization") or default_binarization(model, data),
        "seed": 0,
        "undivided": is_file({"model": model}, data),
    }


def _quoted(said: str | None, sample: str) -> str:
    return sample if said is None else shlex.quote(said)


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
    if not settings["other"]:
        _require_data(Path(settings["run"]), settings)
    data = load_data(settings, whole=split == "all").taken_by(program, settings["data"])
    if split != "all":
        tell_of_changed_rows(settings, way_out)
    return data.drawn(split, seed, count)
