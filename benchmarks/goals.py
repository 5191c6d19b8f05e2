"""What steps on a GPU should reach, beside what was measured; for `step.py` and `gpu.py`."""

import statistics
from typing import Any

OURS = {"adamw": "wd_optax", "adamw_bf16": "wd_optax, stochastic"}  # the variants that the goals are about
BANDWIDTH = 0.9  # of the copy bandwidth, for the least bytes
TORCH = 1.0  # times the time of torch's fused kernel


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals of one tree and optimizer.

    Args:
      rows: of `step.summarise`.

    Returns:
      For each goal a dict of "goal" (a sentence), "bound", "value" (None: not measured), "reached" (likewise), and
      "program", see `jax_steps.digest`.
    """
    tree, optimizer = rows[0]["tree"], rows[0]["optimizer"]
    ours = OURS.get(optimizer)
    row: dict[str, Any] = next((row for row in rows if row["variant"] == ours), {})
    found = []
    if ours and tree != "many":  # small leaves are bound by the handling of arguments, not by bytes
        least = f"{row['floor'] / row['parameters']:.1f}" if row else "the least"
        name = f"at least {BANDWIDTH:.0%} of the copy bandwidth for {least} bytes per parameter"
        found.append(_goal(f"{tree}, {ours}: {name}", BANDWIDTH, row.get("of limit"), at_least=True))
    if ours:
        name = f"at most {TORCH:.2f} × the time of torch fused"
        found.append(_goal(f"{tree}, {ours}: {name}", TORCH, row.get("× torch"), at_least=False))
    return [goal | {"program": row.get("program", {})} for goal in found]


def sweep_goals(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals of sweeps, from what `sweep.py` wrote: points per second as a multiple of each loop in torch."""
    found = []
    for setting in settings:
        rate = {way: f["points"] / statistics.median(f["seconds"]) for way, f in setting["ways"].items()}
        for way in ("torch", "fused"):
            what = f"sweep of {setting['grid']} points, batch {setting['batch_size']}, width {setting['width']}"
            value = rate["sweep"] / rate[way] if way in rate else None
            name = f"{what}: at least {setting['target']:g} × the points per second of {way}"
            found.append(_goal(name, setting["target"], value, at_least=True))
    return found


def _goal(name: str, bound: float, value: float | None, *, at_least: bool) -> dict[str, Any]:
    reached = None if value is None else (value >= bound if at_least else value <= bound)
    return {"goal": name, "bound": bound, "value": value, "reached": reached}


def verdict(goal: dict[str, Any]) -> str:
    """A line: the goal, the figure, and whether it is reached."""
    if goal["reached"] is None:
        return f"{goal['goal']}: not measured"
    if goal["reached"]:
        return f"{goal['goal']}: {goal['value']:.3g}, reached"
    program = ", ".join(f"{n} {operation}" for operation, n in goal.get("program", {}).items())
    return f"{goal['goal']}: {goal['value']:.3g}, NOT REACHED" + (f"; its program: {program}" if program else "")
