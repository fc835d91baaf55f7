"""Known bugs of `pyro_vae/inference/posterior`."""

from planted_bugs.bug import Bug

BUGS = [
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
]
