"""Known bugs, each with the test that catches it; ``benchmarks/planted_bugs.py`` plants them."""

from typing import NamedTuple


class Bug(NamedTuple):
    """A change of one text in one file of the package, and the test that fails on it."""

    name: str
    file: str
    original: str
    planted: str
    test: str


BUGS = [
    # The program and what reads it
    Bug(
        "globals drawn anew in each chunk",
        "program/passes.py",
        "self._held = self._held or [{} for _ in range(self._samples)]",
        "self._held = [{} for _ in range(self._samples)]",
        "tests/program/test_passes.py::test_elbo_holds_one_draw_of_the_globals",
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
        "program/modules.py",
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
        "program/numbered.py",
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
        "N of all items where a sampler deals some",
        "training/feed.py",
        "[0 if by_sampler else 1 :]",
        "[1:]",
        "tests/training/test_feed.py::test_the_size_is_the_rows_of_an_epoch",
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
        "a weight of one at all rows taken for N over B",
        "program/looks/dependence.py",
        "(all(found) if name in self.by_count else any(found))",
        "any(found)",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_weight_that_is_one_at_all_rows_is_not_n_over_b",
    ),
    Bug(
        "a prior that weighs B over N is scaled away",
        "program/looks/dependence.py",
        "found += [Counted(n, weight, rows, False) for n, weight in outside.items() if weight]",
        "pass",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_prior_that_weighs_one_over_the_number_of_batches_has_its_balance",
    ),
    Bug(
        "a constant that was N over B in another fit",
        "program/looks/dependence.py",
        "if each.site in self.by_count or each.rows == rows)",
        "if True)",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_constant_is_n_over_b_of_one_batch_size_alone",
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
        "program/listed_batches.py",
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
        "what a library has set up put back in part",
        "program/own_state.py",
        "return any(mine.get(name) is not its.get(name) for name in self._libraries)",
        "return False",
        "tests/program/test_row_numbers.py"
        "::test_loss_and_every_row_of_the_gradient_are_those_of_stock_svi[easy]",
    ),
    Bug(
        "N over B twice, as a weight of each row",
        "program/looks/dependence.py",
        "return float(first) if bool((scale == first).all()) else None",
        "return float(first) if scale.numel() == 1 else None",
        "tests/program/looks/test_batches_of_loaders.py"
        "::test_a_program_that_scales_by_its_own_n_over_b_is_scaled_once[tensors-<lambda>1]",
    ),
    Bug(
        "N over B twice, written in",
        "program/looks/dependence.py",
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
        "program/looks/dependence.py",
        "return (*self.unplated, *self.beside",
        "return () and (*self.unplated, *self.beside",
        "tests/training/test_accumulation.py"
        "::test_what_cannot_be_cut_is_refused[function_of_batch]",
    ),
    Bug(
        "calls counted by looks",
        "program/own_state.py",
        "            home.put(*was)\n",
        "            pass\n",
        "tests/program/test_own_state.py::test_the_first_step_is_the_first_call[in_slots]",
    ),
    Bug(
        "calls counted by looks in arguments of a script",
        "program/own_state.py",
        "    elif kind in NAMESPACES or not",
        "    elif not",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_arguments_of_a_script]",
    ),
    Bug(
        "tensors that looks write to through data",
        "program/own_state.py",
        "        return not self._small or (alike",
        "        return True or (alike",
        "tests/program/test_own_state.py"
        "::test_the_first_step_is_the_first_call[in_data_of_a_tensor]",
    ),
    Bug(
        "arrays that looks write to",
        "program/own_state.py",
        "            content.put(copy, self._all.homes)\n",
        "            pass\n",
        "tests/program/test_own_state.py::test_the_first_step_is_the_first_call[in_an_array]",
    ),
    Bug(
        "a flag put back where later looks find what the first has left",
        "program/own_state.py",
        "            if settled or not ended or",
        "            if True or not ended or",
        "tests/program/test_own_state.py"
        "::test_what_a_first_call_keeps_of_its_rows_is_a_constant_of_others[in_an_attribute]",
    ),
    Bug(
        "a count put back without the network that it counts",
        "program/own_state.py",
        "if not (others or written) or self._built(others):",
        "if not (others or written):",
        "tests/program/test_own_state.py::test_what_a_first_call_builds_is_built_once_and_trained",
    ),
    Bug(
        "a count of calls that goes on between the runs of a look",
        "program/looks/quiet_runs.py",
        "            with self.memory_kept():  # a count",
        "            with nullcontext():  # a count",
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
        "program/constants.py",
        "return self._contrasts.more_in(batch)",
        "return False",
        "tests/program/looks/test_cuts.py::test_a_look_at_rows_that_are_equal_settles_no_constants",
    ),
    Bug(
        "weights at zero while the rows are cut",
        "program/modules.py",
        "        value[zero] = (size",
        "        zero = (size",
        "tests/program/looks/test_cuts.py::test_a_weight_that_starts_at_zero_hides_no_mean_of_all_rows",
    ),
    Bug(
        "a weight left off zero",
        "program/modules.py",
        "            value[zero] = before",
        "            pass",
        "tests/program/looks/test_cuts.py::test_a_weight_that_starts_at_zero_hides_no_mean_of_all_rows",
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
        "return _followers(run, few, cuts[0]) or None",
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
        "no rows but the first looked at behind a transform",
        "training/fit.py",
        "if transform is None or program.sites.outside:",
        "if transform is None:",
        "tests/program/looks/test_cuts_of_odd_programs.py::test_a_transform_hides_no_rows_that_tell",
    ),
    Bug(
        "buffers left as looks wrote them",
        "program/modules.py",
        "if buffer._version != version:",
        "if False:",
        "tests/program/looks/test_cuts_of_odd_programs.py"
        "::test_a_look_counts_no_call_and_passes_no_warning_on",
    ),
    Bug(
        "tiled rows counted K times",
        "program/terms.py",
        "draw.batch_size = frame.size // layout.tiles",
        "draw.batch_size = frame.size",
        "tests/program/test_edge_programs.py::test_a_tiled_program_keeps_its_n[49]",
    ),
    Bug(
        "tiles read in the other order",
        "program/site_densities.py",
        "return value.reshape(self.tiles, -1)",
        "return value.reshape(-1, self.tiles).mT",
        "tests/program/test_program.py::test_tiles_where_a_model_does_not_broadcast[build1-True]",
    ),
    Bug(
        "a score under the weights of handlers",
        "program/terms.py",
        "scores[name] = summed(parts.score_function, 1.0)",
        "scores[name] = summed(parts.score_function, handler_scale(site))",
        "tests/inference/objectives/test_gradients.py::test_mean_gradient_under_a"
        "_kl_weight[ELBO, bits-0.3]",
    ),
    Bug(
        "the entropy of sites without a path",
        "program/terms.py",
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
        "with program.running(), evaluating(program), torch.no_grad(), validation(False):",
        "with program.running(), torch.no_grad(), validation(False):",
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
        "program/terms.py",
        "draw.log_p[group.label] = group.weigh(total - known, layout, group.observed)",
        "draw.log_p[group.label] = group.weigh(total, layout, group.observed)",
        "tests/program/test_enumeration.py::test_a_latent_under_a_sum_keeps_its_own_density",
    ),
    Bug(
        "no Jacobian in the log joint",
        "program/log_joint.py",
        "return sum(log_p.values()) + jacobian + self.log_masked(u)",
        "return sum(log_p.values()) + self.log_masked(u)",
        "tests/program/test_log_joint.py::test_densities_on_constrained_supports[Constrained-1]",
    ),
    Bug(
        "no Jacobian in the guide's density",
        "program/log_joint.py",
        "return sum(log_q.values()) + jacobian + self.log_masked(u)",
        "return sum(log_q.values()) + self.log_masked(u)",
        "tests/program/test_log_joint.py::test_densities_on_constrained_supports[Constrained-1]",
    ),
    Bug(
        "a density kept for a tensor that was written to",
        "program/log_joint.py",
        "key = (u._version, u.requires_grad and torch.is_grad_enabled())",
        "key = (0, u.requires_grad and torch.is_grad_enabled())",
        "tests/program/test_log_joint.py::test_one_model_pass_serves_prior_and_jo"
        "int_and_never_a_changed_vector",
    ),
    Bug(
        "masks of the first rows",
        "program/log_joint.py",
        "if self._masks:  # those of the other rows; at zero, so that no noise is drawn",
        "if False:",
        "tests/program/test_masked_latents.py::test_the_traced_density_reads_the_mask_of_its_rows",
    ),
    Bug(
        "chains that take the weights of a program",
        "program/log_joint.py",
        "joint = program.summed_joint(batch).observing(observed or {})\n        with",
        "joint = program.joint(batch).observing(observed or {})\n        with",
        "tests/program/test_weights_on_rows.py::test_likelihoods_are_those_of_the"
        "_unweighted_model[normalising factor]",
    ),
    Bug(
        "particles placed among the rows in the wrong order",
        "program/joint.py",
        "return value.movedim(0, axis).flatten(axis, axis + 1)",
        "return value.movedim(0, axis + 1).flatten(axis, axis + 1)",
        "tests/program/test_log_joint.py::test_densities_on_constrained_supports[Tiled-3]",
    ),
    Bug(
        "dreams scored at the real data",
        "program/joint.py",
        "args, kwargs = self._replace(self.args, self.kwargs, values)",
        "args, kwargs = self.args, self.kwargs",
        "tests/program/test_program.py::test_a_dream_is_scored_at_its_own_data",
    ),
    Bug(
        "a parameter outside its bounds",
        "program/parameters.py",
        "value = transform_to(self._constraints.setdefault(key, constraint))(unconstrained)",
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
        "program/site_densities.py",
        "            scale = scale / (frame.full_size / frame.size)",
        "            pass",
        "tests/inference/objectives/test_objectives.py::test_zero_variance_of_a_p"
        "rogram_that_subsamples",
    ),
    Bug(
        "a dream written over the whole argument",
        "program/observed.py",
        "        changed = base.clone(memory_format=torch.contiguous_format)\n",
        "        changed = torch.zeros_like(base, memory_format=torch.contiguous_format)\n",
        "tests/program/test_reader.py::test_a_plate_left_of_another_and_views_of_an_argument",
    ),
    Bug(
        "an offset left out of a view",
        "program/observed.py",
        "dense.storage_offset() + self.offset",
        "dense.storage_offset()",
        "tests/program/test_reader.py::test_a_plate_left_of_another_and_views_of_an_argument",
    ),
    # Objectives
    Bug(
        "persistent chains of the wrong rows",
        "inference/objectives/hmc_refined.py",
        "self.chains.index_copy_(1, rows, refined)",
        "self.chains.index_copy_(1, rows.flip(0), refined)",
        "tests/inference/objectives/test_hmc_refined.py::test_a_chain_goes_on_whe"
        "re_its_own_row_ended",
    ),
    Bug(
        "persistent chains read from the first rows",
        "inference/objectives/hmc_refined.py",
        "self.chains[:, rows], start)",
        "self.chains[:, : len(rows)], start)",
        "tests/inference/objectives/test_hmc_refined.py::test_a_chain_goes_on_whe"
        "re_its_own_row_ended",
    ),
    Bug(
        "FreeBits without the globals",
        "inference/objectives/kl_control.py",
        "                bound = bound - log_q.mean()\n        return -with_globals(bound, terms)",
        "                bound = bound - log_q.mean()\n        return -bound",
        "tests/inference/objectives/test_every_objective.py::test_the_globals_bea"
        "r_one_over_n[free bits-1]",
    ),
    Bug(
        "TargetKL without the globals",
        "inference/objectives/kl_control.py",
        "(kl - self.nats).abs()\n        return -with_globals(bound, terms)",
        "(kl - self.nats).abs()\n        return -bound",
        "tests/inference/objectives/test_every_objective.py::test_the_globals_bea"
        "r_one_over_n[target KL-1]",
    ),
    Bug(
        "the prior of globals not per N under STL and DReG",
        "inference/objectives/pathwise.py",
        "log_q = log_q.mean() / terms.size if",
        "log_q = log_q.mean() / terms.batch_size if",
        "tests/inference/objectives/test_every_objective.py::test_the_globals_bea"
        "r_one_over_n[STL-1]",
    ),
    Bug(
        "log p of globals not per N",
        "inference/objectives/objective.py",
        "weight.mean() / terms.size",
        "weight.mean() / terms.batch_size",
        "tests/inference/objectives/test_every_objective.py::test_the_globals_bea"
        "r_one_over_n[IWAE-1]",
    ),
    Bug(
        "the leave-one-out baseline's own share",
        "inference/objectives/score_function.py",
        "* (count / (count - 1))",
        "* 1.0",
        "tests/inference/objectives/test_objectives_finite_k.py::test_bits_agains"
        "t_enumeration[RLOO 2-one layer-0]",
    ),
    Bug(
        "VIMCO's signal with the particle's own weight",
        "inference/objectives/score_function.py",
        "others = (log_weight.sum(1, keepdim=True) - log_weight) / (count - 1)",
        "others = log_weight.mean(1, keepdim=True).expand_as(log_weight)",
        "tests/inference/objectives/test_objectives_finite_k.py::test_bits_agains"
        "t_enumeration[VIMCO 2-one layer-0]",
    ),
    Bug(
        "NVIL's moments move in eval mode",
        "inference/objectives/score_function.py",
        "        if self.training:\n            self._move",
        "        if True:\n            self._move",
        "tests/inference/objectives/test_objectives_finite_k.py::test_nvil_stands"
        "_still_in_evaluation",
    ),
    Bug(
        "NVIL's variance not centred",
        "inference/objectives/score_function.py",
        "self._move(signal - predicted.detach(), centred)",
        "self._move(signal - predicted.detach(), signal)",
        "tests/inference/objectives/test_objectives_finite_k.py::test_nvil_moment"
        "s_and_network_exactly[False]",
    ),
    Bug(
        "DisARM's second draw not antithetic",
        "inference/objectives/score_function.py",
        "pair = torch.stack([uniform < half, 1 - uniform < half])",
        "pair = torch.stack([uniform < half, torch.rand_like(half) < half])",
        "tests/inference/objectives/test_objectives_finite_k.py::test_bits_agains"
        "t_enumeration[DisARM-one layer-0]",
    ),
    Bug(
        "Renyi's power of the wrong sign",
        "inference/objectives/importance_weighted.py",
        "power_mean(terms.log_weight, 1.0 - self.alpha, dim=1)",
        "power_mean(terms.log_weight, self.alpha - 1.0, dim=1)",
        "tests/inference/objectives/test_objectives.py::test_formula_on_replayed_"
        "draws[R\\xe9nyi 0.5-batch-None-3-5]",
    ),
    Bug(
        "the closed-form KL under no weight",
        "inference/objectives/elbo.py",
        "weight = terms.latents[name][0].kl_weight\n",
        "weight = 1.0\n",
        "tests/inference/objectives/test_analytic_weights.py::test_the_closed_for"
        "m_is_taken_where_it_is_right[beta]",
    ),
    Bug(
        "the signal of a global score per datum",
        "inference/objectives/elbo.py",
        "whole = global_signal + terms.size * signal.mean((1, 2))",
        "whole = global_signal + signal.mean((1, 2))",
        "tests/inference/objectives/test_gradients.py::test_a_global_without_a_path_hears_all_data",
    ),
    Bug(
        "free bits floored datum by datum",
        "inference/objectives/kl_control.py",
        "units = terms.unit_kl(site).mean((0, 1, 2))",
        "units = terms.unit_kl(site).clamp(min=0.1).mean((0, 1, 2))",
        "tests/inference/objectives/test_gradients.py::test_free_bits_per_unit[0.0-False]",
    ),
    Bug(
        "a held KL without a gradient from below",
        "inference/objectives/kl_control.py",
        "self.weight * (kl - self.nats).abs()",
        "self.weight * (kl - self.nats).clamp(min=0)",
        "tests/inference/objectives/test_collapse_objectives.py::test_a_target_pu"
        "shes_from_both_sides",
    ),
    Bug(
        "the wake update of the guide without weights",
        "inference/objectives/wake_sleep.py",
        "(weight * (log_p + self.wake * log_q)).sum(1)",
        "(weight * log_p + self.wake * log_q / weight.shape[1]).sum(1)",
        "tests/inference/objectives/test_objectives_finite_k.py::test_wake_sleep_"
        "against_its_own_expectation[one layer-2-wake]",
    ),
    Bug(
        "the sleep update left out",
        "inference/objectives/wake_sleep.py",
        "if self.sleep:",
        "if False:",
        "tests/inference/objectives/test_objectives_finite_k.py::test_wake_sleep_"
        "against_its_own_expectation[one layer-2-sleep]",
    ),
    Bug(
        "the step size of HMCRefined goes the other way",
        "inference/objectives/hmc_refined.py",
        "_GAIN * (acceptance - self.target_accept)",
        "_GAIN * (self.target_accept - acceptance)",
        "tests/inference/objectives/test_hmc_refined.py::test_the_step_size_follo"
        "ws_the_target[True]",
    ),
    Bug(
        "chains of HMCRefined in train mode",
        "inference/objectives/hmc_refined.py",
        "with evaluating(program), torch.no_grad():\n            refined",
        "with torch.no_grad():\n            refined",
        "tests/inference/objectives/test_hmc_refined.py::test_chains_run_in_eval_"
        "mode_and_gradients_in_train_mode",
    ),
    Bug(
        "the mass of HMCRefined upside down",
        "inference/objectives/hmc_refined.py",
        "parts[-1] = torch.where(usable, variance, ones)",
        "parts[-1] = torch.where(usable, 1 / variance, ones)",
        "tests/inference/objectives/test_hmc_refined.py::test_the_model_follows_t"
        "he_likelihood[top-down]",
    ),
    Bug(
        "the lagging encoder trains on",
        "inference/objectives/lagging.py",
        'elif known[_BEST] > 2 * found.stderr:\n            known[_BEST] = float("inf")',
        "elif known[_BEST] > 2 * found.stderr:\n            pass",
        "tests/inference/objectives/test_collapse_objectives.py::test_the_head_st"
        "art_ends_when_information_falls",
    ),
    Bug(
        "the decoder trains with the lagging encoder",
        "inference/objectives/lagging.py",
        "encoder = encoder_parameters(program)\n",
        "encoder = encoder_parameters(program) and tuple(program.parameters())\n",
        "tests/inference/objectives/test_collapse_objectives.py::test_the_decoder"
        "_waits_while_the_encoder_trains_ahead",
    ),
    Bug(
        "a sum over the batch before log-mean-exp",
        "inference/objectives/importance_weighted.py",
        "log_mean_exp(terms.log_weight, dim=1).mean()",
        "log_mean_exp(terms.log_weight.sum(2), dim=1).mean() / terms.batch_size",
        "tests/inference/objectives/test_objectives.py::test_formula_on_replayed_"
        "draws[IWAE-batch-None-3-5]",
    ),
    Bug(
        "a detach missing in STL",
        "inference/objectives/pathwise.py",
        "score, kept = torch.full_like(v, 1.0 / v.shape[1]), torch.zeros_like(v)",
        "score, kept = torch.full_like(v, 1.0 / v.shape[1]), v",
        "tests/inference/objectives/test_gradients.py::test_guide_gradient_vanish"
        "es_at_the_posterior",
    ),
    Bug(
        "a score-function term of the wrong sign",
        "inference/objectives/elbo.py",
        "surrogate = surrogate + _score_term(terms.score,",
        "surrogate = surrogate - _score_term(terms.score,",
        "tests/inference/objectives/test_gradients.py::test_a_global_without_a_path_hears_all_data",
    ),
    Bug(
        "a baseline that leaks gradient",
        "inference/objectives/score_function.py",
        "centred = residual.detach()",
        "centred = residual",
        "tests/inference/objectives/test_objectives_finite_k.py::test_nvil_moment"
        "s_and_network_exactly",
    ),
    Bug(
        "signals of other data",
        "inference/objectives/score_function.py",
        "half = half.reshape(half.shape + (1,) * len(distribution.event_shape))",
        "half = half.sum()",
        "tests/inference/objectives/test_objectives_finite_k.py::test_disarm_keeps_data_apart",
    ),
    Bug(
        "a closed-form KL of a bottom-up guide",
        "inference/objectives/elbo.py",
        "if parents <= drawn and alone and",
        "if alone and",
        "tests/inference/objectives/test_gradients.py::test_which_sites_are_analytic",
    ),
    # Sampling
    Bug(
        "tails cut from the momentum",
        "inference/sampling/hmc.py",
        "return noise / inverse_mass**0.5",
        "return noise.clamp(-2, 2) / inverse_mass**0.5",
        "tests/inference/sampling/test_hmc.py::test_momenta_are_normal_with_the_given_mass",
    ),
    Bug(
        "R-hat blind to unequal spread",
        "inference/sampling/diagnostics.py",
        "return torch.maximum(_rhat(scores), _rhat(folded)), _ess(scores)",
        "return _rhat(scores), _ess(scores)",
        "tests/inference/sampling/test_diagnostics.py::test_the_vectorised_number"
        "s_are_those_of_plain_loops[False-4-100--0.6]",
    ),
    Bug(
        "chains not split",
        "inference/sampling/diagnostics.py",
        "both = torch.cat([draws[:, :half], draws[:, draws.shape[1] - half :]])",
        "both = draws",
        "tests/inference/sampling/test_diagnostics.py::test_the_vectorised_number"
        "s_are_those_of_plain_loops[False-4-100--0.6]",
    ),
    Bug(
        "ESS without the variance between chains",
        "inference/sampling/diagnostics.py",
        "/ draws + chains.mean(-1).var(-1, keepdim=True)",
        "/ draws",
        "tests/inference/sampling/test_diagnostics.py::test_the_vectorised_number"
        "s_are_those_of_plain_loops[False-4-100-0.0]",
    ),
    Bug(
        "the Pareto fit without its prior",
        "inference/sampling/importance_weights.py",
        "return (shape * num + 5.0) / (num + 10.0), sigma",
        "return shape, sigma",
        "tests/inference/sampling/test_importance_weights.py::test_pareto_fit_equals_pyro[5]",
    ),
    Bug(
        "dual averaging goes the other way",
        "inference/sampling/hmc.py",
        "self.step(target - accept_prob.sum_to_size(self.next.shape) / sharing)",
        "self.step(accept_prob.sum_to_size(self.next.shape) / sharing - target)",
        "tests/inference/sampling/test_hmc.py::test_acceptance_reaches_its_target[True-0.65]",
    ),
    Bug(
        "the kept step is the last one",
        "inference/sampling/hmc.py",
        "    return state, adaptation.average",
        "    return state, adaptation.next",
        "tests/inference/sampling/test_hmc.py::test_the_step_that_is_kept_is_the_"
        "average_of_those_tried",
    ),
    Bug(
        "one length for all rows",
        "inference/sampling/hmc.py",
        "noise = _uniform(state.log_prob, generator)\n",
        "noise = _uniform(state.log_prob.flatten()[0], generator)\n",
        "tests/inference/posterior/test_refine.py::test_the_length_is_tuned_to_th"
        "e_target[100.0-expected1]",
    ),
    Bug(
        "the mass in the momentum but not in the energy",
        "inference/sampling/hmc.py",
        "return 0.5 * (inverse_mass * momentum.square()).sum(-1)",
        "return 0.5 * momentum.square().sum(-1)",
        "tests/inference/sampling/test_hmc.py::test_mass_leaves_the_posterior_invariant[0.3]",
    ),
    Bug(
        "a rejected row keeps the proposal's gradient",
        "inference/sampling/hmc.py",
        "torch.where(row, proposal.grad, state.grad)",
        "proposal.grad",
        "tests/inference/sampling/test_hmc.py::test_posterior_is_left_invariant[10-100000]",
    ),
    Bug(
        "the pilot's target forgotten",
        "inference/sampling/ais.py",
        "gain * (info.accept_prob.mean(0) - target)",
        "gain * (info.accept_prob.mean(0) - 0.3)",
        "tests/inference/sampling/test_ais.py::test_frozen_steps_meet_the_target_"
        "acceptance[0.01-10]",
    ),
    Bug(
        "temperatures without their end",
        "inference/sampling/ais.py",
        "scaled = (curve - curve[0]) / (curve[-1] - curve[0])",
        "scaled = curve",
        "tests/inference/sampling/test_ais.py::test_temperatures_rise_from_zero_t"
        "o_one[dtype0-1-sigmoid_temperatures]",
    ),
    Bug(
        "steps of another temperature",
        "inference/sampling/ais.py",
        "step = step[t - 1]",
        "step = step[0]",
        "tests/inference/sampling/test_ais.py::test_frozen_steps_meet_the_target_"
        "acceptance[0.01-10]",
    ),
    Bug(
        "mixing judged by coordinates alone",
        "inference/sampling/adaptation.py",
        "(each - mean, (each - mean).square())",
        "(each - mean, each - mean)",
        "tests/inference/posterior/test_refine.py::test_draws_that_change_sign_on"
        "_one_shell_do_not_mix",
    ),
    Bug(
        "a missing -log K",
        "inference/sampling/importance_weights.py",
        " - math.log(log_weight.shape[dim])",
        "",
        "tests/inference/sampling/test_importance_weights.py::test_log_mean_exp_e"
        "quals_the_direct_mean",
    ),
    Bug(
        "the Metropolis step dropped",
        "inference/sampling/hmc.py",
        "return _uniform(accept_prob, generator) < accept_prob",
        "return accept_prob >= 0.0",
        "tests/inference/sampling/test_hmc.py::test_a_bad_step_size_rejects_its_row_alone",
    ),
    Bug(
        "momenta not drawn anew",
        "inference/sampling/hmc.py",
        "        position.shape, generator=generator, dtype=position.dtype",
        "        position.shape, generator=torch.Generator().manual_seed(0), dtype=position.dtype",
        "tests/inference/sampling/test_hmc.py::test_momenta_are_normal_with_the_given_mass",
    ),
    Bug(
        "one accept for the batch",
        "inference/sampling/hmc.py",
        "ratio = (-energy_error).clamp(max=0.0).exp()",
        "ratio = (-energy_error.sum().expand_as(energy_error)).clamp(max=0.0).exp()",
        "tests/inference/sampling/test_hmc.py::test_each_row_accepts_on_its_own",
    ),
    Bug(
        "half a step missing in leapfrog",
        "inference/sampling/hmc.py",
        "        log_prob, grad = log_prob_and_grad(log_density, position, "
        "create_graph)\n"
        "        momentum = momentum + 0.5 * step * grad",
        "        log_prob, grad = log_prob_and_grad(log_density, position, create_graph)",
        "tests/inference/sampling/test_hmc.py::test_leapfrog_is_reversible",
    ),
    Bug(
        "AIS weights at the new state",
        "inference/sampling/ais.py",
        "        position, accept = state.position, accept + info.accept_prob\n",
        "        position, accept = state.position, accept + info.accept_prob\n"
        "        log_weight = log_weight + path.width(t) * (path.enter(position, "
        "t)[1] - log_ratio)\n",
        "tests/inference/sampling/test_ais.py::test_exact_transitions_are_unbiased",
    ),
    Bug(
        "AIS temperatures off by one",
        "inference/sampling/ais.py",
        "        state, info = kernel(state, path.log_density(t), t)\n        position",
        "        state, info = kernel(state, path.log_density(t - 1), t)\n        position",
        "tests/inference/sampling/test_ais.py::test_weights_are_unbiased_and_sandwich_the_evidence",
    ),
    # Posteriors
    Bug(
        "aggregate posterior from the first rows",
        "program/judged.py",
        "order = torch.randperm(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "order = torch.arange(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "tests/evaluation/test_collapse_information.py::test_sorted_data_tell_wha"
        "t_shuffled_data_tell",
    ),
    Bug(
        "globals drawn anew in each chunk of infer(local)",
        "inference/posterior/local_fits.py",
        "held = climb.density.globals_  # one draw of the globals for all data",
        "pass",
        "tests/inference/posterior/test_local_fits.py::test_global_latents_are_held_at_one_draw",
    ),
    Bug(
        "draws that mix the latents of a datum",
        "inference/posterior/refine.py",
        "return single({name: s.flatten(0, 1)[pick, row] for name, s in self.samples.items()})",
        "return single({name: s.flatten(0, 1)[pick[torch.randperm(len(pick))], "
        "row] for name, s in self.samples.items()})",
        "tests/inference/posterior/test_refine.py::test_draws_keep_the_sites_of_a_datum_together",
    ),
    Bug(
        "means of the kept draws alone",
        "inference/posterior/refine.py",
        "means={name: value.mean((0, 1)) for name, value in values.items()}",
        "means={name: value[:, places].mean((0, 1)) for name, value in values.items()}",
        "tests/inference/posterior/test_refine.py::test_batches_bound_the_rows_an"
        "d_keep_thins_the_draws_alone",
    ),
    Bug(
        "acceptance over the chains summed",
        "inference/posterior/refine.py",
        "acceptance=run.accept.mean(0) / settings.num_draws",
        "acceptance=run.accept.sum(0) / settings.num_draws",
        "tests/inference/posterior/test_refine.py::test_every_program_runs_and_tr"
        "aced_equals_eager[bayesian]",
    ),
    Bug(
        "a full Gaussian's density by its scale",
        "inference/posterior/gaussians.py",
        "return -0.5 * noise.square().sum(-1) - self.log_diagonal.sum(-1) - constant",
        "return -0.5 * noise.square().sum(-1) - self.scale.log().sum(-1) - constant",
        "tests/inference/posterior/test_local_fits.py::test_a_full_gaussian_has_t"
        "he_density_and_the_score_of_its_factor",
    ),
    Bug(
        "the score of a full Gaussian by the wrong factor",
        "inference/posterior/gaussians.py",
        "torch.linalg.solve_triangular(self.lower.mT, noise.movedim(0, -1), upper=True)",
        "torch.linalg.solve_triangular(self.lower, noise.movedim(0, -1), upper=False)",
        "tests/inference/posterior/test_local_fits.py::test_a_full_gaussian_has_t"
        "he_density_and_the_score_of_its_factor",
    ),
    Bug(
        "fits written to the rows of another",
        "inference/posterior/local_fits.py",
        "self.batch, self.rows, self.q = batch, self.rows[rows], self.q.at(rows)",
        "self.batch, self.rows, self.q = batch, rows, self.q.at(rows)",
        "tests/inference/posterior/test_local_fits.py::test_reaches_the_best_diag"
        "onal_gaussian[guide]",
    ),
    Bug(
        "the density of a fit without the Jacobian",
        "inference/posterior/datum_posterior.py",
        "return q.log_prob(q.noise(u)) - density.log_jacobian(u) - density.log_masked(u)",
        "return q.log_prob(q.noise(u)) - density.log_masked(u)",
        "tests/inference/posterior/test_local_fits.py::test_constrained_and_depen"
        "dent_latents_reach_log_p_with_no_variance",
    ),
    Bug(
        "one draw of the globals for all of sample",
        "inference/posterior/datum_posterior.py",
        "num_global_samples=1 if self._held else n)",
        "num_global_samples=n).__class__ and self._data.again(rows=rows, num_global_samples=1)",
        "tests/inference/posterior/test_infer.py::test_each_draw_has_globals_of_i"
        "ts_own_that_all_data_share",
    ),
    Bug(
        "means below other latents from one draw",
        "inference/posterior/datum_posterior.py",
        "self._answer(1 if self._alone else _MEAN_DRAWS, self._means)",
        "self._answer(1, self._means)",
        "tests/inference/posterior/test_infer.py::test_a_mean_below_unseen_latent"
        "s_is_an_average_and_their_density_unknown[auxiliary]",
    ),
    Bug(
        "information with the own datum twice",
        "inference/posterior/information.py",
        "piece = piece.index_put((own, own - start), piece.new_full((), -math.inf))",
        "pass",
        "tests/evaluation/test_collapse_information.py::test_information_and_the_"
        "distance_to_the_prior_enclose_the_closed_forms[0.0-1.0-0.0-2]",
    ),
    # Graphs
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
        "a schedule that changes the program goes unseen",
        "training/fit.py",
        "moved or any(map(is_of_a_user, (beta, lr_schedule))):",
        "moved:",
        "tests/inference/graphs/test_trust.py::test_what_other_code_changes_between_steps_counts"
        "[bound by beta]",
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
    # Training
    Bug(
        "the same order of rows each epoch",
        "training/loop.py",
        "self.feed.epoch(_epoch_seed(self.seed, self.epoch))",
        "self.feed.epoch(_epoch_seed(self.seed, 0))",
        "tests/training/test_fit.py::test_each_epoch_has_an_order_of_its_own",
    ),
    Bug(
        "the order does not follow the seed",
        "training/feed.py",
        "order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))",
        "order = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))",
        "tests/training/test_feed.py::test_the_order_is_the_seeds[tensor]",
    ),
    Bug(
        "the best score forgotten on resume",
        "training/loop.py",
        "self.best_epoch, self.best_elbo = progress.best_epoch, progress.best_elbo",
        "self.best_epoch = progress.best_epoch",
        "tests/storage/test_checkpoint.py::test_the_best_weights_so_far_stay_the_"
        "best_after_a_resume",
    ),
    Bug(
        "the best weights lost on resume",
        "training/loop.py",
        "self.best = {k: v.to(device) for k, v in best.items()} or None",
        "self.best = None",
        "tests/storage/test_checkpoint.py::test_the_best_weights_so_far_stay_the_"
        "best_after_a_resume",
    ),
    Bug(
        "judged rows not transformed",
        "training/loop.py",
        "sample = self.transform(sample) if self.transform is not None else sample",
        "pass",
        "tests/training/test_fit.py::test_the_rows_that_are_judged_are_transformed",
    ),
    Bug(
        "the schedule multiplies what it multiplied",
        "training/step.py",
        'group |= {"lr": base * multiplier, _BASE: base, _VALUE: multiplier}',
        'group |= {"lr": group["lr"] * multiplier, _BASE: base, _VALUE: multiplier}',
        "tests/training/test_fit.py::test_the_learning_rate_follows_its_schedule",
    ),
    Bug(
        "clipped by an earlier norm",
        "training/step.py",
        "torch.nn.utils.clip_grads_with_norm_(self.trained[index], self.clip_norm, norm)",
        "torch.nn.utils.clip_grads_with_norm_(self.trained[index], self.clip_norm, norm * 0 + 1)",
        "tests/training/test_fit.py::test_clipping_is_global[0.05]",
    ),
    Bug(
        "patience one epoch short",
        "training/loop.py",
        "self.epoch - self.best_epoch >= patience",
        "self.epoch - self.best_epoch >= patience - 1",
        "tests/training/test_fit.py::test_early_stopping[1]",
    ),
    Bug(
        "a ragged batch counts as a whole one",
        "training/loop.py",
        "sums.add(losses, self.world.rows(batch))",
        "sums.add(losses, float(self.feed.batch_size or self.world.rows(batch)))",
        "tests/training/test_fit.py::test_a_ragged_batch_counts_by_its_rows",
    ),
    Bug(
        "eval mode from the second epoch on",
        "training/loop.py",
        "        self.wrapped.train()\n",
        "        if self.epoch == 0:\n            self.wrapped.train()\n",
        "tests/training/test_fit.py::test_divergence_stops_before_the_step[z-site 'z'-7]",
    ),
    Bug(
        "judged with other noise each epoch",
        "training/loop.py",
        "with seeded(self.wrapped.device, self.world.seed(self.seed)), modes_kept",
        "with seeded(self.wrapped.device, self.world.seed(self.seed) + self.epoch), modes_kept",
        "tests/training/test_fit.py::test_weights_that_stand_still_are_judged_alike",
    ),
    Bug(
        "beta by the progress of the epoch before",
        "training/loop.py",
        "losses = self.stepper.step(batch, self.beta(progress))",
        "losses = self.stepper.step(batch, self.beta(self.epoch / self.epochs))",
        "tests/training/test_fit.py::test_a_schedule_is_asked_at_each_step",
    ),
    Bug(
        "the best weights are no copy",
        "training/loop.py",
        "self.best = {k: v.clone() for k, v in self.wrapped.state_dict().items()}",
        "self.best = {k: v for k, v in self.wrapped.state_dict().items()}",
        "tests/training/test_fit.py::test_the_best_weights_are_kept",
    ),
    Bug(
        "the score is the ELBO for every objective",
        "training/loop.py",
        "score = row[name]",
        'score = row["valid_elbo"]',
        "tests/training/test_fit.py::test_the_best_epoch_is_that_of_the_objectives_own_score",
    ),
    Bug(
        "buffers of a diverged step stay",
        "training/step.py",
        "            part._buffers[name] = buffer\n        restore(buffers, copies)\n",
        "            pass\n",
        "tests/training/test_fit.py::test_divergence_leaves_the_buffers_as_before_the_step[False]",
    ),
    Bug(
        "a buffer that is replaced stays after a diverged step",
        "training/step.py",
        "            part._buffers[name] = buffer\n",
        "            pass\n",
        "tests/training/test_steps_under_other_code.py::test_a_step_that_diverges_leaves_a_buffer_"
        "that_is_replaced_as_it_was",
    ),
    Bug(
        "a parameter that comes late is not trained",
        "program/parameters.py",
        "            self.version += 1\n\n    def take_average",
        "            pass\n\n    def take_average",
        "tests/training/test_late_parameters.py"
        "::test_what_comes_with_a_later_run_of_equal_batches_is_trained",
    ),
    Bug(
        "a graph is blind to what changes in the midst of an epoch",
        "inference/graphs/compiled_loss.py",
        "        self._watching = True",
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
        "frozen parts train",
        "training/loop.py",
        "            part.training = False\n",
        "            pass\n",
        "tests/training/test_frozen_parts.py::test_a_frozen_decoder_stands_still[False]",
    ),
    Bug(
        "shares of rows that overlap",
        "training/parallel.py",
        "start, stop = self.rank * total // self.size, (self.rank + 1) * total // self.size",
        "start, stop = 0, total // self.size",
        "tests/training/test_loaders_of_ranks.py::test_every_row_counts_once_an_epoch[2-tensors]",
    ),
    Bug(
        "an order by NumPy of each process's own",
        "training/feed.py",
        "draws = _Draws(seed) if self.world.size == 1 else _SharedDraws(seed)",
        "draws = _Draws(seed)",
        "tests/training/test_loaders_of_ranks.py"
        "::test_every_row_counts_once_an_epoch[2-rows shuffled by NumPy]",
    ),
    Bug(
        "a DistributedSampler for other processes",
        "training/feed.py",
        "        if self.dealt:\n            _require_share(",
        "        if False:\n            _require_share(",
        "tests/training/test_loaders_of_ranks.py"
        "::test_rows_that_are_left_out_or_doubled_stop_all[2-a DistributedSampler for others]",
    ),
    Bug(
        "N of all rows where a sampler of batches picks some, in several processes",
        "training/feed.py",
        "known = own is None or self.stream or self.dealt",
        "known = own is None or self.stream or self.world.size > 1",
        "tests/training/test_loaders_of_ranks.py"
        "::test_every_row_counts_once_an_epoch[2-batch_sampler of a part]",
    ),
    Bug(
        "answers of passes that keep the memory of a pass",
        "program/passes.py",
        "[_moved(function(piece)) for piece in pieces]",
        "[function(piece) for piece in pieces]",
        "tests/program/test_passes.py::test_the_answer_of_a_pass_holds_no_memory_of_it",
    ),
    Bug(
        "gradients of processes not weighed by rows",
        "training/parallel.py",
        "flat.mul_(self._weight)",
        "flat.mul_(1.0 / self.size)",
        "tests/training/test_parallel.py::test_gradients_weights_and_history_are_"
        "those_of_one_process[eager]",
    ),
    Bug(
        "all processes draw one noise",
        "training/parallel.py",
        "SeedSequence([seed, *words, self.rank + 1])",
        "SeedSequence([seed, *words, 1])",
        "tests/training/test_parallel.py::test_each_process_draws_noise_of_its_own_and_the_seeds",
    ),
    Bug(
        "an interrupted run saves its last weights",
        "training/loop.py",
        "            self.wrapped.load_state_dict({**now, **known})\n",
        "            pass\n",
        "tests/storage/test_checkpoint.py::test_the_best_weights_so_far_stay_the_"
        "best_after_a_resume",
    ),
    Bug(
        "a cosine that ends early",
        "training/schedules.py",
        "(1 + math.cos(math.pi * min(1.0, t / over))) / 2",
        "(1 + math.cos(math.pi * min(1.0, 2 * t / over))) / 2",
        "tests/training/test_schedules.py::test_ramps_go_from_end_to_end_and_stay"
        "[cosine-0.0-1.0-0.1]",
    ),
    Bug(
        "weight decay left out of the kernel",
        "training/adam.py",
        'weight_decay=group["weight_decay"],',
        "weight_decay=0.0,",
        "tests/training/test_adam.py::test_the_same_steps[event0-options1]",
    ),
    Bug(
        "the step count of a resumed Adam",
        "training/adam.py",
        "        super().load_state_dict(state_dict)\n        self._moved = []",
        "        super().load_state_dict(state_dict)",
        "tests/training/test_adam.py::test_a_state_that_is_loaded_again_replaces_the_one_at_work",
    ),
    Bug(
        "only the first clip of pyro.optim",
        "training/optimizers.py",
        'clip_grad_value_(parameter, clip["clip_value"])',
        "pass",
        "tests/training/test_optimizers.py::test_pyro_optimizers_step_as_under_svi",
    ),
    Bug(
        "moments of stock SVI forgotten",
        "training/optimizers.py",
        "made.state[parameter] = dict(before.state[parameter])",
        "pass",
        "tests/training/test_optimizers.py::test_a_pyro_optimizer_goes_on_from_its_moments",
    ),
    Bug(
        "bfloat16 outside the networks",
        "training/precision.py",
        "return outputs.float()",
        "return outputs",
        "tests/training/test_precision.py::test_products_in_bfloat16_everything_else_in_float32",
    ),
    Bug(
        "networks left under autocast",
        "training/precision.py",
        "                del network.forward\n",
        "                pass\n",
        "tests/training/test_precision.py::test_an_error_leaves_the_modules_as_they_were",
    ),
    # Storage
    Bug(
        "Adam's moments lost on resume",
        "storage/checkpoint.py",
        "        optimizer.load_state_dict(state)\n",
        "        pass\n",
        "tests/storage/test_checkpoint.py::test_resumed_is_bit_identical[plain-1]",
    ),
    Bug(
        "noise starts anew on resume",
        "storage/checkpoint.py",
        "    set_random_state(random, device, generators)\n",
        "    pass\n",
        "tests/storage/test_checkpoint.py::test_resumed_is_bit_identical[plain-1]",
    ),
    Bug(
        "parts of a batch weigh the same whatever their rows",
        "training/step.py",
        "            share = num_rows(part) / rows\n",
        "            share = 1 / self.accumulate\n",
        "tests/training/test_accumulation.py::"
        "test_the_gradients_are_those_of_the_whole_batch[tensors, ragged-3]",
    ),
    Bug(
        "a resumed epoch begins anew",
        "training/loop.py",
        "            for _ in zip(range(self.position), batches, strict=False):\n",
        "            for _ in ():\n",
        "tests/storage/test_within_epochs.py::"
        "test_a_run_that_is_killed_goes_on_from_its_last_step[tensors-1]",
    ),
    Bug(
        "NumPy's noise starts anew on resume",
        "storage/random_state.py",
        'np.random.set_state(_as_numpy(states["numpy"]))',
        "pass",
        "tests/storage/test_resume.py::test_noise_of_numpy_goes_on_where_it_stopped",
    ),
    Bug(
        "the hash is not looked at",
        "storage/bundle.py",
        "if hashed.hexdigest().encode() != seal[1]:",
        "if False:",
        "tests/storage/test_bundle.py::test_any_flipped_bit_is_noticed",
    ),
    Bug(
        "NaN is saved",
        "storage/bundle.py",
        '    if bad:\n        raise CheckpointError(\n            f"{where}: NaN',
        '    if False:\n        raise CheckpointError(\n            f"{where}: NaN',
        "tests/storage/test_bundle.py::test_hostile_tensor_file_is_refused[True-infinite weights]",
    ),
    Bug(
        "tensors too many are taken",
        "storage/bundle.py",
        '        *(f"unexpected {key!r}" for key in got if key not in expected),\n',
        "",
        "tests/storage/test_bundle.py::test_check_state_lists_every_misfit",
    ),
    Bug(
        "the older checkpoint is not kept",
        "storage/checkpoint.py",
        "allow_nonfinite=True, previous=OLDER)",
        "allow_nonfinite=True)",
        "tests/storage/test_checkpoint.py::test_a_damaged_checkpoint_gives_way_to"
        "_the_one_before[truncate]",
    ),
    Bug(
        "a running process counts as dead",
        "storage/lock.py",
        "return is_running(pid) and",
        "return False and",
        "tests/training/test_folders.py::test_a_folder_in_use_is_refused_by_the_name_of_its_owner",
    ),
    Bug(
        "settings that differ pass",
        "storage/differences.py",
        "    elif not _equal(before, now):",
        "    elif False:",
        "tests/storage/test_resume.py::test_what_differs_is_named_and_refused[data]",
    ),
    Bug(
        "history without its last row",
        "storage/history.py",
        "writer.writerows(self.rows)",
        "writer.writerows(self.rows[:-1])",
        "tests/training/test_fit.py::test_the_run_folder",
    ),
    Bug(
        "baselines of TraceGraph forgotten",
        "storage/checkpoint.py",
        '    take_averages(modules["program"], averages)\n',
        "",
        "tests/storage/test_resume.py::test_a_running_baseline_of_pyro_goes_on_where_it_stopped",
    ),
    Bug(
        "the old file gone before the new one is there",
        "storage/atomic.py",
        "    temporary = path.with_name(f",
        "    path.unlink(missing_ok=True)\n    temporary = path.with_name(f",
        "tests/storage/test_bundle.py::test_a_failing_system_call_leaves_a_good_file",
    ),
    Bug(
        "leftovers of the living swept",
        "storage/atomic.py",
        "if found and not is_running(int(found[1])):",
        "if found:",
        "tests/storage/test_bundle.py::test_left_overs_of_a_killed_writer_are_swe"
        "pt_and_those_of_a_living_one_kept",
    ),
    Bug(
        "tied tensors saved once",
        "storage/bundle.py",
        "dense[key] = plain.clone() if storage in seen else plain",
        "dense[key] = plain.clone() if storage in seen and plain.dim() == 1 else plain",
        "tests/storage/test_bundle.py::test_tied_strided_conjugated_and_grad_tensors",
    ),
    Bug(
        "a saved config that forgets a renewal",
        "storage/run_folder.py",
        "changed = _changes_so_far(path) + changes",
        "changed = changes",
        "tests/storage/test_resume.py::test_settings_change_knowingly_and_are_written_down",
    ),
    # Evaluation
    Bug(
        "marginal moments from the first rows",
        "program/judged.py",
        "order = torch.randperm(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "order = torch.arange(num_rows(self.batch), device=device_of(self.batch))[:rows]",
        "tests/evaluation/test_collapse_layers.py::test_moments_of_sorted_data_ar"
        "e_those_of_shuffled_data",
    ),
    Bug(
        "globals drawn anew in each chunk of log_likelihood",
        "evaluation/likelihood.py",
        "passes.map(lambda piece: _fold(piece, count), progress=progress)",
        "passes.map(lambda piece: _fold(passes.again(rows=64, num_global_samples=draws)"
        ".on(piece.batch), count))",
        "tests/program/test_passes.py::test_likelihoods_hold_the_draws_of_the_globals",
    ),
    Bug(
        "globals drawn anew in each chunk of generate",
        "evaluation/generation.py",
        "_observed(wrapped, piece, mean=mean) for piece in passes",
        "_observed(wrapped, passes.again(rows=9).on(piece.batch), mean=mean) for piece in passes",
        "tests/evaluation/test_generation.py::test_generated_data_share_one_draw_of_the_globals",
    ),
    Bug(
        "globals drawn anew in each chunk of reconstruct",
        "evaluation/codes.py",
        "pieces = passes.map(lambda piece: decoded(piece, _codes(piece, mean=mean), mean=mean))",
        "fresh = [passes.again(rows=9).on(piece.batch) for piece in passes]\n"
        "        pieces = [decoded(each, _codes(each, mean=mean), mean=mean) for each in fresh]",
        "tests/evaluation/test_generation.py::test_globals_are_held_for_all_rows_of_a_call",
    ),
    Bug(
        "1/K left in the noise of log p",
        "evaluation/likelihood.py",
        "((1 / ess - 1 / samples) * samples",
        "((1 / ess) * samples",
        "tests/evaluation/test_gaps.py::test_exact_weights_have_no_noise",
    ),
    Bug(
        "the noise of another bound of log p",
        "evaluation/gaps.py",
        'log_prob_noise=found[f"{chosen}, noise"]',
        'log_prob_noise=found[f"{GUIDE}, noise"]',
        "tests/evaluation/test_gaps.py::test_the_noise_is_that_of_the_estimate_that_was_chosen",
    ),
    Bug(
        "PSIS's tail at K in place of S K",
        "evaluation/likelihood.py",
        "running.add(terms.log_weight[0], total=total)",
        "running.add(terms.log_weight[0], total=count)",
        "tests/evaluation/test_likelihood.py::test_the_tail_of_all_weights_is_kept",
    ),
    Bug(
        "a latent scored where it is not there, summed value by value",
        "program/one_by_one.py",
        "if as_drawn and name not in sizes and _masks_move(told):",
        "if not as_drawn and name not in sizes and _masks_move(told):",
        "tests/program/test_masks_of_summed_latents.py::test_a_likelihood_sums_what_the_model_draws"
        "[False-flat]",
    ),
    Bug(
        "gaps between bounds at several draws of the globals",
        "evaluation/gaps.py",
        "with holding(passes.program, passes.draws):",
        "with holding(passes.program, []):",
        "tests/evaluation/test_gaps.py::test_all_bounds_are_conditional_on_one_draw_of_the_globals",
    ),
    Bug(
        "reverse AIS from another piece's latents",
        "evaluation/annealed_likelihood.py",
        "path.reverse(made.latents)",
        "path.reverse({name: value.roll(1, 0) for name, value in made.latents.items()})",
        "tests/evaluation/test_annealed_likelihood.py::test_latents_of_another_datum_would_be_seen",
    ),
    Bug(
        "the standard error without the root of N",
        "evaluation/likelihood.py",
        "return (self.log_prob.std() / math.sqrt(count)).item() if",
        "return self.log_prob.std().item() if",
        "tests/evaluation/test_likelihood.py::test_summary",
    ),
    Bug(
        "the error blind to the draws of the globals",
        "evaluation/likelihood.py",
        "return float((over_data + shares.var() / len(shares)) ** 0.5)",
        "return float(over_data ** 0.5)",
        "tests/evaluation/test_likelihood.py::test_the_stated_errors_cover_the_dr"
        "aws_of_the_globals",
    ),
    Bug(
        "the log of the mean over chunks",
        "evaluation/likelihood.py",
        "self.first = torch.logaddexp(self.first, first)",
        "self.first = torch.maximum(self.first, first)",
        "tests/evaluation/test_likelihood.py::test_folding_in_chunks_equals_one_pass[sizes1]",
    ),
    Bug(
        "the tail of the last chunk alone",
        "evaluation/likelihood.py",
        "joined = torch.cat([self.tail, log_weight])",
        "joined = log_weight",
        "tests/evaluation/test_likelihood.py::test_folding_in_chunks_equals_one_pass[sizes1]",
    ),
    Bug(
        "the upper bound is a lower one",
        "evaluation/annealed_likelihood.py",
        "return lower, -log_mean_exp(-path.reverse(made.latents).log_weight, 0)",
        "return lower, log_mean_exp(path.reverse(made.latents).log_weight, 0)",
        "tests/evaluation/test_annealed_likelihood.py::test_bounds_hold_the_exact"
        "_value_between_them[guide]",
    ),
    Bug(
        "AIS with the draw of the globals of each piece",
        "evaluation/annealed_likelihood.py",
        "density = LogJoint(passes.program, piece.batch, piece.globals_)",
        "density = LogJoint(passes.program, piece.batch)",
        "tests/evaluation/test_annealed_likelihood.py::test_equal_data_are_anneal"
        "ed_at_one_draw_of_the_globals",
    ),
    Bug(
        "the widening left out of the density",
        "evaluation/fitted_likelihood.py",
        "- proposal.log_prob(noise)\n",
        "- proposal.log_prob(noise) - 0.1\n",
        "tests/evaluation/test_fitted_likelihood.py::test_ppca[ExactPPCA-diagonal]",
    ),
    Bug(
        "codes of rows in another order",
        "program/joining.py",
        "torch.cat([p[name] if name in p else",
        "torch.cat([p[name].flip(dim) if name in p else",
        "tests/evaluation/test_generation.py::test_codes_are_the_posterior_means",
    ),
    Bug(
        "both halves decoded with the first inputs",
        "evaluation/codes.py",
        "start if t <= 0.5 else end",
        "start",
        "tests/evaluation/test_generation.py::test_interpolation_decodes_each_hal"
        "f_with_the_inputs_of_its_end",
    ),
    Bug(
        "active units by the variance of the draws",
        "evaluation/marginals.py",
        "moments.add(name, mean, spread, kept[name], noise=between / draws)",
        "moments.add(name, mean, spread, kept[name])",
        "tests/evaluation/test_collapse_layers.py::test_a_guide_equal_to_the_prio"
        "r_has_no_active_units",
    ),
    Bug(
        "the variance of q without that between draws",
        "evaluation/marginals.py",
        "between = between * (draws / (draws - 1))",
        "between = between * 0",
        "tests/evaluation/test_collapse_layers.py::test_a_guide_equal_to_the_prio"
        "r_has_no_active_units",
    ),
    Bug(
        "the prior's reconstruction at codes of the guide",
        "evaluation/diagnose.py",
        'latents = {name: sites[name]["value"] for name in terms.latents}',
        "latents = {name: draws[0].value[0] if draws[0].value.dim() > "
        'sites[name]["value"].dim() else draws[0].value for name, draws in '
        "terms.latents.items()}",
        "tests/evaluation/test_diagnose.py::test_errors_and_the_reconstruction_fr"
        "om_the_prior_are_the_closed_forms",
    ),
    Bug(
        "the KL's error without N",
        "evaluation/diagnose.py",
        ".clamp(min=0) / max(1, n - 1)",
        ".clamp(min=0)",
        "tests/evaluation/test_diagnose.py::test_errors_and_the_reconstruction_fr"
        "om_the_prior_are_the_closed_forms",
    ),
    # Data, plots and the command line
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
        "an ellipse of another share",
        "plots/posterior_panels.py",
        "radius = np.sqrt(-2 * np.log(0.1))",
        "radius = np.sqrt(-2 * np.log(0.5))",
        "tests/test_plot_posterior.py::test_an_ellipse_is_the_90_percent_contour",
    ),
    Bug(
        "the axes of a grid swapped",
        "plots/posterior_panels.py",
        "np.exp(log_density - log_density.max()).T",
        "np.exp(log_density - log_density.max())",
        "tests/test_plot_posterior.py::test_the_first_axis_of_the_grid_is_drawn_to_the_right",
    ),
    Bug(
        "regions by density and not by mass",
        "plots/posterior_panels.py",
        "mass = np.exp(ordered - top).cumsum()",
        "mass = np.arange(1.0, len(ordered) + 1)",
        "tests/test_plot_posterior.py::test_regions_hold_the_mass_that_they_say",
    ),
    Bug(
        "the run's seed is not that of its weights",
        "cli/train.py",
        "    torch.manual_seed(seed)\n    program",
        "    program",
        "tests/test_cli.py::test_resume_ends_where_an_unbroken_run_does",
    ),
    # Distributions and conditionals
    Bug(
        "tails cut from the discretised logistic's sampler",
        "distributions/discretised_logistic.py",
        "u = torch.rand_like(loc).clamp(info.tiny, 1 - info.eps)",
        "u = torch.rand_like(loc).clamp(0.01, 0.99)",
        "tests/test_distributions.py::test_draws_have_the_tails_of_the_density",
    ),
    Bug(
        "input dropout in eval mode",
        "conditionals/made.py",
        "F.dropout(2 * x - 1, self.dropout, self.training)",
        "F.dropout(2 * x - 1, self.dropout, True)",
        "tests/test_made.py::test_inputs_are_dropped_in_train_mode_alone",
    ),
    Bug(
        "no tails at the ends of the grid",
        "distributions/discretised_logistic.py",
        "log_mass = torch.where(below_top, above, 0.0) + torch.where(at_least_one, below, 0.0)",
        "log_mass = above + below",
        "tests/test_distributions.py::test_masses_sum_to_one[2]",
    ),
    Bug(
        "mixture draws that ignore the weights",
        "distributions/mixture.py",
        "which = dist.Categorical(logits=self.logits).sample(shape[:-1])",
        "which = dist.Categorical(logits=0 * self.logits).sample(shape[:-1])",
        "tests/test_priors.py::test_draws_of_a_mixture_have_its_moments",
    ),
    Bug(
        "a mixture's variance without that of the means",
        "distributions/mixture.py",
        "(self.components.variance + self.components.mean.square())",
        "(self.components.variance + self.components.mean.square() * 0.5)",
        "tests/test_priors.py::test_draws_of_a_mixture_have_its_moments",
    ),
    Bug(
        "mixture weights not normalised",
        "distributions/mixture.py",
        "self.logits.log_softmax(-1) + self.component_log_prob(value)",
        "self.logits + self.component_log_prob(value)",
        "tests/test_priors.py::test_a_mixture_is_the_loop_over_its_components",
    ),
    Bug(
        "an autoregression that is not stationary",
        "distributions/ar1.py",
        "scale = (1 - self.correlation.square()).sqrt()",
        "scale = (1 - self.correlation.square())",
        "tests/test_noncollapsing.py::test_the_autoregressive_prior_is_the_dense_"
        "gaussian_with_its_floor[0.8-7]",
    ),
    Bug(
        "the floor of an autoregression of one step more",
        "distributions/ar1.py",
        "return ((steps - 2) * math.log1p(square)",
        "return ((steps - 1) * math.log1p(square)",
        "tests/test_noncollapsing.py::test_the_autoregressive_prior_is_the_dense_"
        "gaussian_with_its_floor[0.8-7]",
    ),
    Bug(
        "no gradient straight through",
        "distributions/codebook_vectors.py",
        "value = self.code.detach() + (self.encoded - self.encoded.detach())",
        "value = self.code.detach()",
        "tests/models/test_vqvae.py::test_the_value_is_the_nearest_code_and_its_g"
        "radient_goes_straight_through",
    ),
    Bug(
        "the commitment moves the codes",
        "distributions/codebook_vectors.py",
        "commitment = (self.encoded - self.code.detach()).square().sum((-2, -1))",
        "commitment = (self.encoded - self.code).square().sum((-2, -1))",
        "tests/models/test_vqvae.py::test_penalties_stop_the_gradient_on_the_other_side",
    ),
    Bug(
        "the nearest code from the origin",
        "distributions/codebook_vectors.py",
        "middle = vectors.mean(0)",
        "middle = 0 * vectors.mean(0)",
        "tests/models/test_vqvae.py::test_the_nearest_code_is_found_far_from_the_origin[1000.0]",
    ),
    Bug(
        "a full Gaussian's triangle by columns",
        "conditionals/posteriors.py",
        "rows * latent_dim + columns",
        "columns * latent_dim + rows",
        "tests/test_flows.py::test_a_full_covariance_holds_the_exact_posterior_of_the_linear_vae",
    ),
    Bug(
        "a fixed scale taken for a variance",
        "conditionals/noncollapsing.py",
        "return (self.scale**2 - 1) / 2 - math.log(self.scale)",
        "return (self.scale - 1) / 2 - math.log(self.scale) / 2",
        "tests/test_noncollapsing.py::test_a_fixed_scale_has_the_floor_of_the_closed_form[0.1]",
    ),
    Bug(
        "a committed rate that can be undercut",
        "conditionals/noncollapsing.py",
        "self.log_scale - F.softplus(-raw)",
        "self.log_scale + F.softplus(-raw)",
        "tests/test_noncollapsing.py::test_a_committed_rate_is_reached_and_never_undercut[0.0001]",
    ),
    Bug(
        "the gain on the bias too",
        "conditionals/noncollapsing.py",
        "loc = self.gain * normal + self.bias",
        "loc = self.gain * (normal + self.bias)",
        "tests/test_noncollapsing.py::test_a_batch_normalised_mean_has_its_floor_"
        "over_the_batch[0.3]",
    ),
    Bug(
        "MADE sees its own bit",
        "conditionals/made.py",
        "hidden = F.linear(seen, self.input.weight * self.reach, self.input.bias)\n"
        "        return F.linear(torch.relu(hidden), self.output.weight * "
        "~self.reach.mT)",
        "hidden = F.linear(seen, self.input.weight * self.reach, self.input.bias)\n"
        "        return F.linear(torch.relu(hidden), self.output.weight)",
        "tests/test_made.py::test_a_bit_sees_those_before_it_and_no_other",
    ),
    Bug(
        "MADE draws with all weights",
        "conditionals/made.py",
        "into, out = self.input.weight * self.reach, self.output.weight * ~self.reach.mT",
        "into, out = self.input.weight * self.reach.flip(0), self.output.weight * ~self.reach.mT",
        "tests/test_made.py::test_the_masses_of_all_bits_sum_to_one_and_draws_have_them",
    ),
    Bug(
        "categories ordered unit by unit",
        "conditionals/discrete.py",
        "logits = torch.stack(split(self.net(z), self.num_classes, self.event_dim), -1)",
        "logits = self.net(z).unflatten(-1, (-1, self.num_classes))",
        "tests/test_conditionals.py::test_densities_are_those_written_by_hand",
    ),
    Bug(
        "the starting scale of grey levels",
        "conditionals/discrete.py",
        "0.5 * torch.log(3 * variance / math.pi**2)",
        "torch.log(3 * variance / math.pi**2)",
        "tests/test_conditionals.py::test_grey_levels_start_at_the_largest_varian"
        "ce_that_their_mean_allows",
    ),
    Bug(
        "the log-scale not bounded",
        "conditionals/continuous.py",
        "loc, log_scale = split(self.net(z), 2, self.event_dim)\n"
        "        return dist.Normal(loc, bounded(log_scale).exp())",
        "loc, log_scale = split(self.net(z), 2, self.event_dim)\n"
        "        return dist.Normal(loc, log_scale.exp())",
        "tests/test_conditionals.py::test_gaussian_is_finite_in_float32_for_any_l"
        "og_variance[-300.0]",
    ),
    Bug(
        "the codebook moves in eval mode",
        "conditionals/quantised.py",
        "        if self.training:\n            self._follow",
        "        if True:\n            self._follow",
        "tests/models/test_vqvae.py::test_codes_follow_running_means",
    ),
    Bug(
        "counts per code and not per datum",
        "conditionals/quantised.py",
        "data = flat.new_zeros(()) + flat.shape[0] / encoded.shape[-2]",
        "data = flat.new_zeros(()) + flat.shape[0]",
        "tests/models/test_vqvae.py::test_codes_follow_running_means",
    ),
    Bug(
        "dead codes stay dead",
        "conditionals/quantised.py",
        "dead = self.count < least",
        "dead = self.count < 0",
        "tests/models/test_vqvae.py::test_dead_codes_are_moved_to_encodings_of_the_batch",
    ),
    Bug(
        "a step's codes move under it",
        "conditionals/quantised.py",
        "result = StraightThrough(encoded, self.vectors.clone())",
        "result = StraightThrough(encoded, self.vectors)",
        "tests/models/test_vqvae.py::test_the_codes_of_a_step_stay_when_the_next_"
        "step_moves_the_codebook",
    ),
    # Models and networks
    Bug(
        "starting scales of top-down residuals",
        "models/top_down.py",
        "parameter.mul_(len(dims) ** -0.5)",
        "parameter.mul_(1.0)",
        "tests/models/test_ladder.py::test_the_state_of_a_deep_descent_starts_no_"
        "larger_than_that_of_a_shallow_one",
    ),
    Bug(
        "starting spread of DEF weights",
        "models/deep_exponential.py",
        "torch.full((k, o), -1.0)",
        "torch.full((k, o), 1.0)",
        "tests/models/test_deep_exponential.py::test_weights_start_at_the_mean_of"
        "_the_data_and_narrow",
    ),
    Bug(
        "starting scale of DEF weights",
        "models/deep_exponential.py",
        "(data_mean.clamp(min=0.01) / self.latent_dims[0]).log()",
        "data_mean.clamp(min=0.01).log()",
        "tests/models/test_deep_exponential.py::test_weights_start_at_the_mean_of"
        "_the_data_and_narrow",
    ),
    Bug(
        "starting noise of DEF weights",
        "models/deep_exponential.py",
        "s + 0.3 * torch.randn(k, o)",
        "s + 3.0 * torch.randn(k, o)",
        "tests/models/test_deep_exponential.py::test_weights_start_at_the_mean_of"
        "_the_data_and_narrow",
    ),
    Bug(
        "merged layers with the scales swapped",
        "models/ladder.py",
        "ratio = (p.scale / q.scale).square()",
        "ratio = (q.scale / p.scale).square()",
        "tests/models/test_ladder.py::test_merge_is_the_product_of_the_densities",
    ),
    Bug(
        "the merged scale of the prior alone",
        "models/ladder.py",
        "p.scale * (1 + ratio).rsqrt()",
        "p.scale",
        "tests/models/test_ladder.py::test_merge_is_the_product_of_the_densities",
    ),
    Bug(
        "variance over N - 1 in PCA",
        "models/linear.py",
        "(x - mean).mT @ (x - mean) / len(x)",
        "(x - mean).mT @ (x - mean) / (len(x) - 1)",
        "tests/models/test_vae.py::test_from_data_is_scikit_learns_pca",
    ),
    Bug(
        "PCA's weights without the noise taken off",
        "models/linear.py",
        "(values[:kept] - variance).sqrt()",
        "values[:kept].sqrt()",
        "tests/models/test_vae.py::test_from_data_is_scikit_learns_pca",
    ),
    Bug(
        "a diagonal guide by the marginal variance",
        "models/linear.py",
        "(variance / precision.diagonal()).log() / 2",
        "(variance * torch.cholesky_inverse(factor).diagonal()).log() / 2",
        "tests/models/test_vae.py::test_full_guide_is_exact_for_correlated_column"
        "s_and_the_diagonal_has_its_gap",
    ),
    Bug(
        "a gamma unit of another mean",
        "models/deep_exponential.py",
        "self.shape * torch.ones_like(mean), self.shape / mean",
        "self.shape * torch.ones_like(mean), 1 / mean",
        "tests/models/test_deep_exponential.py::test_the_joint_density_is_the_pap"
        "ers[gamma-poisson]",
    ),
    Bug(
        "bits by the logit of the mean",
        "models/deep_exponential.py",
        "logits=mean + torch.log(-torch.expm1(-mean))",
        "logits=torch.log(mean)",
        "tests/models/test_deep_exponential.py::test_the_joint_density_is_the_pap"
        "ers[gamma-bernoulli]",
    ),
    Bug(
        "layers of a table crossed",
        "models/deep_exponential.py",
        "            start += size\n            if self.family",
        "            if self.family",
        "tests/models/test_deep_exponential.py::test_each_layer_has_columns_of_it"
        "s_own_in_the_table",
    ),
    Bug(
        "decoder weights drawn with the variance",
        "models/bayesian.py",
        "self.prior_scale * torch.ones_like(loc)",
        "self.prior_scale**2 * torch.ones_like(loc)",
        "tests/models/test_deep_exponential.py::test_bayesian_vae_is_a_vae_at_eac"
        "h_draw_of_its_decoder",
    ),
    Bug(
        "bayesian means not trained",
        "models/bayesian.py",
        "posterior = dist.Normal(loc, bounded(log_scale).exp())",
        "posterior = dist.Normal(loc.detach(), bounded(log_scale).exp())",
        "tests/models/test_deep_exponential.py::test_the_means_and_scales_of_baye"
        "sian_weights_train",
    ),
    Bug(
        "an SBN's guide sees uncentred data",
        "models/sbn.py",
        "self.centre.copy_(data_mean)",
        "pass",
        "tests/models/test_sbn.py::test_the_mean_centres_the_guide_and_starts_the_output",
    ),
    Bug(
        "a hierarchy's prior at one layer too high",
        "models/latent_layers.py",
        "return self.priors[layer - 1](state)",
        "return self.priors[min(layer, len(self.priors) - 1)](state)",
        "tests/models/test_ladder.py::test_every_weight_is_the_exact_marginal[3-HierarchicalVAE]",
    ),
    Bug(
        "the top-down guide reads one layer for all",
        "models/top_down.py",
        "_beside(state, seen[layer - 1])",
        "_beside(state, seen[0])",
        "tests/models/test_ladder.py::test_the_top_of_a_deep_guide_reads_the_end_"
        "of_the_upward_pass",
    ),
    Bug(
        "batch norm of one row in training",
        "nn/layers.py",
        "if self.training and len(x) == 1:",
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
        "an ended sentence goes on",
        "distributions/sentence.py",
        "word = torch.where(ended, PAD, choose(self._tempered(logits)))",
        "word = choose(self._tempered(logits))",
        "tests/models/test_sentences.py::test_draws_and_greedy_paths_go_step_by_step[gru]",
    ),
    Bug(
        "words behind the end",
        "distributions/sentence.py",
        "return known & ((value == PAD) == behind)",
        "return known",
        "tests/models/test_sentences.py::test_what_is_no_sentence_is_refused",
    ),
    Bug(
        "temperature upside down",
        "distributions/sentence.py",
        "keepdim=True)) / self.temperature",
        "keepdim=True)) * self.temperature",
        "tests/models/test_sentences.py::test_draws_and_greedy_paths_go_step_by_step[gru]",
    ),
    Bug(
        "a word sees itself",
        "models/word_networks.py",
        "inputs = nn.functional.pad(before, (1, 0), value=START)",
        "inputs = words",
        "tests/models/test_sentences.py::test_no_word_sees_itself_or_a_later_one[transformer]",
    ),
    Bug(
        "words dropped in judgement",
        "models/word_networks.py",
        "if self.training and self.word_dropout:",
        "if self.word_dropout:",
        "tests/models/test_sentences.py::test_words_are_dropped_in_training_and_from_what_the_decoder_sees_alone",
    ),
    Bug(
        "a sentence may hold <bos>",
        "models/word_networks.py",
        "(number == PAD) | (number == START)",
        "number == PAD",
        "tests/models/test_sentences.py::test_the_probabilities_of_all_sentences_add_up_to_one[gru]",
    ),
    Bug(
        "padding is read",
        "models/word_networks.py",
        "self.gru(seen, (x != PAD).sum(-1))",
        "self.gru(seen)",
        "tests/models/test_sentences.py::test_a_padded_batch_is_its_sentences_one_by_one[gru]",
    ),
    Bug(
        "a GRU starts over",
        "nn/steps.py",
        "        if start is None:\n",
        "        if True:\n",
        "tests/test_nn.py::test_a_gru_goes_on_from_a_state",
    ),
    # Chains with a memory, steps, files of counts
    Bug(
        "a memory of the wrong steps",
        "distributions/recurrent_chain.py",
        "each.movedim(-2, 0)[:-1]",
        "each.movedim(-2, 0)[1:]",
        "tests/test_recurrent_chain.py::test_the_recurrent_model_is_a_site_for_each_step[elbo]",
    ),
    Bug(
        "a memory that runs on behind the end",
        "distributions/recurrent_chain.py",
        "torch.where(given[-1], memory, self.memory), given[:-1]",
        "memory, given[:-1]",
        "tests/test_recurrent_chain.py::test_a_memory_that_would_run_on_to_infinity"
        "_has_the_gradient_of_what_is_kept",
    ),
    Bug(
        "a memory drawn with the state before",
        "distributions/recurrent_chain.py",
        "torch.cat([state, self.cell(memory, state, *given)], -1)",
        "torch.cat([state, self.cell(memory, carry[..., :size], *given)], -1)",
        "tests/test_recurrent_chain.py::test_the_recurrent_model_is_a_site_for_each_step[elbo]",
    ),
    Bug(
        "a memory of the padding",
        "models/sequences.py",
        "x = torch.where(kept, x, torch.zeros_like(x))",
        "x = torch.where(kept, x, x)",
        "tests/test_recurrent_chain.py::test_a_padded_batch_is_its_sequences_one_by_one"
        "_whatever_stands_there",
    ),
    Bug(
        "the KL of steps over one sequence too few",
        "evaluation/step_costs.py",
        "(read.lengths >= order.unsqueeze(-1))",
        "(read.lengths > order.unsqueeze(-1))",
        "tests/test_sequence_data.py::test_the_kl_of_steps_adds_up_to_that_of_the_path"
        "[True-smoothing]",
    ),
    Bug(
        "densities of unequal lengths compared",
        "program/site_densities.py",
        ' or getattr(fn, "kept", None) is not None',
        "",
        "tests/test_sequence_data.py::test_paths_of_unequal_length_have_no_information_to"
        "_compare[DMM]",
    ),
    Bug(
        "a step that writes to memory it shares",
        "scan.py",
        "if not shares and overload is not None:",
        "if overload is not None:",
        "tests/test_scan.py::test_a_step_that_no_graph_can_hold_is_refused",
    ),
    Bug(
        "flows that are left out of a density",
        "conditionals/states.py",
        "        if not self.flows:\n            return gaussian",
        "        if h.dim() > 2 or not self.flows:\n            return gaussian",
        "tests/test_chain.py::test_flows_bend_the_posterior_of_each_step",
    ),
    Bug(
        "lengths looked at in some rows",
        "models/sequences.py",
        "        require_lengths(lengths, steps[0])",
        "        pass",
        "tests/test_sequence_data.py::test_a_length_that_is_none_is_refused_wherever_it_stands",
    ),
    Bug(
        "what documents share, divided by how many are asked",
        "evaluation/topics.py",
        "        bound = elbo_given_globals(program, counts)",
        "        from pyro_vae import elbo\n        bound = elbo(program, counts)",
        "tests/evaluation/test_topics.py"
        "::test_a_perplexity_does_not_depend_on_how_many_documents_are_asked",
    ),
    Bug(
        "draws that go on behind the end",
        "program/log_joint.py",
        "if slot.name in self._ends:",
        "if False:",
        "tests/test_sequence_data.py::test_posterior_draws_end_where_their_sequences_do",
    ),
    Bug(
        "a word of two columns",
        "data/count_files.py",
        "    if len(set(words)) < len(words):",
        "    if False:",
        "tests/test_cli.py::test_bad_files_of_counts",
    ),
    Bug(
        "halves of documents that are all of them",
        "data/count_files.py",
        "second = rows - first",
        "second = rows",
        "tests/test_corpora.py::test_halves_of_documents_share_their_words",
    ),
    # Objectives with a critic
    Bug(
        "the critic of two kinds of draws with the wrong sign",
        "inference/objectives/adversarial.py",
        "softplus(-ours).mean() + softplus(theirs).mean()",
        "softplus(ours).mean() + softplus(-theirs).mean()",
        "tests/inference/objectives/test_adversarial.py::test_the_step_of_avb_is_the_one_by_hand[adaptive]",
    ),
    Bug(
        "a critic's draws that are not detached",
        "inference/objectives/aggregated_posterior.py",
        "        with torch.no_grad():\n            guide, prior",
        "        with torch.enable_grad():\n            guide, prior",
        "tests/inference/objectives/test_adversarial.py::test_the_step_of_the_adversarial_autoencoder_is_the_one_by_hand",
    ),
    Bug(
        "moments of the contrast that are not detached",
        "inference/objectives/adversarial_bayes.py",
        "        with torch.no_grad():\n            guide = joint",
        "        with torch.enable_grad():\n            guide = joint",
        "tests/inference/objectives/test_adversarial.py::test_the_step_of_avb_is_the_one_by_hand[adaptive]",
    ),
    Bug(
        "prior and posterior exchanged before a critic",
        "inference/objectives/aggregated_posterior.py",
        "for t in (guide, prior))",
        "for t in (prior, guide))",
        "tests/inference/objectives/test_adversarial.py::test_the_step_of_the_adversarial_autoencoder_is_the_one_by_hand",
    ),
    Bug(
        "a critic that is not told the density of its contrast",
        "inference/objectives/adversarial_bayes.py",
        "torch.cat([x, x])) - known",
        "torch.cat([x, x])) + 0 * known",
        "tests/inference/objectives/test_adversarial.py::test_a_critic_that_knows_the_density_stays_and_teaches_the_elbo[adaptive-4]",
    ),
    Bug(
        "the program's step by a critic of before",
        "inference/objectives/adversarial_bayes.py",
        "told = self.told(codes(guide, names, rows_of(joint))[0], data_of(joint))",
        "kept = vars(self).setdefault('_kept', __import__('copy').deepcopy(self.critic))\n"
        "        told = kept(codes(guide, names, rows_of(joint))[0], data_of(joint))",
        "tests/inference/objectives/test_adversarial.py::test_the_step_of_avb_is_the_one_by_hand[prior]",
    ),
    Bug(
        "the game of VAE/GAN reaches the encoder",
        "inference/objectives/critics_of_data.py",
        "model, guide, _ = joint.cut_traces()\n        x, made",
        "model, guide = joint.traces()\n        x, made",
        "tests/inference/objectives/test_adversarial.py::test_the_gradients_of_vae_gan_go_where_they_should",
    ),
    Bug(
        "a discrepancy with a bias",
        "inference/objectives/aggregated_posterior.py",
        "    return (kernel.sum() - kernel.diagonal().sum()) / (rows * (rows - 1))",
        "    return kernel.sum() / rows**2",
        "tests/inference/objectives/test_adversarial.py::test_the_discrepancy_has_no_bias",
    ),
    Bug(
        "critics moved by the rows that they are judged on",
        "training/loop.py",
        "objective.eval()",
        "objective.train()",
        "tests/inference/objectives/test_adversarial_edges.py::test_judging_moves_no_critic",
    ),
    Bug(
        "a critic that joins in twice after a resume",
        "inference/objectives/critics_of_data.py",
        "self.batches.add_(1).clamp_(max=self.start + 1)",
        "self.batches.add_(1)",
        "tests/inference/objectives/test_adversarial_runs.py::test_a_resumed_run_is_bit_identical[LatentAutoencoder]",
    ),
    Bug(
        "an implicit guide taken for one with a density",
        "distributions/implicit.py",
        "    has_density = False",
        "    has_density = True",
        "tests/inference/objectives/test_adversarial_runs.py::test_likelihoods_of_an_implicit_guide_are_right",
    ),
    Bug(
        "an expert that lacks is heard",
        "conditionals/experts.py",
        "scale.pow(-2).masked_fill(~there.unsqueeze(-1), 0.0)",
        "scale.pow(-2)",
        "tests/models/test_multimodal.py::test_a_modality_that_lacks_drops_out",
    ),
    Bug(
        "a product of experts without its prior",
        "conditionals/experts.py",
        "total = 1 + precision.sum(-2)",
        "total = precision.sum(-2)",
        "tests/models/test_multimodal.py::test_a_product_of_experts_is_the_posterior",
    ),
    Bug(
        "a mixture of experts with its prior always",
        "conditionals/experts.py",
        "none = ~there.any(-1, keepdim=True)",
        "none = there.any(-1, keepdim=True)",
        "tests/models/test_multimodal.py::test_a_mixture_of_experts_has_its_own_bound",
    ),
    Bug(
        "draws of a mixture cut off from its components",
        "distributions/fixed_mixture.py",
        "self.component_distribution.rsample(shape)",
        "self.component_distribution.sample(shape)",
        "tests/models/test_multimodal.py::test_draws_of_a_mixture_carry_its_gradient",
    ),
    Bug(
        "each site filled in at another label",
        "evaluation/given_code.py",
        "picked = picks[latent].reshape(weight.shape[1:])",
        "picked = Categorical(weight.movedim(0, -1)).sample()",
        "tests/models/test_missing.py::test_a_label_that_is_summed_out_fills_in_several_sites",
    ),
    Bug(
        "labels of a hole by their prior",
        "evaluation/given_code.py",
        "self.posteriors = joint.posteriors_at(guide, particles)",
        "self.posteriors = {n: torch.ones_like(p) / p.shape[-1]\n"
        "            for n, p in joint.posteriors_at(guide, particles).items()}",
        "tests/models/test_missing.py::test_a_label_that_is_summed_out_fills_in_several_sites",
    ),
    Bug(
        "an error of what is filled in by one draw alone",
        "evaluation/impute.py",
        "        alone = (self.heaviest - linear / first[self.tail]).square()",
        "        alone = (self.heaviest - mean).square()",
        "tests/evaluation/test_stated_errors.py::test_errors_of_what_is_filled_in_cover_the_truth",
    ),
    Bug(
        "two columns of one name",
        "models/table_columns.py",
        "    if twice:",
        "    if False:",
        "tests/models/test_tables.py::test_names_of_columns_may_be_numbers",
    ),
    Bug(
        "a scale of what stands beyond a limit",
        "models/table_columns.py",
        "        known = np.clip(known, column.low, column.high)",
        "        pass",
        "tests/models/test_tables.py::test_a_scale_is_that_of_the_cells_between_the_limits",
    ),
    Bug(
        "dates as numbers",
        "models/plain_cells.py",
        '    if getattr(held, "kind", "O") in "mMc":',
        "    if False:",
        "tests/models/test_tables.py::test_a_bad_table_is_named_with_its_column",
    ),
    Bug(
        "a truth value and its number as one category",
        "models/plain_cells.py",
        "    if both:",
        "    if False:",
        "tests/models/test_tables.py::test_a_bad_table_is_named_with_its_column",
    ),
    Bug(
        "errors of cells in another order than the cells",
        "models/table_vae.py",
        "tuple(one[:, order] for one in each)",
        "each",
        "tests/models/test_tables.py::test_what_is_filled_in_stands_in_the_order_of_the_frame",
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
        "whole numbers with holes read as real ones",
        "data/table_files.py",
        'read(path, dtype_backend="numpy_nullable")',
        "read(path)",
        "tests/test_cli.py::test_a_table_from_training_to_filled_cells",
    ),
    Bug(
        "a shell's table split by nothing",
        "data/table_files.py",
        "self.whole[by_turns(len(self.whole))[split]]",
        "self.whole",
        "tests/test_cli.py::test_rows_of_a_table_are_split_once",
    ),
]
