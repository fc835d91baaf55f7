"""What is kept on disk: programs, checkpoints and run folders, in tensors and JSON, never code."""
