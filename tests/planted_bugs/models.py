"""Known bugs of `pyro_vae/models`."""

from planted_bugs.bug import Bug

BUGS = [
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
        "a memory of the padding",
        "models/sequences.py",
        "x = torch.where(kept, x, torch.zeros_like(x))",
        "x = torch.where(kept, x, x)",
        "tests/test_recurrent_chain.py::test_a_padded_batch_is_its_sequences_one_by_one"
        "_whatever_stands_there",
    ),
    Bug(
        "lengths looked at in some rows",
        "models/sequences.py",
        "        require_lengths(lengths, steps[0])",
        "        pass",
        "tests/test_sequence_data.py::test_a_length_that_is_none_is_refused_wherever_it_stands",
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
        "marks of rows as marks of cells",
        "models/vae.py",
        "observed.shape != x.shape",
        "False",
        "tests/models/test_missing.py::test_a_mask_of_another_shape_is_refused",
    ),
]
