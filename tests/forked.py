"""Processes that a test forks: a fresh interpreter would import torch for seconds."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest

FORK = multiprocessing.get_context("fork")
# A runner that shares tests out has a thread that waits for messages: it is not in the fork.
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def fork(function: Callable[..., None], *args: object) -> Any:
    """Start a function in a fork of this process."""
    child = FORK.Process(target=function, args=args)
    child.start()
    return child
