"""Known bugs of `pyro_vae/nn`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "batch norm of one row in training",
        "nn/layers.py",
        "if self.training and self.track_running_stats and len(x) == 1:",
        "if False:",
        "tests/test_nn.py::test_a_lone_row_is_normalised_by_running_moments_and_moves_none",
    ),
    Bug(
        "classes beside each other",
        "nn/layers.py",
        "return hot.flatten(-self.event_dim - 1, -self.event_dim)",
        "return hot.movedim(-self.event_dim - 1, "
        "-self.event_dim).flatten(-self.event_dim - 1, -self.event_dim)",
        "tests/test_nn.py::test_one_hot_is_class_major",
    ),
    Bug(
        "dropout never on",
        "nn/layers.py",
        "layers.append(nn.Dropout(dropout))",
        "layers.append(nn.Identity())",
        "tests/test_nn.py::test_dropout_acts_in_training_only",
    ),
    Bug(
        "a GRU starts over",
        "nn/steps.py",
        "        if start is None:\n",
        "        if True:\n",
        "tests/test_nn.py::test_a_gru_goes_on_from_a_state",
    ),
]
