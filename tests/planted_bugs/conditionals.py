"""Known bugs of `pyro_vae/conditionals`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "input dropout in eval mode",
        "conditionals/made.py",
        "F.dropout(2 * x - 1, self.dropout, self.training)",
        "F.dropout(2 * x - 1, self.dropout, True)",
        "tests/test_made.py::test_inputs_are_dropped_in_train_mode_alone",
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
    Bug(
        "flows that are left out of a density",
        "conditionals/states.py",
        "        if not self.flows:\n            return gaussian",
        "        if h.dim() > 2 or not self.flows:\n            return gaussian",
        "tests/test_chain.py::test_flows_bend_the_posterior_of_each_step",
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
]
