"""Measured figures: how fast, how good, and the files and tables that hold them."""
