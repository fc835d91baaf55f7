"""Known bugs of `pyro_vae/storage`."""

from planted_bugs.bug import Bug

BUGS = [
    Bug(
        "contents at an address are not verified",
        "storage/remote.py",
        'if _digest(path) != held.partition(".")[0]:',
        "if False:",
        "tests/storage/test_remote.py::test_a_damaged_content_gives_way_to_the_list_before",
    ),
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
    Bug(
        "what a run has moved not put back",
        "storage/moved_state.py",
        "            place.set(made)",
        "            pass",
        "tests/storage/test_plain_state.py::test_a_run_goes_on_with_what_its_calls_have_kept",
    ),
    Bug(
        "a value chosen anew for a continuation put back",
        "storage/moved_state.py",
        "chosen = name not in left and any(differences(began, begins, name))",
        "chosen = False",
        "tests/storage/test_moved_state.py::test_a_start_that_was_changed_is_told_of",
    ),
]
