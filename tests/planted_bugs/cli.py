"""Known bugs of `pyro_vae/cli`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "the run's seed is not that of its weights",
        "cli/train.py",
        "    torch.manual_seed(seed)\n    program",
        "    program",
        "tests/test_cli.py::test_resume_ends_where_an_unbroken_run_does",
    ),
]
