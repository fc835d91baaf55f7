"""What differs between the settings of a run and those of its continuation."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pyro_vae.errors import ConfigError

# What `resume="settings"` lets a continuation choose anew: how it steps, and what it is judged on.
RENEWABLE = {
    "lr",
    "lr_schedule",
    "beta",
    "clip_norm",
    "optimizer_options",
    "transform",
    "valid",
    "architecture",
}
_EDITED = "with other code, or other numbers in it: edited since"
_ABSENT = ("accumulate", "reduce_dtype")  # where they do nothing
_LIKE_LR = {"lr", "scheduled_lr", "schedule"}


def check_settings(
    settings: Mapping[str, Any], before: Mapping[str, Any], where: str, renew: bool
) -> list[str]:
    """Return what differs, or refuse it.

    Arguments:
        settings: Those of this run.
        before: Those in the checkpoint.
        where: The file, for the message.
        renew: Whether what is in ``RENEWABLE`` may differ.

    Raises:
        ConfigError: Something differs that must not; all of it is named.
    """
    names = dict.fromkeys([*settings, *(name for name in _ABSENT if name in before)])
    found = {name: list(differences(before.get(name), settings.get(name), name)) for name in names}
    kept = [
        line for name, lines in found.items() for line in lines if not (renew and name in RENEWABLE)
    ]
    if kept:
        remedy = "resume with the settings that started the run, or choose another folder"
        if not renew and all(not lines or name in RENEWABLE for name, lines in found.items()):
            edited = all(line.endswith(_EDITED) for line in kept)
            with_it = "with it as it was" if edited else "with the settings that started the run"
            remedy = f"resume {with_it}, or go on as it is now by resume='settings'"
        raise ConfigError(f"resume: {where} has {'; '.join(kept[:12])}; {remedy}")
    return [line for lines in found.values() for line in lines]


def renewed_options(settings: Mapping[str, Any], before: Mapping[str, Any]) -> frozenset[str]:
    """Return the options of the optimizers to which this run gives another first value."""
    found: set[str] = set()
    if any(differences(before.get("lr"), settings.get("lr"), "lr")):
        found |= _LIKE_LR
    pairs = (before.get("optimizer_options"), settings.get("optimizer_options"))
    for line in differences(*pairs, ""):
        found.add(line.split(" = ")[0].rsplit(".", 1)[-1].split("[")[0])
    return frozenset(found)


def differences(before: Any, now: Any, name: str) -> Iterator[str]:
    """Yield one line for each place where two settings differ; numbers are equal up to rounding."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            # Byte code is another in each version of Python: compared within one.
            if key.startswith("python "):
                if key in before and key in now and before[key] != now[key]:
                    yield f"{name} {_EDITED}"
            else:
                yield from differences(before.get(key), now.get(key), f"{name}.{key}")
    elif _nested(before) and _nested(now) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{name}[{index}]")
    elif not _equal(before, now):
        yield f"{name} = {_short(before)}, this run {_short(now)}"


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict | list | str) for each in value)


def _equal(before: Any, now: Any) -> bool:
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_equal, before, now))
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-9)
    return type(before) is type(now) and before == now


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]}..."
