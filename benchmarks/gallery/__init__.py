"""Published Pyro programs, run unchanged through every verb beside stock Pyro.

``python -m benchmarks.gallery --source DIR`` writes ``benchmarks/results/gallery.json`` and a page.
DIR holds the checkouts, ``git clone https://github.com/OWNER/NAME DIR/OWNER/NAME``: pyro-ppl/pyro
and those of ``other_repositories``. What they need and is not installed (zuko) leaves a row empty.
"""
