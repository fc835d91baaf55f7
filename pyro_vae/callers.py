"""Which lines are the user's own: a warning belongs to one, and an error came through one."""

import contextlib
import os
import sys

import pyro
import torch

_FOLDERS = tuple(
    os.path.join(os.path.dirname(os.path.abspath(file or "")), "")
    for file in (__file__, pyro.__file__, torch.__file__)
)
_INSIDE = (*_FOLDERS, contextlib.__file__)


def is_inside(file: str) -> bool:
    """Return whether a file of code is this library's, PyTorch's or Pyro's."""
    return file.startswith(_INSIDE)


def of_user() -> int:
    """Return the ``stacklevel`` of the innermost caller that is neither this library nor Pyro.

    Where there is none, as in a thread of the library's own, it is that of the outermost.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and is_inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level
