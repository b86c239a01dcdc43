"""Measures that are not differences to a base: views, published errors, towers, the epochs of dropout, first steps."""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

from alexnet_jax.analysis.specialisation import chance, color_blind, gap_by_chance
from experiments.claims.measures import (
    Found,
    Measure,
    Records,
    Run,
    judge,
    of_cell,
    points,
    ratio,
    scale_of,
    times,
)
from experiments.report.intervals import SEEDS, Interval, difference, interval, spread
from experiments.sweeps.start import leaves_chance

CHANCE = 0.05


# --- Views and errors -------------------------------------------------------------------------------------------------


def views_gain(study: str, cell: str) -> Measure:
    """How much higher the centre crop's error is than that of all views, in the same runs."""

    def measure(records: Records) -> Found | None:
        record = records.get(study)
        runs = [r for r in of_cell(record, cell).values() if r["views"] > 1 and r["centre_top1"] is not None]
        found = interval([100 * (r["centre_top1"] - r["top1"]) for r in runs])
        if record is None or found is None:
            return None
        return Found(points(found), found.n, judge(found), scale_of(record, cell), runs, found)

    return measure


def published(study: str, cell: str, theirs: float) -> Measure:
    """The error of a network beside a published one, which is rounded to a percent.

    The two are compatible if another run of ours could well have given it: if it is within the 95 % prediction
    interval. That of two seeds would contain nearly any.
    """

    def measure(records: Records) -> Found | None:
        record = records.get(study)
        runs = list(of_cell(record, cell).values())
        if record is None or not runs:
            return None
        found = spread([100 * run["top1"] for run in runs])
        away = f"within {max(math.ceil(10 * abs(found.mean - theirs) - 1e-9), 1) / 10:.1f} points"
        views = f"{runs[0]['views']} views" if runs[0]["views"] > 1 else "one view"
        n, scale = len(runs), scale_of(record, cell)
        text = f"{found.mean:.1f} %, {views}" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f} %, {views}"
        if found.std is None or n < SEEDS:
            return Found(text, n, f"too few seeds: {away}", scale, runs, Interval(n, found.mean, None, None))
        half = float(stats.t.ppf(0.975, n - 1)) * found.std * (1 + 1 / n) ** 0.5
        ours = Interval(n, found.mean, found.mean - half, found.mean + half)  # of one more run, not of the mean
        inside = found.mean - half <= theirs + 0.5 and theirs - 0.5 <= found.mean + half
        verdict = "compatible" if inside else f"{'higher' if found.mean > theirs else 'lower'}, {away}"
        return Found(text, n, verdict, scale, runs, ours)

    return measure


def gap(study: str, worse: str, better: str) -> Measure:
    """How much lower the error of one network is than that of another."""

    def measure(records: Records) -> Found | None:
        record = records.get(study)
        a, b = (of_cell(record, cell) for cell in (worse, better))
        found = difference(*([100 * run["top1"] for run in net.values()] for net in (a, b)))
        if record is None or found is None:
            return None
        runs = [*a.values(), *b.values()]
        return Found(points(found), found.n, judge(found), scale_of(record, better), runs, found)

    return measure


def ensemble(study: str, cell: str, count: int) -> Measure:
    """How much lower the error of several runs is, their probabilities averaged, than their mean error."""

    def measure(records: Records) -> Found | None:
        record = records.get(study)
        kept = record.ensembles if record else []
        averaged = next((e for e in kept if e["cell"] == cell and len(e["seeds"]) == count), None)
        members = of_cell(record, cell)
        if record is None or averaged is None or not members.keys() >= set(averaged["seeds"]):
            return None
        runs = [members[seed] for seed in averaged["seeds"]]
        alone = spread([100 * run["top1"] for run in runs]).mean
        gain = Interval(1, alone - 100 * averaged["top1"], None, None)
        text = f"{points(gain)}: {100 * averaged['top1']:.2f} % against {alone:.2f} % alone"
        verdict = f"one set: {'agrees' if gain.mean > 0 else 'contradicts'}"
        return Found(text, 1, verdict, scale_of(record, cell), runs, gain)

    return measure


# --- Dropout ----------------------------------------------------------------------------------------------------------


def epochs_of_dropout(records: Records) -> Found | None:
    """How many times as many epochs training takes with dropout, to the training error that it ends with.

    Both count to the first epoch with that error or a lower one, so that noise favours neither. There is no verdict:
    here the rate drops at set epochs, the paper's when the error stops falling, and a drop soon lowers the error.
    """
    record = records.get("ablations")
    base, other = of_cell(record, "base"), of_cell(record, "dropout_off")
    seeds = sorted(seed for seed in base.keys() & other.keys() if base[seed]["training"][-1] is not None)
    if record is None or not seeds:
        return None
    runs = [net[seed] for seed in seeds for net in (base, other)]
    counts = [
        tuple(_epochs_to(net[seed]["training"], base[seed]["training"][-1]) for net in (base, other)) for seed in seeds
    ]
    both = [(a, b) for a, b in counts if a and b]
    scale, never = scale_of(record, "dropout_off"), len(seeds) - len(both)
    verdict = "not comparable: the rate drops at set epochs"
    if never:
        text = f"without dropout it is not reached in {never} of {len(seeds)} runs"
        return Found(text, len(seeds), verdict, scale, runs)
    found = ratio([a for a, _ in both], [b for _, b in both])
    return Found(times(found), found.n, verdict, scale, runs, found)


def _epochs_to(errors: Sequence[float | None], level: float) -> int | None:
    """After how many epochs a training error first is `level` or lower; None if it never is."""
    return next((i for i, error in enumerate(errors, 1) if error is not None and error <= level), None)


# --- Towers -----------------------------------------------------------------------------------------------------------


def towers(study: str, cell: str) -> Measure:
    """In how many runs one tower takes the colour and the other the grey."""

    def measure(records: Records) -> Found | None:
        record = records.get(study)
        runs = [run for run in of_cell(record, cell).values() if len(run.get("color", ())) == 2]
        if record is None or not runs:
            return None
        kernels = record.settings_of(cell)["model.conv_widths"][0] // 2
        blind = sum(bool(color_blind(run["color"])) for run in runs)
        counts = [sorted(round(share * kernels) for share in run["color"]) for run in runs]
        apart = sum(chance(kernels, low, high) < CHANCE for low, high in counts)
        gap = 100 * statistics.fmean(high - low for low, high in counts) / kernels
        by_chance = 100 * statistics.fmean(gap_by_chance(kernels, low, high) for low, high in counts) / kernels
        text = (
            f"one tower colour-blind in {blind} of {len(runs)} runs; apart beyond chance in {apart}; "
            f"shares of {kernels} kernels {gap:.0f} points apart on average, {by_chance:.0f} by chance"
        )
        verdict = "agrees" if blind == len(runs) else f"contradicts: {'not in every' if blind else 'in no'} run"
        if len(runs) == 1:
            verdict = f"one seed: {'yes' if blind else 'no'}"
        return Found(text, len(runs), verdict, scale_of(record, cell), runs)

    return measure


# --- The first steps --------------------------------------------------------------------------------------------------


def first_steps(cell: str, *, later: bool = False) -> Measure:
    """At which step the paper's network, as written or with one change, stops guessing.

    later: the paper says that with the change it is later than as written; otherwise, that it learns.
    """

    def measure(records: Records) -> Found | None:
        record = records.get("start")
        runs, as_written = of_cell(record, cell), of_cell(record, "base")
        seeds = sorted(runs.keys() & as_written.keys() if later else runs.keys())
        if record is None or not seeds:
            return None
        ours, theirs = [runs[seed] for seed in seeds], [as_written[seed] for seed in seeds if later]
        text = _steps(ours)
        holds = [leaves(run) is not None for run in ours]
        verdict = _counted(holds, f"not within {min(run['steps'] for run in ours)} steps")
        if later:
            text += f"; as written it {_steps(theirs)}"
            pairs = [(leaves(a), leaves(b)) for a, b in zip(ours, theirs, strict=True)]
            decided = [(a, b) for a, b in pairs if a or b]  # of two that still guess, either may be the later one
            later_there = [b is not None and (a is None or a > b) for a, b in decided]
            if not decided:
                verdict = f"neither within {min(run['steps'] for run in ours)} steps"
            elif all(a == b for a, b in decided):
                verdict = "the same step in every run"
            else:
                verdict = _counted(later_there, "contradicts")
        return Found(text, len(seeds), verdict, scale_of(record, cell), [*ours, *theirs])

    return measure


def _counted(holds: Sequence[bool], otherwise: str) -> str:
    """A verdict on what holds in every run, in some, or, `otherwise`, in none."""
    if len(holds) == 1:
        return f"one seed: {'agrees' if holds[0] else otherwise}"
    if any(holds):
        return "agrees: in every run" if all(holds) else f"in {sum(holds)} of {len(holds)} runs"
    return f"{otherwise}: in no run" if otherwise == "contradicts" else otherwise


def _steps(runs: Sequence[Run]) -> str:
    """When some runs stop guessing, in words."""
    found = [leaves(run) for run in runs]
    left = sorted(step for step in found if step is not None)
    last = min(run["steps"] for run in runs)
    if not left:
        return f"still guesses after {last} steps"
    after = " to ".join(dict.fromkeys(map(str, (left[0], left[-1]))))
    rest = f", {len(found) - len(left)} of {len(found)} not within {last}" if len(left) < len(found) else ""
    return f"stops guessing after {after} steps{rest}"


def leaves(run: Run) -> int | None:
    """The step at which a run's loss leaves that of guessing among ten classes; None if it does not."""
    epochs, losses = run["points"]["epoch"], run["points"]["loss"]
    of_epoch = run["steps"] / epochs[-1]
    recorded = [(round(e * of_epoch), loss) for e, loss in zip(epochs, losses, strict=True) if loss is not None]
    return leaves_chance(recorded)
