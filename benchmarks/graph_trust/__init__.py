"""Whether a graph ever trains otherwise than its program does."""
