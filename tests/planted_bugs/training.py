"""Known bugs of `pyro_vae/training`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "a step of a row moves weights by numbers that are not finite",
        "training/step.py",
        "            if finite:\n",
        "            if True:\n",
        "tests/training/test_steps_in_a_row.py"
        "::test_a_step_of_a_row_that_is_not_finite_moves_nothing[Net]",
    ),
    Bug(
        "a step of a row that fails leaves running moments moved",
        "training/step.py",
        "self._once and direct and not buffers and",
        "self._once and direct and",
        "tests/training/test_steps_in_a_row.py"
        "::test_a_step_of_a_row_that_is_not_finite_moves_nothing[Normed]",
    ),
    Bug(
        "a recorded step reads the learning rate of its recording",
        "training/whole_step.py",
        '            self._rate.fill_(group["lr"])\n',
        '            self._rate.fill_(self._filled or group["lr"])\n',
        "tests/training/test_whole_step.py::test_a_replay_is_the_step[vae-None-nothing]",
    ),
    Bug(
        "a recorded step goes on with moments that were replaced",
        "training/whole_step.py",
        "if lists is not self._lists or options",
        "if options",
        "tests/training/test_whole_step.py::test_a_replay_is_the_step[vae-None-replace_moments]",
    ),
    Bug(
        "the second row of steps begins as the first has ended",
        "inference/graphs/compiled_loss.py",
        "self._in_a_row, self._again = False, None",
        "self._in_a_row = False",
        "tests/inference/graphs/test_graph_inputs.py::test_steps_in_a_row_take_rows_and_weights_of_"
        "their_own[fewer rows]",
    ),
    Bug(
        "restarted processes look for the dead ones",
        "training/torchrun.py",
        "    if not (shared and",
        "    if True or not (shared and",
        "tests/training/test_restarts.py"
        "::test_processes_that_torchrun_starts_anew_go_on_with_the_run",
    ),
    Bug(
        "rows dealt to two processes count twice",
        "training/counted_rows.py",
        "        self._require_apart()\n",
        "",
        "tests/training/test_loaders_of_ranks.py"
        "::test_rows_that_are_left_out_or_doubled_stop_all[2-parts that overlap]",
    ),
    Bug(
        "N of all items where a sampler deals some",
        "training/samplers.py",
        "[0 if by_sampler else 1 :]",
        "[1:]",
        "tests/training/test_feed.py::test_the_size_is_the_rows_of_an_epoch",
    ),
    Bug(
        "no rows but the first looked at behind a transform",
        "training/fit.py",
        "if transform is None or program.sites.outside:",
        "if transform is None:",
        "tests/program/looks/test_cuts_of_odd_programs.py::test_a_transform_hides_no_rows_that_tell",
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
        "the same order of rows each epoch",
        "training/loop.py",
        "self.feed.epoch(_epoch_seed(self.seed, self.epoch), self.epoch)",
        "self.feed.epoch(_epoch_seed(self.seed, 0), self.epoch)",
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
        "training/continuation.py",
        "self.best_epoch, self.best_elbo = progress.best_epoch, progress.best_elbo",
        "self.best_epoch = progress.best_epoch",
        "tests/storage/test_checkpoint.py::test_the_best_weights_so_far_stay_the_"
        "best_after_a_resume",
    ),
    Bug(
        "the best weights lost on resume",
        "training/continuation.py",
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
        "training/scheduled_rates.py",
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
        "training/continuation.py",
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
        "k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v)",
        "k: v",
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
        "training/undo.py",
        "        part._buffers[name] = buffer\n    restore(buffers, copies)\n",
        "        pass\n",
        "tests/training/test_fit.py::test_divergence_leaves_the_buffers_as_before_the_step[False]",
    ),
    Bug(
        "a buffer that is replaced stays after a diverged step",
        "training/undo.py",
        "        part._buffers[name] = buffer\n",
        "        pass\n",
        "tests/training/test_steps_under_other_code.py::test_a_step_that_diverges_leaves_a_buffer_"
        "that_is_replaced_as_it_was",
    ),
    Bug(
        "the first update of a step stays where a later one diverges",
        "training/undo.py",
        "            self._noted[index].put_back()\n",
        "            pass\n",
        "tests/training/test_step.py::test_a_step_of_several_updates_moves_all_or_nothing[5-None]",
    ),
    Bug(
        "a step undone to the one before it on a device",
        "training/step.py",
        "self._undo.begin(self._broken)",
        "self._undo.begin(torch.ones(()))",
        "tests/training/test_step.py::test_a_step_of_several_updates_moves_all_or_nothing[5-None]",
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
        "training/loader_feed.py",
        "draws = Draws(seed) if self.world.size == 1 else SharedDraws(seed)",
        "draws = Draws(seed)",
        "tests/training/test_loaders_of_ranks.py"
        "::test_every_row_counts_once_an_epoch[2-rows shuffled by NumPy]",
    ),
    Bug(
        "a DistributedSampler for other processes",
        "training/samplers.py",
        "        if self.dealt:\n            _require_share(",
        "        if False:\n            _require_share(",
        "tests/training/test_loaders_of_ranks.py"
        "::test_rows_that_are_left_out_or_doubled_stop_all[2-a DistributedSampler for others]",
    ),
    Bug(
        "N of all rows where a sampler of batches picks some, in several processes",
        "training/samplers.py",
        "known = own is None or self.stream or self.dealt",
        "known = own is None or self.stream or torch.distributed.is_initialized()",
        "tests/training/test_loaders_of_ranks.py"
        "::test_every_row_counts_once_an_epoch[2-batch_sampler of a part]",
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
        "training/continuation.py",
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
        "        super().load_state_dict(state_dict)\n        self.forget_lists()",
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
    Bug(
        "steps in a row though code of a user's runs between them",
        "training/step.py",
        "if not self.watched and self._runs_others():",
        "if False:",
        "tests/inference/graphs/test_trust.py::test_what_other_code_changes_between_steps_counts"
        "[frozen by an optimizer]",
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
        "critics moved by the rows that they are judged on",
        "training/loop.py",
        "objective.eval()",
        "objective.train()",
        "tests/inference/objectives/test_adversarial_edges.py::test_judging_moves_no_critic",
    ),
    Bug(
        "parameters of another order sent to another process",
        "training/parallel.py",
        'f"number {place}, {kind}"',
        "kind",
        "tests/training/test_parameters_of_ranks.py::test_buffers_that_steps_make_or_move_are_those_of_all_rows",
    ),
    Bug(
        "a parameter that one process writes to averaged",
        "training/equal_parameters.py",
        "if processes.any(bool(off)):",
        "if processes.any(False):",
        "tests/training/test_parameters_of_ranks.py::test_a_parameter_that_one_process_writes_to_is_told_of",
    ),
]
