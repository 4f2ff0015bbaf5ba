"""WUPS: random WordNets against a naive reference, and WordNet 3.0 against NLTK's figures."""

import random
import sys
from pathlib import Path

import pytest

from vqa_repro.data.types import Example
from vqa_repro.evaluation import wordnet as module
from vqa_repro.evaluation.wordnet import WordNet
from vqa_repro.evaluation.wups import score, wups
from vqa_repro.utils.errors import UserError

LICENSE = "  1 This software is provided to you\n  2 WordNet 3.0 Copyright 2006 by Princeton\n"
Graph = dict[str, list[str]]  # word -> its hypernyms; every word has one sense


def make(folder: Path, graph: Graph, *, irregular: str = "", instances: bool = False) -> WordNet:
    """Write ``graph`` as WordNet's three files and open them."""
    symbol = "@i" if instances else "@"

    def line(word: str, offsets: dict[str, int]) -> str:
        above = "".join(f" {symbol} {offsets[up]:08} n 0000" for up in graph[word])
        pointers = f"{len(graph[word]) + 1:03}{above} ~ 00000000 n 0000"
        return f"{offsets[word]:08} 05 n 02 {word} 0 Also_{word} 1 {pointers} | a kind of | thing\n"

    offsets = dict.fromkeys(graph, 0)
    end = len(LICENSE)
    for word in graph:  # offsets have a fixed width, so line lengths are known before the offsets
        offsets[word], end = end, end + len(line(word, offsets))
    data = LICENSE + "".join(line(word, offsets) for word in graph)
    index = LICENSE + "".join(
        f"{word} n 1 1 @ 1 1 {offsets[word]:08}  \n" for word in sorted(graph)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text(index)
    (folder / "noun.exc").write_text(irregular)
    return WordNet(folder)


# The similarity again, over all paths to the root.


def ways_up(graph: Graph, word: str) -> list[list[str]]:
    above = graph[word]
    return [[word, *way] for up in above for way in ways_up(graph, up)] if above else [[word]]


def steps(graph: Graph, word: str, up: str) -> int | None:
    return min((way.index(up) for way in ways_up(graph, word) if up in way), default=None)


def distance(graph: Graph, a: str, b: str) -> int:
    found = []
    for up in graph:
        to_a, to_b = steps(graph, a, up), steps(graph, b, up)
        if to_a is not None and to_b is not None:
            found.append(to_a + to_b)
    return min(found)


def naive_wup(graph: Graph, a: str, b: str) -> float:
    shared = {w for way in ways_up(graph, a) for w in way}
    shared &= {w for way in ways_up(graph, b) for w in way}
    if not shared:
        return 0.0
    shortest = {w: min(len(way) for way in ways_up(graph, w)) for w in shared}
    lowest = sorted(w for w in shared if shortest[w] == max(shortest.values()))
    subsumer = a if a in lowest else lowest[0]
    depth = max(len(way) for way in ways_up(graph, subsumer))
    length_a = distance(graph, a, subsumer) + depth
    length_b = distance(graph, b, subsumer) + depth
    return 2 * depth / (length_a + length_b)


@pytest.mark.parametrize("seed", range(12))
def test_random_wordnets(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    words = [f"w{number}x" for number in range(24)]
    choose.shuffle(words)
    graph: Graph = {words[0]: []}
    for number, word in enumerate(words[1:], start=1):
        above = choose.sample(words[:number], k=min(number, choose.choice([0, 1, 1, 2, 3])))
        graph[word] = above
    wordnet = make(tmp_path, graph, instances=seed % 2 == 1)
    for a in words:
        for b in words:
            assert wordnet.similarity(a, b) == pytest.approx(naive_wup(graph, a, b), abs=1e-12)


def test_plurals(tmp_path: Path) -> None:
    graph: Graph = {"thing": []}
    for word in ("chair", "glass", "wolf", "box", "bench", "dish", "fireman", "baby", "mouse"):
        graph[word] = ["thing"]
    wordnet = make(tmp_path, graph, irregular="mice mouse\nchairs box\n")
    for plural, singular in {
        "glasses": "glass",
        "wolves": "wolf",
        "boxes": "box",
        "benches": "bench",
        "dishes": "dish",
        "firemen": "fireman",
        "babies": "baby",
        "mice": "mouse",
        "Dish": "dish",
        "chairs": "box",  # an exception goes before the rules
    }.items():
        assert wordnet.senses(plural) == wordnet.senses(singular) != []
    assert wordnet.senses("s") == wordnet.senses("") == wordnet.senses("red chair") == []


TREE: Graph = {
    "entity": [],
    "animal": ["entity"],
    "dog": ["animal"],
    "cat": ["animal"],
    "puppy": ["dog"],
    "poodle": ["puppy"],
    "toy_poodle": ["poodle"],
    "stone": ["entity"],
}


def test_wups_by_hand(tmp_path: Path) -> None:
    wordnet = make(tmp_path, TREE)
    assert wordnet.similarity("dog", "cat") == pytest.approx(2 * 2 / (3 + 3))
    assert wordnet.similarity("toy_poodle", "poodle") == pytest.approx(2 * 5 / (6 + 5))
    assert wups("dog", "dog", 0.9, wordnet) == 1.0
    assert wups("no noun", "no noun", 0.9, wordnet) == 1.0
    assert wups("no noun", "dog", 0.0, wordnet) == 0.0
    assert wups("dog", "cat", 0.0, wordnet) == pytest.approx(2 / 3)
    assert wups("dog", "cat", 0.9, wordnet) == pytest.approx(0.1 * 2 / 3)
    assert wups("toy_poodle", "poodle", 0.9, wordnet) == pytest.approx(10 / 11)
    assert wups("DOG ", "dog", 0.9, wordnet) == 1.0


def test_wups_of_several_words(tmp_path: Path) -> None:
    wordnet = make(tmp_path, TREE)
    assert wups("cat, dog", "dog, cat", 0.9, wordnet) == 1.0
    # A word too few: the answer's words multiply to 1 x 2/3.
    assert wups("dog", "dog, cat", 0.0, wordnet) == pytest.approx(2 / 3)
    assert wups("dog", "dog, cat", 0.9, wordnet) == pytest.approx(0.1 * 2 / 3)
    # A word too many: the prediction's words do.
    assert wups("dog, stone", "dog", 0.0, wordnet) == pytest.approx(2 * 1 / (3 + 2))
    assert wups("", "dog", 0.0, wordnet) == 0.0


def test_score(tmp_path: Path) -> None:
    wordnet = make(tmp_path, TREE)
    examples = [Example(n, "x", "what", (right,), right) for n, right in enumerate(("dog", "cat"))]
    assert score({0: "dog", 1: "dog"}, examples, wordnet) == {"wups_0.9": 53.33, "wups_0.0": 83.33}
    with pytest.raises(UserError, match="no answer to 1 of 2 questions: 1"):
        score({0: "dog"}, examples, wordnet)
    ten = Example(7, "x", "what", ("dog",) * 10, "dog")
    with pytest.raises(UserError, match="question 7 has 10 answers; WUPS is for data sets with"):
        score({7: "dog"}, [ten], wordnet)


def test_missing_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"index\.noun: cannot be read: No such file"):
        WordNet(tmp_path)
    monkeypatch.setattr(sys, "path", [])  # the search path of packages
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"not installed; \./bootstrap\.sh env .*--wordnet"):
        WordNet()


def test_another_wordnet_is_refused(tmp_path: Path) -> None:
    make(tmp_path, TREE)
    data = tmp_path / "data.noun"
    data.write_text(data.read_text().replace("WordNet 3.0", "WordNet 3.1"))
    with pytest.raises(UserError, match=r"data\.noun: not WordNet 3\.0"):
        WordNet(tmp_path)


def test_the_package_goes_before_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, below = module.WORDNET_PACKAGE
    site, debian = tmp_path / "site", tmp_path / "debian"
    make(debian, {"debian": []})
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(module, "DEBIAN_FOLDER", debian)
    assert WordNet().senses("debian")
    make(site / below, {"packaged": []})
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    assert WordNet().senses("packaged")
    assert not WordNet().senses("debian")


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet()


# Measured with NLTK 3.10.4 on WordNet 3.0: the best wup_similarity of any two noun synsets.
NLTK = [
    ("dog", "cat", 0.857143),
    ("chair", "sofa", 0.9),
    ("chairs", "sofa", 0.9),
    ("table", "desk", 0.947368),
    ("red", "blue", 0.875),
    ("white", "black", 0.9),
    ("lamp", "light", 0.888889),
    ("two", "three", 0.9),
    ("2", "3", 0.875),
    ("men", "women", 0.705882),
    ("children", "boy", 0.909091),
    ("knives", "fork", 0.761905),
    ("curtain", "window", 0.666667),
    ("bed", "pillow", 0.714286),
    ("garbage_bin", "bin", 0.0),
    ("mouse", "keyboard", 0.823529),
    ("bathroom", "kitchen", 0.888889),
    ("man", "person", 0.8),
    ("bus", "car", 0.96),
    ("cabinet", "shelf", 0.666667),
    ("mother", "aunt", 0.571429),
    ("einstein", "paris", 0.333333),
]


@pytest.mark.parametrize(("a", "b", "expected"), NLTK)
def test_like_nltk(wordnet: WordNet, a: str, b: str, expected: float) -> None:
    assert wordnet.similarity(a, b) == pytest.approx(expected, abs=5e-7)


def test_exactly_the_threshold_is_not_weighed_down(wordnet: WordNet) -> None:
    assert wups("chair", "sofa", 0.9, wordnet) == 0.9
    assert wups("red", "blue", 0.9, wordnet) == pytest.approx(0.0875)
