"""A training step side by side: hand-written PyTorch, stock Pyro, NumPyro, pythae, and ``pv.fit``.

One command prints the table and writes one ``results/speed_<program>.json`` per program::

    OMP_NUM_THREADS=1 python -m benchmarks.speed --peers peers/bin/python

NumPyro and pythae live in a second virtual environment, since they are no dependency of ours::

    python -m venv peers
    peers/bin/pip install torch==2.13.0 numpyro jax
    peers/bin/pip install --no-deps pythae
    peers/bin/pip install pydantic cloudpickle imageio scikit-learn scipy tqdm typing_extensions

(``--no-deps``: pythae asks for the backport of ``dataclasses``, which breaks newer Pythons.)
Without ``--peers`` (or ``$PYRO_VAE_PEERS``) their rows are absent, and the table says so.

``--device cuda`` measures on a GPU, in wall clock: beside the hand-written loop as one CUDA graph,
and in half precision. ``--peers`` needs ``jax[cuda13]`` and NumPyro there; pythae may be missing.

Every competitor trains the same networks, from the same weights, on the same batches, with Adam at
1e-3 and the same loss (checked before the clock starts). Blocks of steps are interleaved, A B C,
C B A, and each is divided by the hand-written block of its round: on a shared machine single times
mean nothing.
"""
