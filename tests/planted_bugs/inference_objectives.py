"""Known bugs of `pyro_vae/inference/objectives`."""

from planted_bugs.bug import Bug

BUGS = [
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
        "a critic that joins in twice after a resume",
        "inference/objectives/critics_of_data.py",
        "self.batches.add_(1).clamp_(max=self.start + 1)",
        "self.batches.add_(1)",
        "tests/inference/objectives/test_adversarial_runs.py::test_a_resumed_run_is_bit_identical[LatentAutoencoder]",
    ),
    Bug(
        "VAE/GAN's critic never sees new images",
        "inference/objectives/critics_of_data.py",
        "self.critic(torch.cat([x, made, drawn])).chunk(3)",
        "self.critic(torch.cat([x, made, made])).chunk(3)",
        "tests/inference/objectives/test_adversarial.py"
        "::test_the_critic_of_vae_gan_tells_data_from_reconstructions_and_new_images",
    ),
    Bug(
        "VAE/GAN's critic rewarded for data that it takes for made",
        "inference/objectives/critics_of_data.py",
        "costs = softplus(-real).mean()",
        "costs = softplus(real).mean()",
        "tests/inference/objectives/test_adversarial.py"
        "::test_the_critic_of_vae_gan_tells_data_from_reconstructions_and_new_images",
    ),
    Bug(
        "VAE/GAN's critic rewarded for what it takes for data",
        "inference/objectives/critics_of_data.py",
        "(softplus(made).mean() + softplus(drawn).mean()) / 2",
        "(softplus(-made).mean() + softplus(-drawn).mean()) / 2",
        "tests/inference/objectives/test_adversarial.py"
        "::test_the_critic_of_vae_gan_tells_data_from_reconstructions_and_new_images",
    ),
    Bug(
        "a judge of codes scored on those that it was trained on",
        "evaluation/two_samples.py",
        "torch.cat([*rows[:fold], *rows[fold + 1 :]])",
        "torch.cat([*rows])",
        "tests/evaluation/test_two_samples.py::test_too_few_codes_are_said_to_be",
    ),
    Bug(
        "a prior asked for a density that its objective does not need",
        "inference/objectives/aggregated_posterior.py",
        'without=names)\n        weight = self.weight * kl_weight_of(model, guide, names, "WAE")',
        'without=())\n        weight = self.weight * kl_weight_of(model, guide, names, "WAE")',
        "tests/inference/objectives/test_adversarial_edges.py"
        "::test_a_prior_by_its_draws_alone_trains_as_that_with_a_density[WAE-False]",
    ),
]
