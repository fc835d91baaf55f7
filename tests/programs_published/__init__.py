"""Programs of the shapes that publications have, each with its number from mathematics or Pyro."""

from collections.abc import Callable

from programs_published import guides, shapes, shipped, sums
from programs_published.pair import Pair

PAIRS: dict[str, Callable[[], Pair]] = shapes.PAIRS | guides.PAIRS | sums.PAIRS | shipped.PAIRS
