"""The command line: ``pyro-vae train | evaluate | generate | impute | diagnose | refine |
compare | topics | demo``.

The options, their defaults and their help are the signatures and docstrings of the functions that
COMMANDS names. Exit codes: 0 done, 1 a failure while running, 2 bad input, which costs one line on
stderr.
"""

import difflib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

try:
    import docstring_parser
    from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
except ImportError:
    sys.exit("pyro-vae: error: it needs jsonargparse; pip install 'pyro-vae[cli]'")

import pyro_vae as pv
from pyro_vae.arguments import also_called
from pyro_vae.cli import (
    compare,
    demo,
    evaluate,
    fill_table,
    generate,
    refine_run,
    topic_report,
    train,
)
from pyro_vae.cli.options import in_small
from pyro_vae.cli.own_program import imports_apart
from pyro_vae.cli.report import complain, say, warn
from pyro_vae.cli.runs import SETTINGS, nothing_to_go_on_with, read_settings
from pyro_vae.errors import ConfigError, PyroVaeError
from pyro_vae.storage.paths import local_path

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "generate": generate.generate,
    "impute": fill_table.impute,
    "diagnose": evaluate.diagnose,
    "refine": refine_run.refine,
    "compare": compare.compare,
    "topics": topic_report.topics,
    "demo": demo.demo,
}

# What argparse takes in a way that no signature tells: a short name, as many words as there are.
_BY_HAND: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "generate": (("-n", "--n"), {"type": int}),
    "compare": (("runs",), {"nargs": "+"}),
}
# Options whose value needs no name where it is this word of the line (the command is word 0):
# pyro-vae train my_program.py:Clicks, generate runs/clicks 5, impute runs/t new.csv.
_BARE = {"train": (1, "model"), "generate": (2, "n"), "impute": (2, "table")}

# What a command is called elsewhere.
_MEANT = {
    **dict.fromkeys(("fit", "run"), ("train",)),
    **dict.fromkeys(("eval", "test", "score", "log_likelihood"), ("evaluate",)),
    **dict.fromkeys(("sample", "draw", "predict"), ("generate",)),
}
# What the parser calls a type, and what a reader does.
_KINDS = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "tuple[int, ...]": "a list of integers, as [200,200]",
    "dict[str, typing.Any]": """values by their names, as '{"visits": "count"}'""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    code = _answered(argv)
    say("", end="")  # what the help has left in the buffer
    return code


def _answered(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # One flag for all commands, wherever it stands; the parser only documents it.
    debug = "--debug" in arguments
    arguments = [each for each in arguments if each != "--debug"]
    _Parser.asked = next(iter(arguments), "")
    try:
        parsed = _parsed(_named(arguments))
        return _run(COMMANDS[parsed.command], parsed[parsed.command], debug)
    except SystemExit as stop:  # help (0) and usage errors (2)
        return int(stop.code or 0)
    except ConfigError as error:
        return complain(str(error), 2)


def _named(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the name of an option in front of a word that stands without it."""
    words: list[int] = []  # places of what is neither an option nor the value of one
    given: set[str] = set()
    is_value = False
    for place, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        if is_value:
            is_value = False
        elif argument.startswith("-"):
            given.add(name.lstrip("-"))
            is_value = not equals and name not in ("-h", "--help", "--print_config")
        else:
            words.append(place)
    nth, option = _BARE.get(_Parser.asked, (len(words), ""))
    if nth >= len(words) or option in given:
        return [*arguments]
    return [*arguments[: words[nth]], f"--{option}", *arguments[words[nth] :]]


def _parsed(arguments: list[str]) -> Namespace:
    """Return the values of a line; one that resumes a run takes those of the run for the rest.

    Its words are in its folder; their file, by the name of then, may be another one here.

    Raises:
        ConfigError: There is no such run, and nothing says which one to begin.
    """
    parser = _parser()
    if arguments[:1] != ["train"]:
        return parser.parse_args(arguments)
    # A config is printed with the settings of the run, below.
    words = [each for each in arguments if not each.startswith("--print_config")]
    typed = parser.parse_args(words, defaults=False)["train"]
    if not typed.get("resume") or not typed.get("out"):
        return parser.parse_args(arguments)
    folder = local_path("out", typed.out)
    if not (folder / SETTINGS).exists():
        if "model" not in typed and "data" not in typed:
            raise ConfigError(nothing_to_go_on_with(folder))
        return parser.parse_args(arguments)
    found = read_settings(folder)
    if "undivided" in found:  # `train` says how such a run goes on
        return parser.parse_args(arguments)
    return _parser(folder / SETTINGS, found | {"vocab": None}).parse_args(arguments)


def _run(command: Callable[..., None], values: Namespace, debug: bool) -> int:
    options = {k: v for k, v in values.as_dict().items() if k not in ("config", "debug")}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn  # type: ignore[assignment]
            with imports_apart():
                command(**options)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except Exception as error:
        if debug:
            raise
        # Those that are a ValueError blame what was asked for; so does a device that is not here.
        asked = isinstance(error, ValueError | pv.errors.DeviceError)
        bad_input = isinstance(error, PyroVaeError) and asked
        text = str(error) if isinstance(error, PyroVaeError) else f"{type(error).__name__}: {error}"
        return complain(text, 2 if bad_input else 1)
    return 0


class _Parser(ArgumentParser):
    """A parser whose complaints are one line."""

    asked: ClassVar = ""  # the command, as it was written; that of a command knows no name
    source = ""  # the file whose values are read

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r"(are required:.*?)\b\w+\.(\w+)$", r"\1\2", message)  # evaluate.run
        told = _wrong_kind(message) or f"{message}{self._near(message)}"
        sys.exit(complain(f"{self.source}{told}", 2))

    def take_defaults(self, path: Path, settings: dict[str, Any]) -> None:
        """Take the values of a file for what a line does not say; a complaint names the file."""
        self.source = f"{path}: "
        self.set_defaults(self.parse_object(settings, env=False, defaults=False).as_dict())
        self.source = ""

    def _near(self, message: str) -> str:
        """Return the command, option or place that an unknown one may be."""
        choice = re.search(r"invalid choice: '(\w+)'", message)
        if choice is not None:
            meant = _MEANT.get(choice[1]) or difflib.get_close_matches(choice[1], COMMANDS, n=1)
            return f"; did you mean {meant[0]}?" if meant else ""
        unknown = re.match(r"unrecognized arguments: (?:--(\w+)|([^-]\S*))", message)
        if unknown is None:
            return ""
        if unknown[2]:
            if self.asked == "train":
                return f"; did you mean --data {unknown[2]}?"
            return "; of several runs: pyro-vae compare RUN RUN" if self.asked == "evaluate" else ""
        every = [COMMANDS[self.asked]] if self.asked in COMMANDS else COMMANDS.values()
        options = sorted({name for command in every for name in _options(command)})
        near = [name for name in also_called(unknown[1]) if name in options]
        near = near or difflib.get_close_matches(unknown[1], options, n=1)
        return f"; did you mean --{near[0]}?" if near else ""


def _options(command: Callable[..., None]) -> Iterable[str]:
    return inspect.signature(command).parameters


def _wrong_kind(message: str) -> str | None:
    """Return what an option takes in words, where the parser tells of types."""
    found = re.match(
        r'Parser key "([\w.]+)":\s+(?:Expected a (.*?)\. Got value: (.*)'
        r"|.*Subtypes: [\[(](.*?)[\])]\s+Errors.*Given value: (.*))",
        message,
        re.DOTALL,
    )
    if found is None:
        return None
    key, kind, value, kinds, given = found.groups()
    words = [text for sign, text in _KINDS.items() if sign in (kind or kinds)]
    literal = re.search(r"typing\.Literal\[([^\]]*)\]", kind or kinds)
    words += [f"one of {_each_once(literal[1])}"] if literal else []
    return f"{key}: got {value or given!r}, expected {' or '.join(words)}" if words else None


def _each_once(choices: str) -> str:
    """Return choices without the small letters of those that are names of classes, too."""
    names = choices.split(", ")
    classes = {in_small(name.strip("'")) for name in names if name != name.lower()}
    return ", ".join(name for name in names if name.strip("'") not in classes)


def _told_of(function: Callable[..., None], name: str) -> dict[str, Any]:
    """Return the help of an argument, and its default where it has one."""
    told = {
        each.arg_name: each.description
        for each in docstring_parser.parse_from_object(function).params
    }
    default = inspect.signature(function).parameters[name].default
    return {"help": told[name]} | (
        {} if default is inspect.Parameter.empty else {"default": default}
    )


def _parser(path: Path | None = None, settings: dict[str, Any] | None = None) -> ArgumentParser:
    """Return the parser of all commands; by default `train` has the settings of a run, if any."""
    set_parsing_settings(add_print_completion_argument=True)  # of shells, where shtab is installed
    parser = _Parser(prog="pyro-vae", description=pv.__doc__, version=pv.__version__)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, function in COMMANDS.items():
        title = (function.__doc__ or name).splitlines()[0]
        sub = _Parser(description=title)
        sub.add_argument("--config", action="config", help="YAML or JSON file with options.")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error.")
        flags, options = _BY_HAND.get(name, ((), {}))
        skipped: set[str | int] = {flag.lstrip("-") for flag in flags}
        sub.add_function_arguments(function, as_positional=True, skip=skipped)
        if flags:
            sub.add_argument(*flags, **_told_of(function, flags[-1].lstrip("-")), **options)
        if path and settings and name == "train":
            sub.take_defaults(path, settings)
        commands.add_subcommand(name, sub, help=title)
    return parser
