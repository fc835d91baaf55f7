"""Known bugs of `pyro_vae/data`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "labels left in the old order",
        "data/splits.py",
        "return {k: x[i] for k, i in parts.items()}, {k: y[i] for k, i in "
        "parts.items()}, (1, 8, 8)",
        "return {k: x[i] for k, i in parts.items()}, dict(zip(parts, "
        "y.split((1297, 250, 250)))), (1, 8, 8)",
        "tests/test_data.py::test_digits_are_all_there_once",
    ),
    Bug(
        "the static test set sorted by digit",
        "data/splits.py",
        'part["test"] = part["test"][order]',
        "pass",
        "tests/test_data.py::test_static_file_is_read_as_published_with_its_test_set_shuffled",
    ),
    Bug(
        "the first twelfth for validation",
        "data/splits.py",
        '"train": x[:-held_out], "valid": x[-held_out:], "test"',
        '"train": x[held_out:], "valid": x[:held_out], "test"',
        "tests/test_data.py::test_mnist_values_and_the_last_twelfth_for_validation",
    ),
    Bug(
        "grey levels over 256",
        "data/splits.py",
        ".float().div_(255)",
        ".float().div_(256)",
        "tests/test_data.py::test_mnist_values_and_the_last_twelfth_for_validation",
    ),
    Bug(
        "an archive's declared shape believed",
        "data/readers.py",
        "if stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:",
        "if False:",
        "tests/test_data.py::test_hostile_file_is_refused[header claims 2^40 rows]",
    ),
    Bug(
        "a word of two columns",
        "data/count_files.py",
        "    if len(set(words)) < len(words):",
        "    if False:",
        "tests/cli/test_commands.py::test_bad_files_of_counts",
    ),
    Bug(
        "halves of documents that are all of them",
        "data/count_files.py",
        "second = rows - first",
        "second = rows",
        "tests/test_corpora.py::test_halves_of_documents_share_their_words",
    ),
    Bug(
        "whole numbers with holes read as real ones",
        "data/table_files.py",
        'read(path, dtype_backend="numpy_nullable")',
        "read(path)",
        "tests/cli/test_commands.py::test_a_table_from_training_to_filled_cells",
    ),
    Bug(
        "a shell's table split by nothing",
        "data/table_files.py",
        "self.whole[by_turns(len(self.whole))[split]]",
        "self.whole",
        "tests/cli/test_commands.py::test_rows_of_a_table_are_split_once",
    ),
]
