"""Every row of the gallery."""

from benchmarks.gallery import (
    other_repositories,
    pyro_contrib,
    pyro_examples,
    pyro_tutorials,
    single_cell,
)
from benchmarks.gallery.subject import Published

_ROOMS = pyro_examples, pyro_tutorials, pyro_contrib, other_repositories, single_cell
ROWS: dict[str, Published] = {row.name: row for room in _ROOMS for row in room.ROWS}
