"""A loss or a density as one tensor graph: traced, simplified, compiled, compared."""
