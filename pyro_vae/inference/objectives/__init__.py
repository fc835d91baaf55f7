"""What training minimises, one kind of objective per file."""
