"""How a program is inferred: reading it, weighing it, and the objectives over its terms."""
