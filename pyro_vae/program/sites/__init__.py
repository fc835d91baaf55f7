"""What stands in a program: sample sites by role, plates, and what the observed sites observe."""
