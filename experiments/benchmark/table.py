"""The benchmark's tables: Markdown in columns of constant width, so that rows can be printed as they are measured."""

from typing import Any

COLUMNS = {  # title: width
    "network": 11,
    "what": 8,
    "batch": 5,
    "ours, images/s": 14,
    "peer, images/s": 14,
    "ratio": 18,
    "ours, ms": 8,
    "peer, ms": 8,
    "ours, GB": 8,
    "peer, GB": 8,
    "GFLOP": 6,
    "GB": 5,
    "limit, ms": 9,
    "sum, ms": 7,
    "of limit": 8,
    "peer's": 6,
}
LEGEND = """\
ratio: how many times as fast ours is, median of the turns (lowest to highest). GB of a side: its process's peak memory.
GFLOP and GB: what a step computes and moves at the least. limit: the longer of the two at the machine's rates, which a
program reaches that overlaps them; sum: one after the other. of limit: the limit as a share of the measured time."""
LEFT = {"network", "what", "axis", "point"}


def heading(columns: dict[str, int] = COLUMNS) -> str:
    """The first two lines of a table."""
    rule = ("-" * width if title in LEFT else "-" * (width - 1) + ":" for title, width in columns.items())
    return f"{line(list(columns), columns)}\n| {' | '.join(rule)} |"


def line(cells: list[str], columns: dict[str, int] = COLUMNS) -> str:
    """A row of cells."""
    padded = (
        cell.ljust(width) if title in LEFT else cell.rjust(width)
        for cell, (title, width) in zip(cells, columns.items(), strict=True)
    )
    return f"| {' | '.join(padded)} |"


def row(found: dict[str, Any]) -> str:
    """A row of steps.measure. Cells of the peer are empty without one."""
    ours, *peers = found["seconds"]

    def of(side: str, cell: Any) -> str:
        return cell(side) if side else ""

    def speed(side: str) -> str:
        return _number(found["batch"] / found["seconds"][side]["median"])

    def milliseconds(side: str) -> str:
        return _number(1e3 * found["seconds"][side]["median"])

    def peak(side: str) -> str:
        return f"{found['peak_bytes'][side] / 1e9:.2f}"

    def share(side: str) -> str:
        return f"{found['of_limit'][side]:.0%}"

    peer = peers[0] if peers else ""
    ratio = "{median:.2f} ({lowest:.2f}-{highest:.2f})".format(**found["ratio"]) if peer else ""
    cells = [found["network"], found["what"], str(found["batch"])]
    cells += [
        speed(ours),
        of(peer, speed),
        ratio,
        milliseconds(ours),
        of(peer, milliseconds),
        peak(ours),
        of(peer, peak),
    ]
    cells += [_number(found["operations"] / 1e9), f"{found['bytes'] / 1e9:.2f}"]
    cells += [_number(1e3 * found["limit"]["seconds"]), _number(1e3 * found["limit"]["sum"])]
    return line([*cells, share(ours), of(peer, share)])


def starts(rows: list[dict[str, Any]]) -> str:
    """The table of steps.measure_start's rows."""
    sides = list(rows[0]["seconds"]["empty"])
    columns = {"network": 11, "batch": 5} | {
        f"{side}, {cache} cache, s": len(f"{side}, {cache} cache, s") for side in sides for cache in ("empty", "filled")
    }
    lines = [heading(columns)]
    for found in rows:
        cells = [found["network"], str(found["batch"])]
        cells += [f"{found['seconds'][cache][side]['median']:.1f}" for side in sides for cache in ("empty", "filled")]
        lines.append(line(cells, columns))
    return "\n".join(lines)


def machine(rates: dict[str, Any]) -> str:
    """The machine's rates in words."""
    products = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates["operations_per_second"].items()
    )
    copies = f"{rates['bytes_per_second'] / 1e9:,.1f} GB/s read and written"
    return f"{rates.get('platform', '')}: matrix products: {products}; copies: {copies}".removeprefix(": ")


def _number(value: float) -> str:
    """Three digits or more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
