"""Known bugs of `pyro_vae/program`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "a codebook of running means that looks have moved",
        "program/memory/own_state.py",
        "            found |= {id(value), id(other)} if value.shape == other.shape else set()\n",
        "            pass\n",
        "tests/storage/test_replaced_weights.py::test_looks_leave_such_a_weight_as_it_was",
    ),
    Bug(
        "starting values in functions that nothing has read since a load",
        "program/program.py",
        "as_new_if_refused(self), Arrivals(self.own).giving():",
        "as_new_if_refused(self):",
        "tests/program/test_parameters_to_come.py"
        "::test_loaded_values_stand_where_functions_run_that_nothing_has_read[autoguide_list]",
    ),
    Bug(
        "globals drawn anew in each chunk",
        "program/passes.py",
        "self._held = self._held or [{} for _ in range(self._samples)]",
        "self._held = [{} for _ in range(self._samples)]",
        "tests/program/test_passes.py::test_elbo_holds_one_draw_of_the_globals",
    ),
    Bug(
        "a model that is given data and observes none",
        "program/sites/whole.py",
        " or scoring_data(model):",
        " or True:",
        "tests/test_wrong_calls.py::test_a_wrong_call_is_told_in_a_sentence[nothing observed]",
    ),
    Bug(
        "N/B upside down",
        "program/handlers.py",
        'msg["scale"] * (self.size / frame.size)',
        'msg["scale"] * (frame.size / self.size)',
        "tests/program/test_program.py::test_global_weights_count_once_per_data_set",
    ),
    Bug(
        "a sum over the rows outside the plate counted as one of a part",
        "program/handlers.py",
        'msg["scale"] * (self.size / self.rows)',
        'msg["scale"]',
        "tests/program/looks/test_cuts.py"
        "::test_a_sum_over_the_rows_outside_their_plate_counts_as_one_of_all_in_minibatches",
    ),
    Bug(
        "parameters with gaps in their memory",
        "program/parameters/modules.py",
        "            if stride != filled:\n",
        "            if False:\n",
        "tests/training/test_dense_parameters.py"
        "::test_they_take_the_steps_of_dense_ones_and_write_nowhere_else",
    ),
    Bug(
        "a copy that trains the networks of the first",
        "program/program.py",
        "            _refuse_shared(self, twin)\n",
        "            pass\n",
        "tests/program/test_copies.py::test_functions_that_hold_networks_themselves_are_not_copied",
    ),
    Bug(
        "row numbers of a program's own overruled",
        "program/sites/numbered.py",
        "        if asked and subsample is None:",
        "        if asked:",
        "tests/program/test_row_numbers.py"
        "::test_row_numbers_that_are_an_argument_are_the_programs_own",
    ),
    Bug(
        "factors that hold no data",
        "program/handlers.py",
        "(observed, factors) if any(map(_in_a_plate, each))), None)\n"
        "    return inside or observed or factors",
        "(observed,) if any(map(_in_a_plate, each))), None)\n    return inside or observed",
        "tests/program/test_published.py::test_the_bound_is_that_of_pyro[factor_of_data]",
    ),
    Bug(
        "batches of a loader beside N data",
        "program/program.py",
        "found.of_each_batch if self.batches_alone else found.scaled",
        "found.scaled",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_function_of_a_batch_outside_the_plate_weighs_as_in_a_step_of_stock_svi",
    ),
    Bug(
        "a weight that is N over B at one number of rows taken for it",
        "program/looks/findings.py",
        "(name not in self.by_count or _is_constant(",
        "(True or _is_constant(",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_weight_of_the_number_of_rows_is_not_n_over_b_where_it_is_its_square_root",
    ),
    Bug(
        "a prior that weighs B over N is scaled away",
        "program/looks/own_weights.py",
        "found += [Counted(n, weight, rows, False) for n, weight in outside.items() if weight]",
        "pass",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_prior_that_weighs_one_over_the_number_of_batches_has_its_balance",
    ),
    Bug(
        "a constant that was N over B in another fit",
        "program/looks/findings.py",
        "if each.site in self.by_count or each.rows == rows)",
        "if True)",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_constant_is_n_over_b_of_one_batch_size_alone[tensors]",
    ),
    Bug(
        "a sum scaled once more where the program has scaled it",
        "program/program.py",
        "() if own else sums",
        "sums",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_sum_beside_rows_that_a_program_scales_itself_is_as_in_a_step_of_stock_svi",
    ),
    Bug(
        "a list of two pairs taken for one pair",
        "program/batches/listed_batches.py",
        "        if listed or not one or len(",
        "        if len(data) == 2 or listed or not one or len(",
        "tests/program/test_one_argument.py::test_a_list_of_pairs_is_one_of_batches",
    ),
    Bug(
        "N over B twice",
        "program/handlers.py",
        "        if not self.done:\n",
        "        if True:\n",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_program_that_scales_by_its_own_n_over_b_is_scaled_once",
    ),
    Bug(
        "N over B twice, in train mode alone",
        "program/looks/in_training.py",
        "return found if told.scaled_itself(size) == found.scaled_itself(size) else told",
        "return found",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_program_that_scales_in_training_alone_is_scaled_once[loader-False]",
    ),
    Bug(
        "the N that an earlier fit was told",
        "training/fit.py",
        "            program.reader.read_anew(first)  # as",
        "            pass  # as",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_the_n_of_another_fit_is_read_anew[loader]",
    ),
    Bug(
        "what a library has set up put back in part",
        "program/memory/value_places.py",
        "return any(mine.get(name) is not its.get(name) for name in self._libraries)",
        "return False",
        "tests/program/test_row_numbers.py"
        "::test_loss_and_every_row_of_the_gradient_are_those_of_stock_svi[easy]",
    ),
    Bug(
        "N over B twice, as a weight of each row",
        "program/looks/own_weights.py",
        "return float(first) if bool((scale == first).all()) else None",
        "return float(first) if scale.numel() == 1 else None",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_program_that_scales_by_its_own_n_over_b_is_scaled_once[tensors-<lambda>1]",
    ),
    Bug(
        "N over B twice, written in",
        "program/looks/own_weights.py",
        "    alike = len(one) == 1 and not one & {1.0, None}\n",
        "    alike = False\n",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_program_with_its_n_over_b_written_in_is_scaled_once_and_told[loader]",
    ),
    Bug(
        "noise that hides what a term is of the rows",
        "program/reader.py",
        "                    run = with_equal_noise(run, few)\n",
        "                    pass\n",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_noise_does_not_hide_what_a_term_is_of_the_rows[sum]",
    ),
    Bug(
        "a part of a batch refused as a batch of the data",
        "program/looks/findings.py",
        "return (*self.unplated, *self.beside",
        "return () and (*self.unplated, *self.beside",
        "tests/training/test_accumulation.py"
        "::test_what_cannot_be_cut_is_refused[function_of_batch]",
    ),
    Bug(
        "calls counted by looks",
        "program/memory/own_state.py",
        "            home.put(*was)\n",
        "            pass\n",
        "tests/program/test_own_state.py::test_the_first_step_is_the_first_call[in_slots]",
    ),
    Bug(
        "calls counted by looks in arguments of a script",
        "program/memory/value_places.py",
        "    elif kind in NAMESPACES or not",
        "    elif not",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_arguments_of_a_script]",
    ),
    Bug(
        "tensors that looks write to through data",
        "program/memory/contents.py",
        "        return not self._compared or (alike",
        "        return True or (alike",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_data_of_a_tensor]",
    ),
    Bug(
        "arrays that looks write to",
        "program/memory/own_state.py",
        "            content.put(copy)\n",
        "            pass\n",
        "tests/program/test_own_state.py::test_the_first_step_is_the_first_call[in_an_array]",
    ),
    Bug(
        "values of an iterator that a look has drawn",
        "program/memory/iterators.py",
        "        self.place = place\n",
        "        pass\n",
        "tests/program/test_own_state.py::test_the_first_step_is_the_first_call[in_a_cycle]",
    ),
    Bug(
        "a buffer that an iterator fills given as it is now",
        "program/memory/own_state.py",
        "                _put(content, copy)\n",
        "                pass\n",
        "tests/program/test_iterators.py::test_steps_see_what_those_of_a_plain_loop_see",
    ),
    Bug(
        "a value of an iterator without what the draw has moved",
        "program/memory/own_state.py",
        "home.put(*moved_since(home.state(), was, now))",
        "pass",
        "tests/program/test_iterators.py::test_steps_see_what_those_of_a_plain_loop_see",
    ),
    Bug(
        "an iterator that is ahead beside a network built late",
        "program/memory/own_state.py",
        "            self._moving |= before.numbers\n",
        "            pass\n",
        "tests/program/test_iterators_told.py"
        "::test_an_iterator_beside_a_network_that_is_built_late_is_told_of",
    ),
    Bug(
        "a stand-in left in the place of an iterator",
        "program/memory/own_state.py",
        "home.exchange(lambda value: exchanged(value, source_of))",
        "pass",
        "tests/program/test_iterators.py::test_steps_see_what_those_of_a_plain_loop_see",
    ),
    Bug(
        "steps with the noise of looks",
        "program/memory/own_state.py",
        "with noise.going_on(), noting_uses",
        "with noting_uses",
        "tests/program/test_iterators.py::test_steps_have_noise_of_their_own",
    ),
    Bug(
        "noise of looks that begins anew at each draw",
        "program/memory/noise.py",
        "            self._states = _States.now()\n            outside.put()\n",
        "            outside.put()\n",
        "tests/program/test_iterators.py"
        "::test_noise_that_looks_draw_ahead_is_distributed_as_that_of_steps",
    ),
    Bug(
        "weights put back to what they were when a look drew a view of them",
        "program/memory/own_state.py",
        "if id(each) not in held and address_of(each) not in memory]",
        "if id(each) not in held]",
        "tests/program/test_iterators.py"
        "::test_a_weight_that_an_iterator_gives_detached_is_written_to_by_no_draw",
    ),
    Bug(
        "an error of an iterator that a look alone sees",
        "program/memory/iterators.py",
        "            return cls(error=error, trace=error.__traceback__)\n",
        "            raise\n",
        "tests/program/test_iterators.py::test_steps_see_what_those_of_a_plain_loop_see",
    ),
    Bug(
        "a queue that looks take for theirs from the thread that fills it",
        "program/memory/iterators.py",
        "        if fills and another_runs():",
        "        if False:",
        "tests/program/test_iterators.py::test_steps_see_what_those_of_a_plain_loop_see",
    ),
    Bug(
        "a continuation that begins an iterator anew in silence",
        "training/continuation.py",
        "        if ahead and goes_on:\n",
        "        if False:\n",
        "tests/program/test_iterators_told.py"
        "::test_a_continuation_tells_of_an_iterator_that_begins_anew[True]",
    ),
    Bug(
        "an iterator back in its place while a trace draws from it",
        "program/memory/iterators.py",
        "return not any(each._draws or each._looks for each in (self, *self.beside))",
        "return not self.ahead",
        "tests/program/test_iterators.py"
        "::test_steps_after_a_trace_that_fails_see_what_those_of_a_plain_loop_see",
    ),
    Bug(
        "a count that processes share moved on by looks",
        "program/memory/contents.py",
        "        ctypes.memmove(ctypes.byref(self._value), copy, len(copy))\n",
        "        pass\n",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_a_value_that_processes_share]",
    ),
    Bug(
        "entries that looks have taken from a long container",
        "program/memory/contents.py",
        "        if not self.same(copy):\n",
        "        if False:\n",
        "tests/program/test_iterators_told.py"
        "::test_a_long_container_that_looks_take_from_is_told_of[<lambda>-<lambda>-list]",
    ),
    Bug(
        "a cache that holds what a look has put there",
        "program/memory/value_places.py",
        "            self._owner.cache_clear()\n        for key in table.keys() - set(keys):\n",
        "            pass\n        for key in ():\n",
        "tests/program/test_own_state.py"
        "::test_what_a_first_call_keeps_of_its_rows_is_of_the_first_batch[in_a_cache_of_functools]",
    ),
    Bug(
        "weights that start from the rows of a look",
        "program/memory/contents.py",
        "value.numel() <= (_FEW if weight else _SMALL)",
        "not weight and value.numel() <= _SMALL",
        "tests/program/test_own_state.py"
        "::test_what_a_first_call_keeps_of_its_rows_is_of_the_first_batch[in_weights_with_a_flag]",
    ),
    Bug(
        "calls counted by looks in an attribute of a layer",
        "program/memory/value_places.py",
        "            yield Names(vars(thing), without=libraries)\n",
        "            pass\n",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_an_attribute_of_a_layer]",
    ),
    Bug(
        "calls counted by looks in a hook",
        "program/parameters/object_graph.py",
        '                self.push("", hook)\n',
        "                pass\n",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_a_hook_of_a_layer]",
    ),
    Bug(
        "calls counted by a trace that has failed",
        "inference/graphs/compiled_loss.py",
        "            before.put_back(trained=True)\n            if isinstance(error, Exception):\n",
        "            if False:\n",
        "tests/program/test_own_state.py::test_places_are_put_back_after_a_trace_too",
    ),
    Bug(
        "values of a shared source in another order in silence",
        "program/memory/iterators.py",
        "each.number < self.number for each in self.beside",
        "False for each in self.beside",
        "tests/program/test_iterators_told.py"
        "::test_a_source_that_the_guide_shares_with_an_iterator_of_the_model_is_told_of",
    ),
    Bug(
        "what no look puts back moved on in silence",
        "program/reader.py",
        "tell_of_moving(self.runs.moving(batch))",
        "pass",
        "tests/program/test_iterators_told.py::test_what_no_look_puts_back_is_told_of",
    ),
    Bug(
        "calls counted by looks beside an automatic guide",
        "program/memory/value_places.py",
        "        if kind is not PyroModule and not issubclass(kind, AutoGuide):",
        "        if True:",
        "tests/program/test_own_state.py"
        "::test_what_a_library_builds_late_stays_and_counts_are_put_back[autoguide]",
    ),
    Bug(
        "calls counted by looks beside a lazy layer",
        "program/memory/contents.py",
        "    return before in (-1, version(weight))\n",
        "    return before == version(weight)\n",
        "tests/program/test_own_state.py"
        "::test_what_a_library_builds_late_stays_and_counts_are_put_back[lazy layer]",
    ),
    Bug(
        "N over B twice, as a number of batches over the rows",
        "program/looks/findings.py",
        "            if any(each.is_of(size) for each in found)\n",
        "            if all(each.is_of(size) for each in found)\n",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_number_of_batches_over_the_rows_is_n_over_b_in_a_last_batch_too",
    ),
    Bug(
        "validation data weighed by N over B of a batch",
        "program/program.py",
        "sites.dependence.written_for(size) if judged and",
        "sites.dependence.written_for(size) if False and",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_validation_data_weigh_as_many_as_they_are_where_n_over_b_is_written_in",
    ),
    Bug(
        "a flag put back where later looks find what the first has left",
        "program/memory/own_state.py",
        "            if settled or not ended or",
        "            if True or not ended or",
        "tests/program/test_own_state.py"
        "::test_what_a_first_call_keeps_of_its_rows_is_a_constant_of_others[in_an_attribute]",
    ),
    Bug(
        "a count put back without the network that it counts",
        "program/memory/own_state.py",
        "        if self._built(others, trained):\n",
        "        if False:\n",
        "tests/program/test_own_state.py::test_what_a_first_call_builds_is_built_once_and_trained",
    ),
    Bug(
        "a count of calls that goes on between the runs of a look",
        "program/looks/quiet_runs.py",
        "with self.memory_kept(), self._weights.kept():  # a count",
        "with self._weights.kept():  # a count",
        "tests/program/test_own_state.py::test_a_count_hides_no_density_that_reads_the_rows_beside",
    ),
    Bug(
        "a program settled by its first rows",
        "program/reader.py",
        "        more = self._contrasts.more_in(batch)\n",
        "        more = False\n",
        "tests/program/looks/test_cuts.py::test_a_look_at_rows_that_are_equal_settles_no_dependence",
    ),
    Bug(
        "constants settled by the first rows",
        "program/looks/constants.py",
        "return self._contrasts.more_in(batch)",
        "return False",
        "tests/program/looks/test_cuts.py::test_a_look_at_rows_that_are_equal_settles_no_constants",
    ),
    Bug(
        "weights at zero while the rows are cut",
        "program/parameters/modules.py",
        "        row[zero] = (size",
        "        zero = (size",
        "tests/program/looks/test_cuts.py::test_a_weight_that_starts_at_zero_hides_no_mean_of_all_rows",
    ),
    Bug(
        "a weight left off zero",
        "program/parameters/modules.py",
        "            row[zero] = before",
        "            pass",
        "tests/program/test_moved_weights.py"
        "::test_weights_that_a_look_has_changed_are_put_back[off_zero]",
    ),
    Bug(
        "whatever stands outside the plate taken for a sum over the rows",
        "program/looks/cuts.py",
        "is_sum, is_mean = ((here.double() - all_).abs() <= slack for all_ in (sum(values), mean))",
        "is_sum, is_mean = torch.tensor(True), torch.tensor(False)",
        "tests/program/looks/test_cuts.py"
        "::test_what_is_another_function_of_a_part_trains_on_all_data_at_once",
    ),
    Bug(
        "a small penalty beside a large sum lost in what counts as rounding",
        "program/looks/cuts.py",
        "32 * torch.finfo(here.dtype).eps * size",
        "1e-4 * size",
        "tests/program/looks/test_cuts_of_odd_programs.py"
        "::test_what_is_another_function_of_a_part_is_refused",
    ),
    Bug(
        "a mean of all rows hidden by noise of a program's own",
        "program/reader.py",
        "found = changes_by_others(run, few)",
        "found = set()",
        "tests/program/looks/test_cuts_of_odd_programs.py"
        "::test_what_is_another_function_of_a_part_is_refused",
    ),
    Bug(
        "latents in a plate of their own trained in minibatches",
        "program/looks/cuts.py",
        "return followers(run, few, cuts[0]) or None",
        "return None",
        "tests/program/looks/test_cuts_of_odd_programs.py"
        "::test_latents_outside_the_plate_that_are_as_many_as_the_rows_are_refused",
    ),
    Bug(
        "the weight of a term outside the plate not asked for",
        "program/looks/dependence.py",
        "c.site not in latents}",
        "False}",
        "tests/program/looks/test_cuts_of_odd_programs.py::test_a_sum_counts_for_all_rows",
    ),
    Bug(
        "buffers left as looks wrote them",
        "program/parameters/modules.py",
        "if version_of(buffer) != version:",
        "if False:",
        "tests/program/test_own_state.py"
        "::test_a_count_in_a_buffer_beside_a_network_that_is_built_late_is_put_back",
    ),
    Bug(
        "tiled rows counted K times",
        "program/densities/terms.py",
        "draw.batch_size = frame.size // layout.tiles",
        "draw.batch_size = frame.size",
        "tests/program/test_edge_programs.py::test_a_tiled_program_keeps_its_n[49]",
    ),
    Bug(
        "tiles read in the other order",
        "program/densities/site_densities.py",
        "return value.reshape(self.tiles, -1)",
        "return value.reshape(-1, self.tiles).mT",
        "tests/program/test_program.py::test_tiles_where_a_model_does_not_broadcast[build1-True]",
    ),
    Bug(
        "a score under the weights of handlers",
        "program/densities/terms.py",
        "scores[name] = summed(parts.score_function, 1.0)",
        "scores[name] = summed(parts.score_function, handler_scale(site))",
        "tests/inference/objectives/test_gradients.py::test_mean_gradient_under_a"
        "_kl_weight[ELBO, bits-0.3]",
    ),
    Bug(
        "the entropy of sites without a path",
        "program/densities/terms.py",
        "        draw.no_path += (name,)",
        "        pass",
        "tests/program/test_program.py::test_score_terms_stand_for_what_has_no_path",
    ),
    Bug(
        "rows of passes that all begin at 0",
        "program/passes.py",
        "                start = end\n",
        "                pass\n",
        "tests/program/test_passes.py::test_the_size_of_passes_changes_no_answer[rows]",
    ),
    Bug(
        "S equal draws of the globals",
        "program/passes.py",
        "self._held = [{**joint.global_values(), **held} for held in self._held]",
        "one = joint.global_values()\n"
        "            self._held = [{**one, **held} for held in self._held]",
        "tests/program/test_passes.py::test_elbo_of_the_globals_is_exact",
    ),
    Bug(
        "verbs in train mode",
        "program/passes.py",
        "with evaluating(program), program.answering(), torch.no_grad(), validation(False):",
        "with program.answering(), torch.no_grad(), validation(False):",
        "tests/evaluation/test_likelihood.py::test_weights_run_in_eval_mode_and_go_back",
    ),
    Bug(
        "the globals of elbo not per N",
        "program/bounds.py",
        "/ (passes.sites.size or len(values))",
        "/ 1",
        "tests/program/test_passes.py::test_elbo_of_the_globals_is_exact",
    ),
    Bug(
        "elbo at the first draw of the globals",
        "program/bounds.py",
        "values = torch.stack([each.signal.mean((0, 1)) for each in terms]).mean(0)",
        "values = terms[0].signal.mean((0, 1))",
        "tests/program/test_passes.py::test_elbo_of_the_globals_is_exact",
    ),
    Bug(
        "a sum not split by the chain rule",
        "program/densities/terms.py",
        "draw.log_p[group.label] = group.weigh(total - known, layout, group.observed)",
        "draw.log_p[group.label] = group.weigh(total, layout, group.observed)",
        "tests/program/test_enumeration.py::test_a_latent_under_a_sum_keeps_its_own_density",
    ),
    Bug(
        "no Jacobian in the log joint",
        "program/densities/log_joint.py",
        "return sum(log_p.values()) + jacobian + self.log_masked(u)",
        "return sum(log_p.values()) + self.log_masked(u)",
        "tests/program/test_log_joint.py::test_densities_on_constrained_supports[Constrained-1]",
    ),
    Bug(
        "no Jacobian in the guide's density",
        "program/densities/log_joint.py",
        "return sum(log_q.values()) + jacobian + self.log_masked(u)",
        "return sum(log_q.values()) + self.log_masked(u)",
        "tests/program/test_log_joint.py::test_densities_on_constrained_supports[Constrained-1]",
    ),
    Bug(
        "a density kept for a tensor that was written to",
        "program/densities/log_joint.py",
        "key = (version_of(u), u.requires_grad and torch.is_grad_enabled())",
        "key = (0, u.requires_grad and torch.is_grad_enabled())",
        "tests/program/test_log_joint.py::test_one_model_pass_serves_prior_and_jo"
        "int_and_never_a_changed_vector",
    ),
    Bug(
        "masks of the first rows",
        "program/densities/log_joint.py",
        "if self._masks:  # those of the other rows; at zero, so that no noise is drawn",
        "if False:",
        "tests/program/test_masked_latents.py::test_the_traced_density_reads_the_mask_of_its_rows",
    ),
    Bug(
        "chains that take the weights of a program",
        "program/densities/log_joint.py",
        "joint = program.summed_joint(batch).observing(observed or {})\n        with",
        "joint = program.joint(batch).observing(observed or {})\n        with",
        "tests/program/test_weights_on_rows.py::test_likelihoods_are_those_of_the"
        "_unweighted_model[normalising factor]",
    ),
    Bug(
        "particles placed among the rows in the wrong order",
        "program/densities/joint.py",
        "return value.movedim(0, axis).flatten(axis, axis + 1)",
        "return value.movedim(0, axis + 1).flatten(axis, axis + 1)",
        "tests/program/test_log_joint.py::test_densities_on_constrained_supports[Tiled-3]",
    ),
    Bug(
        "dreams scored at the real data",
        "program/densities/joint.py",
        "args, kwargs = self._replace(self.args, self.kwargs, values)",
        "args, kwargs = self.args, self.kwargs",
        "tests/program/test_program.py::test_a_dream_is_scored_at_its_own_data",
    ),
    Bug(
        "a parameter outside its bounds",
        "program/parameters/statements.py",
        "value = transform_to(own.known[key].constraint)(own.types.now(key))",
        "value = unconstrained.view_as(unconstrained)",
        "tests/program/test_program.py::test_constrained_parameters_stay_inside_and_train",
    ),
    Bug(
        "a KL weight on observed sites",
        "program/handlers.py",
        'if msg["is_observed"] or data_frame(msg) is None:\n            return\n        beta',
        "if data_frame(msg) is None:\n            return\n        beta",
        "tests/test_contract.py::test_beta_equals_the_hand_written_loss[vae]",
    ),
    Bug(
        "a KL weight on the globals",
        "program/handlers.py",
        'if msg["is_observed"] or data_frame(msg) is None:\n            return\n        beta',
        'if msg["is_observed"]:\n            return\n        beta',
        "tests/program/test_program.py::test_a_kl_weight_leaves_the_globals_and_the_data_alone",
    ),
    Bug(
        "a KL weight on the model only",
        "program/program.py",
        "ScaleLatents(beta)(model), ScaleLatents(beta)(guide)",
        "ScaleLatents(beta)(model), guide",
        "tests/program/test_program.py::test_a_kl_weight_leaves_the_globals_and_the_data_alone",
    ),
    Bug(
        "N/B squared",
        "program/densities/site_densities.py",
        "            scale = scale / (frame.full_size / frame.size)",
        "            pass",
        "tests/inference/objectives/test_objectives.py::test_zero_variance_of_a_p"
        "rogram_that_subsamples",
    ),
    Bug(
        "a dream written over the whole argument",
        "program/sites/observed.py",
        "        changed = base.clone(memory_format=torch.contiguous_format)\n",
        "        changed = torch.zeros_like(base, memory_format=torch.contiguous_format)\n",
        "tests/program/test_reader.py::test_a_plate_left_of_another_and_views_of_an_argument",
    ),
    Bug(
        "an offset left out of a view",
        "program/sites/observed.py",
        "dense.storage_offset() + self.offset",
        "dense.storage_offset()",
        "tests/program/test_reader.py::test_a_plate_left_of_another_and_views_of_an_argument",
    ),
    Bug(
        "aggregate posterior from the first rows",
        "program/judged.py",
        "order = torch.randperm(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "order = torch.arange(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "tests/evaluation/test_collapse_information.py::test_sorted_data_tell_wha"
        "t_shuffled_data_tell",
    ),
    Bug(
        "late values that the store lacks as a run goes on",
        "program/parameters/late_values.py",
        "Value(each.name, each.constraint)",
        "Value(each.name)",
        "tests/storage/test_resume_late_values.py"
        "::test_functions_that_read_the_store_find_late_values_there_as_the_run_goes_on",
    ),
    Bug(
        "a parameter that comes late is not trained",
        "program/parameters/parameters.py",
        "            self.version += 1\n\n    def take_average",
        "            pass\n\n    def take_average",
        "tests/training/test_late_parameters.py"
        "::test_what_comes_with_a_later_run_of_equal_batches_is_trained",
    ),
    Bug(
        "answers of passes that keep the memory of a pass",
        "program/passes.py",
        "[_moved(function(piece)) for piece in pieces]",
        "[function(piece) for piece in pieces]",
        "tests/program/test_passes.py::test_the_answer_of_a_pass_holds_no_memory_of_it",
    ),
    Bug(
        "marginal moments from the first rows",
        "program/judged.py",
        "order = torch.randperm(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "order = torch.arange(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "tests/evaluation/test_collapse_layers.py::test_moments_of_sorted_data_ar"
        "e_those_of_shuffled_data",
    ),
    Bug(
        "a latent scored where it is not there, summed value by value",
        "program/densities/one_by_one.py",
        "if as_drawn and name not in sizes and _masks_move(told):",
        "if not as_drawn and name not in sizes and _masks_move(told):",
        "tests/program/test_masks_of_summed_latents.py::test_a_likelihood_sums_what_the_model_draws"
        "[False-flat]",
    ),
    Bug(
        "codes of rows in another order",
        "program/densities/joining.py",
        "torch.cat([p[name] if name in p else",
        "torch.cat([p[name].flip(dim) if name in p else",
        "tests/evaluation/test_generation.py::test_codes_are_the_posterior_means",
    ),
    Bug(
        "densities of unequal lengths compared",
        "program/densities/site_densities.py",
        ' or getattr(fn, "kept", None) is not None',
        "",
        "tests/test_sequence_data.py::test_paths_of_unequal_length_have_no_information_to"
        "_compare[DMM]",
    ),
    Bug(
        "draws that go on behind the end",
        "program/densities/log_joint.py",
        "if slot.name in self._ends:",
        "if False:",
        "tests/test_sequence_data.py::test_posterior_draws_end_where_their_sequences_do",
    ),
    Bug(
        "rounding inside products not looked at",
        "program/looks/cuts.py",
        "        if func in _PRODUCTS:\n",
        "        if False:\n",
        "tests/program/looks/test_cuts.py"
        "::test_large_terms_that_cancel_are_no_dependence_on_the_rows_beside",
    ),
    Bug(
        "a mask that an automatic guide lacks in silence",
        "program/sites/masks.py",
        "others = carriers().get(name, ()) if point else ()",
        "others = ()",
        "tests/program/test_masked_latents.py"
        "::test_a_mask_that_an_automatic_guide_lacks_is_told_of",
    ),
    Bug(
        "a warning that a silent look meets lost",
        "program/told.py",
        "        if silenced():\n            return\n",
        "        if silenced():\n            self._waiting.clear()\n            return\n",
        "tests/program/test_masked_latents.py"
        "::test_a_warning_that_a_silent_look_meets_is_given_afterwards",
    ),
    Bug(
        "a point beside a joint guide in silence",
        "program/densities/points.py",
        "if name in dependence.fixed or (",
        "if not dependence.together and (",
        "tests/evaluation/test_likelihood.py"
        "::test_a_point_beside_a_guide_of_all_data_is_told_of_as_no_bound",
    ),
    Bug(
        "parameters of a look at a few rows left behind",
        "program/looks/quiet_runs.py",
        "            put_back()\n            as_were()\n",
        "            as_were()\n",
        "tests/program/test_edge_programs.py::test_a_parameter_and_a_part_for_each_number_of_rows",
    ),
    Bug(
        "units that no plate holds left out of a sum over classes",
        "program/densities/enumeration.py",
        "if dim not in known and shape[dim] > 1]\n    return frames",
        "if False]\n    return frames",
        "tests/program/test_edge_programs.py"
        "::test_a_class_summed_out_beside_units_that_no_plate_holds",
    ),
    Bug(
        "a density that a point mass tells of counted where the model has none",
        "program/sites/masks.py",
        "isinstance(innermost(guide), Delta) and not has_density_of_its_own(guide)",
        "isinstance(innermost(guide), Delta)",
        "tests/program/test_masked_latents.py"
        "::test_weights_leave_out_a_density_that_a_point_mass_tells_of",
    ),
    Bug(
        "values that a model shows drawn anew with its data",
        "program/handlers.py",
        '(msg["is_observed"] and is_deterministic(msg))',
        "False",
        "tests/program/test_edge_programs.py"
        "::test_a_value_that_the_model_shows_between_latent_and_data",
    ),
    Bug(
        "a draw that no site makes taken for all particles",
        "program/densities/particles.py",
        "if _draws_once(guide_of_two, sites):",
        "if False:",
        "tests/evaluation/test_likelihood.py::test_each_particle_has_a_draw_that_no_site_makes",
    ),
    Bug(
        "factors that a guide makes of the rows it meets taken for weights of all data",
        "program/rows.py",
        "made=not (on_few and self._reader.fresh)",
        "made=False",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_it_trains_and_answers_as_the_program_of_all_rows",
    ),
    Bug(
        "a lookup seen in the first dimension alone",
        "program/sites/numbered.py",
        "return self.total in value.shape and",
        "return self.total in value.shape[:1] and",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_numbers_in_a_list_or_one_by_one_find_the_factors_too",
    ),
    Bug(
        "what an argument with holes scales taken for a mean",
        "program/sites/stand_ins.py",
        "mean = less & _are_same(shares[0], shares[1], shares.amax(0))",
        "mean = less",
        "tests/program/looks/test_stand_ins.py"
        "::test_data_that_an_argument_with_holes_scales_are_told_of",
    ),
    Bug(
        "an argument's number in the place of a hole taken for what stands in, whatever it does",
        "program/sites/stand_ins.py",
        "other_mean & _stay(each, own, *twice())",
        "other_mean",
        "tests/program/looks/test_stand_ins.py"
        "::test_data_that_an_argument_with_holes_scales_are_told_of",
    ),
    Bug(
        "ones of the shape of the rows' numbers taken for numbers of rows",
        "program/sites/numbered.py",
        "if not others and self._tells_rows(result):",
        "if not others:",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_ones_of_the_shape_of_the_numbers_find_no_factors",
    ),
    Bug(
        "a lookup missed behind one in the few rows of a batch",
        "program/sites/numbered.py",
        "if others and not looked_up:",
        "if False:",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_a_lookup_is_seen_beside_statistics_of_the_batch",
    ),
    Bug(
        "a lookup missed behind one in few rows with as many columns as there are data",
        "program/sites/numbered.py",
        "if looked_up and _fails(func, args, kwargs):",
        "if False:",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_a_lookup_is_seen_beside_statistics_of_the_batch[8-8]",
    ),
    Bug(
        "columns of few rows taken for factors at a number that these rows have",
        "program/sites/numbered.py",
        "self._few += looked_up",
        "pass",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_as_many_columns_as_rows_are_no_factors[one by one-3]",
    ),
    Bug(
        "weights that functions move themselves moved by looks too",
        "program/memory/kept_weights.py",
        "weight.data.copy_(before)",
        "pass",
        "tests/program/test_moved_weights.py::test_steps_alone_move_them[True-weight-True]",
    ),
    Bug(
        "a value moved by the look that makes it",
        "program/memory/kept_weights.py",
        "held |= own.starts",
        "pass",
        "tests/program/test_moved_weights.py::test_steps_alone_move_them[True-made-False]",
    ),
    Bug(
        "factors of places in the batch looked for among weights that start alike",
        "program/parameters/modules.py",
        "value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator).to(value))",
        "pass",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_factors_of_places_train_on_all_rows_alone[a slice]",
    ),
    Bug(
        "a weight that starts at zero taken for one that nothing moves",
        "program/memory/kept_weights.py",
        "if weight.numel() > _SMALL and weight.detach().ne(0).all():",
        "if weight.numel() > 0:",
        "tests/program/test_moved_weights.py"
        "::test_steps_alone_move_what_starts_where_it_does_not_move[3]",
    ),
    Bug(
        "what goes by the place and is no parameter taken for factors",
        "program/row_factors.py",
        "return found and finds_parameters(run, few, parameters)",
        "return found",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_lookups_by_other_numbers_than_the_place_are_taken[a trend]",
    ),
    Bug(
        "factors not asked about beside a site whose mask is right",
        "program/sites/holes.py",
        "message = message or of_moving_factors(model, runs)",
        "pass",
        "tests/program/looks/test_holes_of_factors.py"
        "::test_a_factor_that_scores_holes_is_told_of_beside_a_site_that_masks_them",
    ),
    Bug(
        "a factor told of for rows that its mask leaves out",
        "program/sites/holes_of_factors.py",
        "moved = differ(high[name], low[name]) & kept.to(high[name].device)",
        "moved = differ(high[name], low[name])",
        "tests/program/looks/test_holes_of_factors.py::test_a_factor_of_no_hole_counts_as_it_is",
    ),
    Bug(
        "factors of rows that a program draws itself trained by the rows of other places",
        "training/fit.py",
        "if whole or not program.rows.draws_factors(first, feed.size):",
        "if True:",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_factors_of_rows_that_the_program_draws_train_on_all_rows_alone[3]",
    ),
    Bug(
        "a program that draws as many rows as a batch has taken for one of so many rows",
        "program/rows.py",
        "self._draws, self._fixed = self._reader.sites.rows_drawn, False",
        "pass",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_a_network_of_rows_that_the_program_draws_trains_in_minibatches[4]",
    ),
    Bug(
        "factors in the order of their numbers trained by rows in another",
        "training/fit.py",
        "if own and not (whole or (numbered and not by_place)):",
        "if own and not (whole or numbered):",
        "tests/program/test_factors_of_the_rows_met.py"
        "::test_factors_in_the_order_of_their_numbers_train_on_all_rows_alone",
    ),
]
