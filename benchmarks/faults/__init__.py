"""What is done to runs, files, calls and processes, and what became of it, counted."""
