"""Which lines are the user's own: a warning belongs to one, and an error came through one."""

import contextlib
import os
import sys

import pyro
import torch

# As they stand in the code of a file, which keeps the ".." of ``sys.path``, and without it.
_FOLDERS = tuple(
    os.path.join(os.path.dirname(path), "")
    for file in (__file__, str(pyro.__file__), torch.__file__)
    for path in (os.path.abspath(file), file)
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
