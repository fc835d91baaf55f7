"""The data that a run asks for: images, documents, sequences, sentences or tables."""

from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.arguments import counted
from pyro_vae.cli.options import (
    DOCUMENTS,
    LABELLED,
    SENTENCES,
    SEQUENCES,
    TABLES,
    Binarization,
)
from pyro_vae.cli.own_program import is_own
from pyro_vae.cli.report import say
from pyro_vae.data import catalogue
from pyro_vae.data.array_files import READERS, Arrays, read_arrays
from pyro_vae.data.count_files import read_counts, read_vocabulary, read_whole
from pyro_vae.data.line_files import read_lines, read_words
from pyro_vae.data.splits import ByTurns
from pyro_vae.data.table_files import SUFFIXES, split_table
from pyro_vae.errors import ConfigError, DataError

SETS = {
    "images": ("digits", "mnist", "mnist_static", "fashion_mnist"),
    "documents": catalogue.DOCUMENTS,
    "sequences": ("jsb",),
    "sentences": ("coco_captions",),
    "tables": (),
}
_FILES = {
    "images": (*READERS,),
    "documents": (".npz",),
    "sentences": (".txt",),
    "tables": SUFFIXES,
}  # of a user's own


@dataclass(frozen=True)
class DataSet:
    """Data as `fit` and the other verbs take them.

    Arguments:
        source: a `Splits`, a `Corpus`, a `SequenceSets`, a `Table` or `Arrays`.
        network: "conv" takes images, all else takes rows.
        words: of sentences or documents; empty where those are only numbered.
        label: the argument that takes the labels of images; None leaves these out.
        whole: a file that may be taken undivided, as ``all``.
    """

    source: Any
    network: str = "mlp"
    words: tuple[str, ...] = ()
    label: str | None = None
    whole: bool = False

    @property
    def transform(self) -> Any:
        """What each training batch is put through, or None."""
        return getattr(self.source, "transform", None)

    def rows(self, split: str, count: int | None = None) -> Any:
        """Return the data of a split, or the first of them; ``all`` of a file."""
        if split == "all" and not self.whole:
            raise ConfigError(
                "split: got all, expected train, valid or test: only files are taken whole"
            )
        by_turns = isinstance(self.source, ByTurns)  # else each split has all
        x: Any = getattr(self.source, "test" if split == "all" and not by_turns else split)
        x = {k: v[:count] for k, v in x.items()} if isinstance(x, dict) else x[:count]
        if self.network == "conv" and isinstance(self.source, pv.data.Splits):
            x = self.source.images(x)
        if self.label is not None:
            return {"x": x, self.label: self.source.labels[split][:count]}
        return x

    def batches(self, size: int) -> tuple[Any, dict[str, Any]]:
        """Return the training data as `fit` takes them, and its option of the size of batches."""
        if isinstance(self.source, pv.data.SequenceSets):
            return pv.data.bucketed(self.source.train, size), {}
        return self.rows("train"), {"batch_size": size}

    def taken_by(self, program: Any, file: str) -> "DataSet":
        """Return of several arrays of a file those that a program takes, as it takes them.

        Flags are 0 and 1 to a program that does not run on flags; of whole numbers `fit` knows.

        Arguments:
            program: what they are for.
            file: as the run names it.

        Raises:
            DataError: The program takes none of these names, or one more.
        """
        if not isinstance(self.source, Arrays):
            return self
        named = self._named(program, file)
        whole = named.source.whole
        arrays = whole.values() if isinstance(whole, dict) else [whole]
        if all(each.dtype != torch.bool for each in arrays):
            return named
        wrapped = pv.Program.of(program)
        try:
            wrapped.reader.runs.trace_of_model(wrapped.adapt(named.rows("all", 2)))
        except DataError:
            return replace(named, source=named.source.flags_as_floats())
        return named

    def _named(self, program: Any, file: str) -> "DataSet":
        """Return the arrays by the names of a program's arguments, without those it has not."""
        whole = self.source.whole
        if not isinstance(whole, dict):
            return self
        known = signature(program.model).parameters
        left = [name for name in whole if name not in known]
        if not left or any(each.kind is each.VAR_KEYWORD for each in known.values()):
            return self
        kept = {name: value for name, value in whole.items() if name in known}
        needed = [name for name, each in known.items() if each.default is each.empty]
        if len(whole) == len(needed) == 1:
            return replace(self, source=Arrays(next(iter(whole.values()))))
        if not set(needed) <= set(kept):
            names = "".join(f", {name}=..." for name in needed)
            raise DataError(
                f"{file}: has arrays {', '.join(whole)}, and the model takes {', '.join(known)}; "
                f"write them under these names, np.savez({file!r}{names})"
            )
        say(f"{file}: left out {', '.join(left)}, which the model does not take")
        return replace(self, source=Arrays(kept["x"] if set(kept) == {"x"} else kept))

    def drawn(self, split: str, seed: int, count: int | None = None) -> Any:
        """Return rows, with one draw of data that training draws afresh."""
        x = self.rows(split, count)
        if self.transform is None:
            return x
        torch.manual_seed(seed)
        return self.transform(x)  # what is binary already stays as it is


def load_data(settings: dict[str, Any], *, whole: bool = False) -> DataSet:
    """Return the data of a run.

    Arguments:
        settings: of the run.
        whole: take a file undivided: of documents or sentences each split has all then; arrays and
            tables have all rows beside their splits.

    Raises:
        ConfigError: The model is none of such data.
        DataError: No data set of that name, and no file.
    """
    kind, name, words = kind_of(settings["model"]), str(settings["data"]), settings.get("vocab")
    suffixes = _FILES.get(kind, ())
    worded = kind in ("documents", "sentences")
    if words and not worded:
        raise ConfigError(
            f"vocab: got {words!r}, expected none: only files of counts and of sentences have one"
        )
    if name in SETS[kind]:
        chosen = None if settings["binarization"] == "none" else settings["binarization"]
        source: Any = pv.data.load(name, binarization=chosen, seed=settings["seed"])
        spoken = source.vocabulary if worded else ()
        read = read_words if kind == "sentences" else read_vocabulary
        if words and spoken != read(Path(words)):
            raise ConfigError(f"data: the words of {name} are not those of {words}")
        label = LABELLED.get(settings["model"]) if getattr(source, "labels", None) else None
        return DataSet(source, settings.get("network", "mlp"), words=spoken, label=label)
    if kind == "images" and (Path(name).is_dir() or name.endswith(suffixes)):
        arrays = read_arrays(Path(name))
        own = is_own(settings["model"])  # what it makes of whole numbers is its own business
        arrays = arrays if own else arrays.in_floats()
        return DataSet(arrays, settings.get("network", "mlp"), whole=True)
    files = " or a file " + " or ".join(suffixes) if suffixes else ""
    files += ", or a folder of images" if kind == "images" else ""
    known = (", ".join(SETS[kind]) + files).removeprefix(" or ")
    if any(name in names for names in SETS.values()):
        raise ConfigError(
            f"data: {name} is no set of {kind}, which {settings['model']} models; choose {known}"
        )
    if kind == "images" and Path(name).is_absolute() and not Path(name).exists():
        raise DataError(f"{name}: no such file or folder")  # where that of a training lay
    if not name.endswith(suffixes):
        lacks = "" if Path(name).exists() else ", and no such file"
        raise DataError(f"data: unknown data set {name!r}{lacks}; choose {known}")
    path, vocabulary = Path(name), Path(words) if words else None
    if kind == "tables":
        return DataSet(split_table(path), whole=True)
    if kind == "sentences":
        source = read_lines(path, vocabulary, whole=whole)
        return DataSet(source, words=source.vocabulary, whole=whole)
    source = (read_whole if whole else read_counts)(path, vocabulary)
    gone = sum(source.dropped.values())
    if gone:
        say(f"{name}: left out {counted(gone, 'document')} without words")
    return DataSet(source, words=source.vocabulary if words else (), whole=whole)


def is_file(settings: dict[str, Any], data: str) -> bool:
    """Return whether data are a file, and no named set of what the model of a run is of."""
    return data not in SETS[kind_of(settings["model"])]


def require_as_it_is(settings: dict[str, Any]) -> None:
    """Raise `ConfigError` where a file is to be binarized: it is taken as it is."""
    data, chosen = settings["data"], settings["binarization"]
    if chosen != "none" and is_file(settings, data):
        raise ConfigError(
            f"binarization: got {chosen}, expected none: {data} is a file, which is taken as it is"
        )


def kind_of(model: str) -> str:
    """Return what a model is of: "documents", "sequences", "sentences" or "tables".

    All others, and the user's own programs, are of "images": arrays of a file, or a named set.
    """
    kinds = {
        "documents": DOCUMENTS,
        "sequences": SEQUENCES,
        "sentences": SENTENCES,
        "tables": TABLES,
    }
    return next((kind for kind, models in kinds.items() if model in models), "images")


def default_model(data: str) -> str:
    """Return the model of a run that names none."""
    return "TableVAE" if data.endswith((".csv", ".parquet")) else "VAE"


def default_binarization(model: str, data: str) -> Binarization:
    """Return the binarization of a run that names none: a file is taken as it is."""
    if data == "mnist_static":
        return "static"
    grey = data not in SETS["images"] or kind_of(model) != "images" or is_own(model)
    if grey or model in ("LinearVAE", "Autoencoder"):
        return "none"
    return "threshold" if model in LABELLED else "dynamic"
