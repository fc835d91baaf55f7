"""How a program is inferred: objectives, samplers, posteriors, and the graphs that run them."""
