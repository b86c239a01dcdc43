"""Figure 1: how many times as many epochs the tanh network takes to 25 % training error as the ReLU network."""

from experiments.claims.measures import Found, Records, Run, judge_ratio, of_cell, ratio, scale_of, times
from experiments.report.intervals import spread

RELU, TANH = "base", "tanh"  # the cells of the record figure1
LEVEL = 0.25  # training error


def epochs_to(run: Run, level: float = LEVEL) -> float | None:
    """The epoch at which the training error falls to a level; None if it does not.

    The mean training error of an epoch counts for its middle; between two middles it is taken to be a straight line. Of
    shorter parts the mean would be too noisy where the error falls slowly.
    """
    before: tuple[float, float] | None = None
    for epoch, error in enumerate(run["training"], 1):
        if error is None:
            continue
        middle = epoch - 0.5
        if error <= level:
            if before is None:
                return middle
            return before[0] + (middle - before[0]) * (before[1] - level) / (before[1] - error)
        before = middle, error
    return None


def measure(records: Records) -> Found | None:
    """How many times as many epochs the tanh network takes to 25 % training error as the ReLU one."""
    record = records.get("figure1")
    relu, tanh = (of_cell(record, cell) for cell in (RELU, TANH))
    seeds = sorted(relu.keys() & tanh.keys())
    if record is None or not seeds:
        return None
    runs = [net[seed] for seed in seeds for net in (relu, tanh)]
    ours = [epochs_to(relu[seed]) for seed in seeds]
    theirs = [epochs_to(tanh[seed]) for seed in seeds]
    scale = scale_of(record, RELU, TANH)
    reached = [epochs for epochs in ours if epochs is not None]
    if len(reached) < len(seeds):
        return Found("25 % is not reached with ReLU", len(seeds), "not measured: longer runs", scale, runs)
    relu_epochs = f"{spread(reached).mean:.1f} epochs with ReLU"
    trained = [len(tanh[seed]["training"]) for seed in seeds]
    if any(b is None and epochs < a for a, b, epochs in zip(reached, theirs, trained, strict=True)):
        return Found(f"{relu_epochs}, tanh not trained as long", len(seeds), "not measured: longer runs", scale, runs)
    if None in theirs:
        there = sorted(epochs for epochs in theirs if epochs is not None)
        end = min(tanh[seed]["points"]["epoch"][-1] for seed in seeds)
        faster = all(b is None or b > a for a, b in zip(reached, theirs, strict=True))
        verdict = "ReLU is faster" if faster else "ReLU is not faster in every run"
        if there:
            after = f"after {' to '.join(dict.fromkeys(f'{epochs:.1f}' for epochs in (there[0], there[-1])))} epochs"
            text = f"{relu_epochs}; {len(there)} of {len(seeds)} tanh networks get there {after}"
        else:
            text = f"more than {end / max(reached):.1f} times: {relu_epochs}, tanh not there after {end:g}"
        prefix = "one seed" if len(seeds) == 1 else "agrees" if faster else "contradicts"
        return Found(text, len(seeds), f"{prefix}: {verdict}", scale, runs)
    found = ratio([epochs for epochs in theirs if epochs is not None], reached)
    text = f"{times(found)}: {relu_epochs}, {spread(theirs).mean:.1f} with tanh"
    return Found(text, found.n, judge_ratio(found, 6, "ReLU is faster"), scale, runs, found)
