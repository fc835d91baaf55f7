"""Every row of the gallery."""

from benchmarks.gallery import other_repositories, pyro_contrib, pyro_examples
from benchmarks.gallery.subject import Published

ROWS: dict[str, Published] = {
    row.name: row for row in (*pyro_examples.ROWS, *pyro_contrib.ROWS, *other_repositories.ROWS)
}
