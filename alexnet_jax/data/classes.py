"""What ILSVRC-2012's 1,000 classes are called.

    classes.SYNSETS[0]                        # 'n01440764'
    classes.words(["n01440764", "parachute"]) # ['tench', 'parachute']

ilsvrc2012.txt beside this has a line for each, in ILSVRC's order, which is that of the ids: WordNet's id of the synset
and WordNet's words for it. A run's classes are ids wherever its data set says so, as TFDS's imagenet2012 and imagenette
do, and runs and data sets match by them; people read words.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_LINES = [line.partition(" ") for line in (Path(__file__).parent / "ilsvrc2012.txt").read_text("utf-8").splitlines()]
SYNSETS = [synset for synset, _, _ in _LINES]
_first = {synset: text.split(",")[0] for synset, _, text in _LINES}
_often = Counter(_first.values())
WORDS = {synset: word if _often[word] == 1 else f"{word} ({synset})" for synset, word in _first.items()}


def words(names: Sequence[str]) -> list[str]:
    """For each synset of ILSVRC-2012 its first word or words, with the id where two share them (crane, maillot); any
    other name as it is."""
    return [WORDS.get(name, name) for name in names]
