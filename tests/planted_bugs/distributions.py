"""Known bugs of `pyro_vae/distributions`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "tails cut from the discretised logistic's sampler",
        "distributions/discretised_logistic.py",
        "u = torch.rand_like(loc).clamp(info.tiny, 1 - info.eps)",
        "u = torch.rand_like(loc).clamp(0.01, 0.99)",
        "tests/test_distributions.py::test_draws_have_the_tails_of_the_density",
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
        "an implicit guide taken for one with a density",
        "distributions/implicit.py",
        "    has_density = False",
        "    has_density = True",
        "tests/inference/objectives/test_adversarial_runs.py::test_likelihoods_of_an_implicit_guide_are_right",
    ),
    Bug(
        "draws of a mixture cut off from its components",
        "distributions/fixed_mixture.py",
        "self.component_distribution.rsample(shape)",
        "self.component_distribution.sample(shape)",
        "tests/models/test_multimodal.py::test_draws_of_a_mixture_carry_its_gradient",
    ),
]
