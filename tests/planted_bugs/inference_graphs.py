"""Known bugs of `pyro_vae/inference/graphs`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "a scaled product is added as it is",
        "inference/graphs/lowering.py",
        "    if node.kwargs or len(_shape(node)) != 2:",
        "    if len(_shape(node)) != 2:",
        "tests/inference/graphs/test_lowering.py::test_products_are_added_each_once",
    ),
    Bug(
        "noise with a scale is drawn without",
        "inference/graphs/lowering.py",
        "plain = node.args[1:] in ((), (0.0, 1.0)) and not node.kwargs",
        "plain = not node.kwargs",
        "tests/inference/graphs/test_lowering.py::test_noise_is_drawn_once_and_the_same",
    ),
    Bug(
        "compiled code that is wrong half of the time runs",
        "inference/graphs/program_step.py",
        "return agree >= _DRAWS - 1",
        "return agree >= 1",
        "tests/inference/graphs/test_trust.py"
        "::test_compiled_code_may_part_at_a_rare_noise_in_gradients_alone[half of the time]",
    ),
    Bug(
        "a train-mode graph in eval mode",
        "inference/graphs/compiled_loss.py",
        "modes = self.program.training, self.step.flags(), free",
        "modes = free",
        "tests/inference/graphs/test_trust.py::test_a_graph_of_train_mode_serves_no_other",
    ),
    Bug(
        "a stale list of parameters and buffers in a graph",
        "inference/graphs/compiled_loss.py",
        "now = [home[name] for home, name in traced.homes]",
        'now = traced.now = getattr(traced, "now", [home[name] for home, name in traced.homes])',
        "tests/inference/graphs/test_compiled_loss.py::test_a_buffer_that_others_replace_is_seen",
    ),
    Bug(
        "a graph that ignores which weights are frozen",
        "inference/graphs/compiled_loss.py",
        "modes = self.program.training, self.step.flags(), free",
        "modes = self.program.training, self.step.flags()",
        "tests/inference/graphs/test_compiled_loss.py::test_weights_that_thaw_bet"
        "ween_two_steps_get_their_gradients",
    ),
    Bug(
        "a graph that ignores arguments that are no rows",
        "inference/graphs/compiled_loss.py",
        "key = (rows, fixed, kind",
        "key = (rows, kind",
        "tests/inference/graphs/test_graph_inputs.py::test_arguments_that_are_no_rows_keep_graphs_apart",
    ),
    Bug(
        "a graph that ignores N",
        "inference/graphs/compiled_loss.py",
        "kind(weights), size, modes)",
        "kind(weights), modes)",
        "tests/inference/graphs/test_compiled_loss.py::test_a_graph_knows_for_how"
        "_many_data_its_batch_stands",
    ),
    Bug(
        "a graph is kept though the program reads values in Python by now",
        "inference/graphs/course.py",
        "            self._course.note(WAYS_OUT[func], args[0])\n",
        "            pass\n",
        "tests/inference/graphs/test_kept_graphs.py::test_python_that_shows_in_rare_rows_"
        "alone_is_seen[tolist]",
    ),
    Bug(
        "a graph is kept for another loss",
        "inference/graphs/kept_graphs.py",
        "kept.layout == layout and kept.course.same_as(course)",
        "kept.layout == layout",
        "tests/inference/graphs/test_kept_graphs.py::test_another_loss_is_another_graph",
    ),
    Bug(
        "a graph is not tried on other rows",
        "inference/graphs/compiled_loss.py",
        "        step.require_equal_elsewhere(traced, call, kept.course)\n",
        "",
        "tests/inference/graphs/test_trust.py::test_comparisons_are_few",
    ),
    Bug(
        "what drifts taken for rounding",
        "inference/graphs/program_step.py",
        "if gap is None or not self._repeats(traced, call, exact):",
        "if gap is None:",
        "tests/inference/graphs/test_trust.py::test_what_drifts_is_not_taken_for_rounding",
    ),
    Bug(
        "all taken for rounding",
        "inference/graphs/comparison.py",
        "_ROUNDINGS = 10.0",
        "_ROUNDINGS = 1e9",
        "tests/inference/graphs/test_trust.py::test_a_compiler_may_round_where_the_program_itself_"
        "is_not_sure[1.0]",
    ),
    Bug(
        "rounding taken for a fault",
        "inference/graphs/comparison.py",
        "    if rounded is not None:",
        "    if False:",
        "tests/inference/graphs/test_trust.py::test_a_compiler_may_round_where_the_program_itself_"
        "is_not_sure[0.0]",
    ),
    Bug(
        "a gradient left from elsewhere",
        "inference/graphs/graph_step.py",
        "            parameter.grad = None  # one left",
        "            pass  # one left",
        "tests/inference/graphs/test_compiled_loss.py::test_a_gradient_left_from_"
        "elsewhere_moves_nothing",
    ),
    Bug(
        "gradients laid out otherwise",
        "inference/graphs/graph_step.py",
        "for index in self.traced.stray(grads):",
        "for index in ():",
        "tests/inference/graphs/test_compiled_loss.py::test_convolutions_in_float"
        "32_train_as_they_do_eagerly[vq-trace]",
    ),
    Bug(
        "a graph compared by its loss alone",
        "inference/graphs/comparison.py",
        "    return next((gap for gap in gaps if gap is not None), None)",
        "    return gaps[0]",
        "tests/inference/graphs/test_trust.py::test_what_a_graph_cannot_do_runs_e"
        "agerly_with_its_reason[GradientInNumpy]",
    ),
    Bug(
        "buffers stay after a failed graph",
        "inference/graphs/compiled_loss.py",
        "                    for leaf, copy in before:\n                        leaf.copy_(copy)",
        "                    pass",
        "tests/inference/graphs/test_compiled_loss.py::test_a_graph_that_breaks_h"
        "alfway_leaves_the_buffers_of_one_step",
    ),
    Bug(
        "a graph is blind to what changes in the midst of an epoch",
        "inference/graphs/compiled_loss.py",
        "        self._watching, self._again = True, None",
        "        pass",
        "tests/inference/graphs/test_trust.py::test_what_other_code_changes_between_steps_counts"
        "[bound in mid-epoch]",
    ),
    Bug(
        "a course is taken for any other",
        "inference/graphs/course.py",
        "self._steps == other._steps",
        "True",
        "tests/inference/graphs/test_course.py::test_what_differs_from_run_to_run_shows[a number]",
    ),
    Bug(
        "a step in a row does not look at its rows",
        "inference/graphs/compiled_loss.py",
        "self.rows == _described(batch)",
        "True",
        "tests/inference/graphs/test_graph_inputs.py::test_steps_in_a_row_take_rows_and_weights_of_"
        "their_own[fewer rows]",
    ),
    Bug(
        "a step in a row has the kind of KL weight of the one before",
        "inference/graphs/compiled_loss.py",
        "kind(weights) == self.weights",
        "True",
        "tests/inference/graphs/test_graph_inputs.py::test_steps_in_a_row_take_rows_and_weights_of_"
        "their_own[another kind of KL weight]",
    ),
    Bug(
        "a graph in a row of steps is never compared again",
        "inference/graphs/compiled_loss.py",
        "again is None or again.traced.left <= 1",
        "again is None",
        "tests/inference/graphs/test_graph_inputs.py::test_what_is_frozen_in_a_row_of_steps_stays_"
        "where_that_is_told",
    ),
]
