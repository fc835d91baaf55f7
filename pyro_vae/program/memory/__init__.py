"""What a program remembers from call to call, and the way back to what it was."""
