"""A call that fails teaches nothing: its data may have been the wrong ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyro_vae.errors import CheckpointError, PyroVaeError
from pyro_vae.program.sites.numbered import guides_remembered

if TYPE_CHECKING:
    from pyro_vae.program.program import Program


@contextmanager
def forgotten_on_error(program: "Program") -> Iterator[None]:
    """Leave a program as it was where this block raises: as new, where it was new.

    A new one drops what its functions made of the block's data (parameters with a row for each
    datum, the latents that an autoguide has found) and what was found out about them.
    """
    new = program.reader.fresh
    learnt = {part: dict(vars(part)) for part in (program.rows, program.examples)}
    made = [program.own.remembered(), guides_remembered(program.own.parts)] if new else []
    try:
        yield
    except Exception as error:
        unfit = program.own.loads.loaded if new else None
        for part, before in learnt.items():
            vars(part).update(before)
        for put_back in made:
            put_back()
        if new:
            program.start_anew()
        if unfit is not None and not (isinstance(error, CheckpointError) or program.rows.told):
            if error.__cause__ is not None:
                unfit.require_shapes(error)
            # What the library says of data and latents: it may be that. Calls may stand in calls.
            ours = isinstance(error, PyroVaeError) and "shape" in str(error)
            if ours and unfit.told() not in str(error):
                error.args = (f"{error}{unfit.told()}",)
        raise


@contextmanager
def as_new_if_refused(program: "Program") -> Iterator[None]:
    """Leave a program that has read nothing as it was where a run of its functions is refused."""
    put_back = program.own.remembered(), guides_remembered(program.own.parts)
    try:
        yield
    except PyroVaeError:
        for each in put_back if program.reader.fresh else ():
            each()
        raise
