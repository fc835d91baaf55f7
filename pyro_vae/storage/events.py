"""TensorBoard events, written at once and by no thread: nothing here can stop or hang a run."""

import importlib.util
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.callers import of_user
from pyro_vae.storage.atomic import host


class Events:
    """A file of events in ``tensorboard/``, where TensorBoard is installed.

    Its first failure is a warning, and its end.

    Arguments:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self._path: Path | None = None
        self._rows: list[tuple[int, dict[str, float]]] = []  # for a file that is removed meanwhile
        self._stream: Any = None
        self._records: Any = None
        self._failed = importlib.util.find_spec("tensorboard") is None  # an extra

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Write one row; not TensorBoard's own writer, whose queue can hang at an interrupt."""
        if self._failed:
            return
        try:
            kept = {name: value for name, value in row.items() if not math.isnan(value)}
            self._rows.append((step, kept))
            gone = self._path is not None and not self._path.exists()
            if gone:
                self.close()
            if self._records is None:
                self._open()
            for each in self._rows if gone else self._rows[-1:]:
                self._write(*each)
        except Exception as error:  # a side log of any kind of fault
            self._failed = True
            warnings.warn(
                f"tensorboard: no more events are written ({error}); the run goes on, and "
                "history.csv has its numbers",
                UserWarning,
                stacklevel=of_user(),
            )

    def close(self) -> None:
        """Close the file, whatever it says."""
        stream, self._stream, self._records = self._stream, None, None
        if stream is not None:
            try:
                stream.close()
            except Exception as error:
                warnings.warn(f"tensorboard: {error}", UserWarning, stacklevel=of_user())

    def _open(self) -> None:
        # Here, not at the top: importing TensorBoard takes longer than a small run.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(exist_ok=True)  # in the run folder: where that is gone, none is made
        now = time.time()
        path = self.folder / f"events.out.tfevents.{now:.6f}.{host()}"
        self._path = path
        self._stream = open(path, "ab")  # noqa: SIM115  (it stays open for the run)
        self._records = RecordWriter(self._stream)
        self._records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._records.write(event.SerializeToString())
        self._records.flush()
