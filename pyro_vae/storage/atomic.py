"""Files that are replaced in one step: readers see the old content or the new, never a part."""

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a text file (UTF-8) in one step: readers see the old text or the new, never a part.

    Raises:
        OSError: disk full, no permission; the old file is intact and no temporary file is left.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(
    path: str | os.PathLike[str], data: bytes, *, previous: Path | None = None
) -> None:
    """Replace a file in one step, as :func:`atomic_write_text` does for text.

    Arguments:
        path: The file; any number of processes may write it, and one of them wins.
        data: Its new content.
        previous: Where the old content goes, in the same folder; None drops it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # 0o666 less the umask, as for any file; `tempfile` would make it private to the user.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that processes of this machine left when they were killed."""
    mine = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(host())}-(\d+)-[0-9a-f]{{8}}\.tmp")
    # What cannot be removed does no harm, and must not hide an error that is under way.
    with contextlib.suppress(OSError):
        for file in os.listdir(path.parent):
            found = mine.fullmatch(file)
            if found and not is_running(int(found[1])):
                (path.parent / file).unlink()


def host() -> str:
    """Return this machine's name, as a file name can hold it."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "localhost"


def is_running(pid: int) -> bool:
    """Return whether a process of this machine is there; one that cannot be asked is."""
    if pid <= 0:
        return False
    if os.name == "nt":  # os.kill would end it there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    # A rename is durable once its folder is; Windows has no handle on a folder.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
