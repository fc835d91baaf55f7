"""The table on the screen: one program's rows, and the geometric means over programs."""

import statistics
from typing import Any

from benchmarks.results import Result
from benchmarks.speed.variants import BY_HAND_COMPILED, EAGER, OURS, TRACE


def table(details: dict[str, Any], title: str) -> str:
    """Return one program's rows: ratios to the hand-written base, with quartiles."""
    lines = [title, f"  {'':34} {'wall':>18} {'CPU':>18} {'ms':>8} {'z':>5} {'loss after':>11}"]
    for name, clocks in details["ratios"].items():
        wall, cpu = (_cell(clocks[clock]) for clock in ("wall", "cpu"))
        z = details["losses_at_equal_weights"].get(name, {}).get("z")
        after = details.get("losses_after", {}).get(name)
        lines.append(
            f"  {name:34} {wall:>18} {cpu:>18} {1e3 * details['step_seconds'][name]:8.2f} "
            f"{_number(z, '5.1f')} {_number(after, '11.3f')}"
        )
    lines += _over(details) + _epoch(details.get("epoch")) + _first(details.get("first_steps", {}))
    for name, found in details.get("per_step", {}).items():
        waits, launches = found["waits"], found["launches"]
        lines += [f"  a step waits {waits:g} times and launches {launches:g} times: {name}"]
    lines += [f"  {name}: failed, {why}" for name, why in details["failed"].items()]
    lines += [f"  not measured: {what}" for what in details["not_measured"]]
    return "\n".join(lines)


def _over(details: dict[str, Any]) -> list[str]:
    rows = details["ours_over"]
    if not rows:
        return []
    cells = [f"{_cell(clocks['wall'])} {name}" for name, clocks in rows.items() if name != OURS]
    return ["  compile=True over:"] + [f"    {cell}" for cell in cells]


def _epoch(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    lines = [f"  an epoch of pv.fit(compile=True), {found['steps']} steps, over:"]
    for name, row in found.items():
        if isinstance(row, dict):
            wall, cpu = (row[f"added_{k}microseconds_per_step"] for k in ("", "cpu_"))
            lines.append(
                f"    {_cell(row['wall'])} wall, {_cell(row['cpu'])} CPU: {name} "
                f"({wall:+.0f} us a step, {cpu:+.0f} CPU)"
            )
    return lines


def _first(found: dict[str, Any]) -> list[str]:
    lines = ["  first step in a fresh process (seconds; import apart; peak MiB):"] if found else []
    for name, kinds in found.items():
        cells = []
        for kind, row in kinds.items():
            cells.append(
                f"{kind} failed: {row['failed']}"
                if "failed" in row
                else f"{kind} {row['first_step_seconds']:.1f} s + {row['import_seconds']:.1f} s, "
                f"{row['peak_mib']:.0f} MiB"
            )
        lines.append(f"    {name:34} {'; '.join(cells)}")
    return lines


def summary(results: list[Result]) -> str:
    """Return the geometric mean, over the programs, of each variant's ratio."""
    lines = [f"geometric mean of the medians, wall clock, {len(results)} programs"]
    for name in (BY_HAND_COMPILED, EAGER, TRACE, OURS):
        found = [r.details["ratios"].get(name) for r in results]
        if found and all(found):
            mean = statistics.geometric_mean(row["wall"]["median"] for row in found)
            lines.append(f"  {name:34} {mean:.2f}")
    return "\n".join(lines)


def _cell(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['lower']:.2f}, {ratio['upper']:.2f}]"


def _number(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:{form}}"
