"""How much memory an action takes at its peak, beside what the process held before."""

from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """A mark from which on the peak is counted; where Linux does not tell it, nothing grows."""

    def __init__(self) -> None:
        if _RESET.exists():
            _RESET.write_text("5")  # the peak begins anew at what is held now
        self._before, self._mapped = _kilobytes("VmRSS"), _kilobytes("RssFile")

    def grown(self) -> int:
        """Return the bytes held at the peak beyond those held at the mark.

        Without pages of libraries: a child that was forked has none of them until it runs them.
        """
        mapped = max(0, _kilobytes("RssFile") - self._mapped)
        return 1024 * max(0, _kilobytes("VmHWM") - self._before - mapped)


def _kilobytes(name: str) -> int:
    if not _STATUS.exists():
        return 0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
