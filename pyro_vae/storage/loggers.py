"""Loggers of a user's: the rows of the history go to them, and no fault of theirs stops a run."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pyro_vae.arguments import shown
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError


class Loggers:
    """Any number of loggers in the form of Lightning Fabric's: ``log_metrics(metrics, step)``.

    The first failure of one is a warning, and its end.

    Arguments:
        given: One, several, or None.

    Raises:
        ConfigError: One is no logger.
    """

    def __init__(self, given: Any) -> None:
        alone = given is not None and not isinstance(given, list | tuple)
        self._live: list[Any] = [given] if alone else list(given or ())
        for logger in self._live:
            if not callable(getattr(logger, "log_metrics", None)):
                raise ConfigError(
                    f"logger: got {shown(logger)}, expected a logger of lightning_fabric.loggers "
                    "(or any with its method log_metrics), or a list of them"
                )

    @contextmanager
    def opened(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Tell them the settings of a run, and after the block how it ended.

        Arguments:
            settings: As JSON holds them.
        """
        self._each(lambda logger: _told(logger, "log_hyperparams", _as_parameters(settings)))
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            self._each(lambda logger: _told(logger, "finalize", status))

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Send one row of the history."""
        numbers = {name: value for name, value in row.items() if not math.isnan(value)}
        self._each(lambda logger: logger.log_metrics(dict(numbers), step))
        self._each(lambda logger: _told(logger, "save"))

    def _each(self, call: Callable[[Any], Any]) -> None:
        for logger in list(self._live):
            try:
                call(logger)
            except Exception as error:  # a side log of any kind of fault
                self._live.remove(logger)
                warnings.warn(
                    f"logger: {type(logger).__name__} gets no more rows ({type(error).__name__}: "
                    f"{error}); the run goes on",
                    UserWarning,
                    stacklevel=of_user(),
                )


def _as_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without what tells programs and rows apart: it is long, and hashes mostly.

    MLflow refuses all of them for one name that is empty, as that of a root module is.
    """
    config = settings.get("architecture", {}).get("config")
    left = {name: value for name, value in settings.items() if name not in ("rows", "architecture")}
    return {**left, "config": config}


def _told(logger: Any, method: str, *arguments: Any) -> None:
    """Call a method that not every logger has."""
    with suppress(NotImplementedError):
        getattr(logger, method, lambda *_: None)(*arguments)
