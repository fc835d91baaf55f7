"""Known bugs of `pyro_vae/cli`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "the run's seed is not that of its weights",
        "cli/train.py",
        "    torch.manual_seed(seed)\n    with _told",
        "    with _told",
        "tests/cli/test_commands.py::test_resume_ends_where_an_unbroken_run_does",
    ),
    Bug(
        "an edited program judges the weights of the old one without a word",
        "cli/known_files.py",
        "if is_readable(path) and not self.is_in(path)",
        "if False",
        "tests/cli/test_moved_files.py::test_a_program_is_known_from_any_directory_and_by_its_contents",
    ),
    Bug(
        "a second project is judged with the modules of the first",
        "cli/own_program.py",
        "            del sys.modules[name]",
        "            continue",
        "tests/cli/test_moved_files.py::test_each_program_has_neighbours_of_its_own",
    ),
]
