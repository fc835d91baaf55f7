"""Known bugs of `pyro_vae/evaluation`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "globals drawn anew in each chunk of log_likelihood",
        "evaluation/likelihood.py",
        "passes.map(lambda piece: _fold(piece, count, points), progress=progress)",
        "passes.map(lambda piece: _fold(passes.again(rows=64, num_global_samples=draws)"
        ".on(piece.batch), count, points))",
        "tests/program/test_passes.py::test_likelihoods_hold_the_draws_of_the_globals",
    ),
    Bug(
        "globals drawn anew in each chunk of generate",
        "evaluation/generation.py",
        "_observed(wrapped, piece, kept, mean=mean) for piece in passes",
        "_observed(wrapped, passes.again(rows=9).on(piece.batch), kept, mean=mean) "
        "for piece in passes",
        "tests/evaluation/test_generation.py::test_generated_data_share_one_draw_of_the_globals",
    ),
    Bug(
        "data told to a decoder that reads the steps before",
        "evaluation/codes.py",
        "trace, _ = simulated(program, piece, draw)",
        "trace = poutine.trace(draw(piece.joint.model)).get_trace(*piece.joint.args)",
        "tests/evaluation/test_steps_in_turn.py::test_codes_are_decoded_without_the_steps_of_the_data",
    ),
    Bug(
        "globals drawn anew in each chunk of reconstruct",
        "evaluation/codes.py",
        "pieces = passes.map(lambda piece: decoded(of, piece, _codes(piece, mean=mean), "
        "mean=mean))",
        "fresh = [passes.again(rows=9).on(piece.batch) for piece in passes]\n"
        "        pieces = [decoded(of, each, _codes(each, mean=mean), mean=mean) "
        "for each in fresh]",
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
        "kept[name], noise=between / draws, prior=prior)",
        "kept[name], prior=prior)",
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
    Bug(
        "the KL of steps over one sequence too few",
        "evaluation/step_costs.py",
        "(read.lengths >= order.unsqueeze(-1))",
        "(read.lengths > order.unsqueeze(-1))",
        "tests/test_sequence_data.py::test_the_kl_of_steps_adds_up_to_that_of_the_path"
        "[True-smoothing]",
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
        "steps behind the end of a sequence as missing cells",
        "evaluation/given_code.py",
        "kept = kept | behind",
        "pass",
        "tests/test_sequence_data.py::"
        "test_a_sequence_lacks_its_holes_and_not_what_would_lie_behind_its_end",
    ),
    Bug(
        "a masked latent judged by data that lack it",
        "evaluation/diagnosis.py",
        "verdicts.SILENT * self.share.get(name, 1.0)",
        "verdicts.SILENT",
        "tests/evaluation/test_collapse_layers.py::test_a_step_that_few_sequences_have_is_judged_by_those",
    ),
    Bug(
        "rows whose latent is masked counted among those that have it",
        "evaluation/diagnose.py",
        'self._put("there", name, kept.reshape(rows, -1).any(1)',
        'self._put("there", name, torch.ones(rows)',
        "tests/evaluation/test_collapse_layers.py::test_masked_latents_are_left_out[rows-1]",
    ),
    Bug(
        "a gain of the right code taken as if it had no error",
        "evaluation/verdicts.py",
        "return gain + _ERRORS * error < DEAF",
        "return gain < DEAF",
        "tests/evaluation/test_collapse_oracles.py::test_a_few_rows_do_not_make_a_decoder_deaf",
    ),
    Bug(
        "the error of what the right code gains without N",
        "evaluation/diagnose.py",
        "(spread.clamp(min=0) / (n - 1))",
        "spread.clamp(min=0)",
        "tests/evaluation/test_collapse_oracles.py::test_the_error_of_what_the_right_code_gains_is_its_spread_over_data_sets[other]",
    ),
]
