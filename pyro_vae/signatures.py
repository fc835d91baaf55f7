"""Signatures that `help` shows in lines of a page."""

import inspect
import re
from typing import Any

_WIDTH = 100
# collections.abc.Callable is shown as Callable; torch.device stays as it is.
_MODULES = re.compile(r"\b(?!torch\.\w+\b(?!\.))(?:[a-z_]\w*\.)+(?=[A-Za-z])")


class Readable(inspect.Signature):
    """A signature whose text is broken into lines, and names types without their modules."""

    @classmethod
    def of(cls, function: Any) -> "Readable":
        """Return the signature of a function."""
        found = inspect.signature(function)
        return cls([*found.parameters.values()], return_annotation=found.return_annotation)

    def format(self, **options: Any) -> str:
        """Return the text, in lines of 100 letters: from Python 3.13 on `help` asks for it."""
        lines = ["("]
        for piece in self._pieces():
            if len(lines[-1]) + len(piece) > _WIDTH:
                lines.append("    ")
            lines[-1] += f"{piece}, "
        end = ")"
        if self.return_annotation is not self.empty:
            end += f" -> {_short(inspect.formatannotation(self.return_annotation))}"
        return "\n".join(line.rstrip() for line in lines).rstrip(",") + end

    __str__ = format

    def _pieces(self) -> list[str]:
        """Return what stands between the commas."""
        kinds = inspect.Parameter
        pieces, before = [], None
        for parameter in self.parameters.values():
            kind = parameter.kind
            if before is kinds.POSITIONAL_ONLY and kind is not before:
                pieces.append("/")
            if kind is kinds.KEYWORD_ONLY and before not in (kind, kinds.VAR_POSITIONAL):
                pieces.append("*")
            pieces.append(_spelled(parameter))
            before = kind
        return [*pieces, "/"] if before is kinds.POSITIONAL_ONLY else pieces


def _spelled(parameter: inspect.Parameter) -> str:
    """Return a parameter with its type; its default as it is."""
    bare = str(parameter.replace(default=parameter.empty))
    if parameter.default is parameter.empty:
        return _short(bare)
    typed = parameter.annotation is not parameter.empty
    default = parameter.default
    shown = default.__name__ if isinstance(default, type) else repr(default)
    return f"{_short(bare)}{' = ' if typed else '='}{shown}"


def _short(annotation: str) -> str:
    return _MODULES.sub("", annotation).replace("NoneType", "None")
