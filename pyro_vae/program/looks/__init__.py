"""Looks at a program: runs that tell what its densities read, and leave nothing behind."""
