"""A sentence where an extra of the package is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyro_vae.errors import ConfigError


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Around imports: say which extra a package comes with, where it is not installed.

    Arguments:
        name: of the extra.
        purpose: what needs the package.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise ConfigError(
            f"{purpose} needs {package}, which is not installed; pip install 'pyro-vae[{name}]'"
        ) from None
