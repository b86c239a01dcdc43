"""How conv1's kernels divide into colour and grey, tower by tower (section 6.1, figure 3).

    color_share(params["conv1"]["kernel"], 2)     # [0.8125, 0.1042] for Caffe's AlexNet: 39 and 5 of 48 kernels

A kernel is of colour if more than half of its energy is colour (`colorfulness`). Half was not fitted: most trained
kernels are clearly one or the other. Of Caffe's 96, 69 have less than a tenth or more than nine tenths. A threshold of
0.4 counts 43 and 6 of 48, and one of 0.6 counts 36 and 4.

A kernel before training is noise, and noise is mostly colour: two of its three dimensions are. So a share means
something only once the kernels have changed far more than they were at the start.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

MOSTLY = 0.5  # of a kernel's energy
FEW, MANY = 1 / 4, 1 / 2  # the shares of colour kernels between which one tower is colour-blind and another is not


def colorfulness(kernel: np.ndarray) -> np.ndarray:
    """The share of each kernel's energy that is colour and not grey: 0 for a grey kernel, 1 for opponent colours.

    kernel: float (height, width, 3, n). Returns float64 (n,) in 0..1, where w is one kernel and the mean is over RGB:

        sum((w - mean(w))^2) / sum(w^2)

    A kernel of one colour, such as red, has 2/3: a third of it is the grey of its brightness. One of zeros has 0.
    """
    kernel = np.asarray(kernel, np.float64)
    color = np.square(kernel - kernel.mean(axis=2, keepdims=True)).sum(axis=(0, 1, 2))
    energy = np.square(kernel).sum(axis=(0, 1, 2))
    return np.divide(color, energy, out=np.zeros_like(energy), where=energy > 0)


def towers_colors(kernel: np.ndarray, towers: int) -> list[tuple[int, int, float]]:
    """For each tower: how many kernels it has, how many have over half of their energy in colour, the mean share."""
    parts = np.split(colorfulness(kernel), towers)
    return [(len(part), int((part > MOSTLY).sum()), float(part.mean())) for part in parts]


def color_share(kernel: np.ndarray, towers: int) -> list[float]:
    """For each tower, the share of its kernels that are of colour, in 0..1.

    kernel: float (height, width, 3, n), n a multiple of `towers`, tower by tower.
    """
    return [mostly / kernels for kernels, mostly, _ in towers_colors(kernel, towers)]


def chance(kernels: int, first: int, second: int) -> float:
    """The probability that two towers differ as much in colour, or more, if the same kernels were dealt at random.

    This is Fisher's exact test, two-sided: below a few percent the towers have specialised. kernels: of each tower;
    first, second: how many of them are of colour.
    """
    return sum(p for gap, p in _deals(kernels, first + second) if gap >= abs(first - second))


def gap_by_chance(kernels: int, first: int, second: int) -> float:
    """How many kernels of colour more one tower has than the other, on average, if they were dealt at random."""
    return sum(gap * p for gap, p in _deals(kernels, first + second))


def _deals(kernels: int, colored: int) -> Iterator[tuple[int, float]]:
    """Every way to deal kernels of colour to two towers of `kernels` each: (how many more one has, its probability)."""
    for i in range(max(0, colored - kernels), min(kernels, colored) + 1):
        ways = math.comb(kernels, i) * math.comb(kernels, colored - i)
        yield abs(2 * i - colored), ways / math.comb(2 * kernels, colored)


def color_blind(shares: Sequence[float]) -> list[int]:
    """The towers that are colour-blind, from 0: at most a quarter of their kernels are of colour, and more than half of
    another tower's.

    shares: of colour kernels in each tower, as color_share gives them.
    """
    return [i for i, share in enumerate(shares) if share <= FEW and max(shares) > MANY]


def color_blindness(kernel: np.ndarray, towers: int) -> str:
    """Lines that say how much of conv1 is colour, and whether one tower is colour-blind (section 6.1, figure 3).

    kernel: float (height, width, 3, n), tower by tower.
    """
    found = towers_colors(kernel, towers)
    lines = [
        f"tower {i}: {mostly} of {kernels} kernels have more than half of their energy in colour, mean share {mean:.1%}"
        for i, (kernels, mostly, mean) in enumerate(found, start=1)
    ]
    if towers == 1:
        return lines[0].replace("tower 1", "conv1")
    blind = [f"tower {i + 1}" for i in color_blind(color_share(kernel, towers))]
    answer = f"yes, {' and '.join(blind)}" if blind else "no"
    if towers == 2:
        (own, first, _), (_, second, _) = found
        probability = chance(own, first, second)
        lines.append(f"kernels dealt to the towers at random would differ as much with probability {probability:.2g}")
    return "\n".join([*lines, f"is one tower colour-blind (a quarter at most, another more than half)? {answer}"])
