"""Samplers and importance weights over tensors alone: no program is known here."""
