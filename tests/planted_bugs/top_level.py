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
]
