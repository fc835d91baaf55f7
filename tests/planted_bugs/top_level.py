"""Known bugs of the files beside the rooms."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "a step that writes to memory it shares",
        "scan.py",
        "if not shares and overload is not None:",
        "if overload is not None:",
        "tests/test_scan.py::test_a_step_that_no_graph_can_hold_is_refused",
    ),
    Bug(
        "a step of a loop whose views are those of the first step's memory",
        "scan.py",
        "            node.target = aten.reshape.default\n",
        "            pass\n",
        "tests/test_scan.py::test_a_step_may_flatten_what_lies_in_memory_otherwise_than_at_the_first_step",
    ),
]
