"""Known bugs of `pyro_vae/inference/sampling`."""

from planted_bugs.bug import Bug

BUGS = [
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
        "tests/inference/sampling/test_hmc.py::test_posterior_is_left_invariant[10-40000]",
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
]
