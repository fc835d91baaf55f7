"""Log densities of a program on a batch: joints, their terms, and sums over discrete latents."""
