"""The categories of an annotation file as people say them: which ids mean one category, and which categories may contain each other.

A question says of a category that every instance is marked, or that there is none. Both are only true by name: a photo with a trout has a
fish, whatever ids the file gives them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pixellm.data.sources.coco_files import CocoCategory
from pixellm.data.sources.referring import Category

_BRACKETS = re.compile(r"[\s_]*\([^)]*\)")
_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"))
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
              "feet": "foot", "teeth": "tooth", "oxen": "ox"}

Term = tuple[str, ...]  # a name's words in lower case, the last one also in what may be its singular


@dataclass(frozen=True)
class Vocabulary:
    """`by_id` gives ids of one name the same Category; `related` are categories of which a thing may be of both, itself included."""

    by_id: Mapping[int, Category]
    related: Mapping[Category, frozenset[Category]]

    def related_to(self, categories: Iterable[Category]) -> set[Category]:
        """`categories` and all that are related to one of them."""
        return {other for category in categories for other in self.related[category]}


def build_vocabulary(entries: Iterable[CocoCategory], spoken: Mapping[int, Category]) -> Vocabulary:
    """`spoken` has the Category of each entry's id. Names that differ in case, white space, hyphens or underscores are one name.

    Two categories are related where a name or synonym of one is a name of the other, in the singular or plural; where one is above the
    other by `supercategory`; and where one name ends with the other ("wine glass" and "glass").
    """
    by_name: dict[str, Category] = {}
    for category in spoken.values():
        key = " ".join(_words(category.name))
        first = by_name.setdefault(key, category)
        phrases = tuple(dict.fromkeys((*first.phrases, *(each for each in category.phrases if _words(each) != _words(first.name)))))
        by_name[key] = replace(first, phrases=phrases)
    by_id = {number: by_name[" ".join(_words(category.name))] for number, category in spoken.items()}
    own: dict[Category, set[Term]] = defaultdict(set)
    above: dict[Term, set[Term]] = defaultdict(set)
    for entry in entries:
        names = (entry.name, by_id[entry.id].name, *by_id[entry.id].phrases, *entry.synonyms)
        terms = {term for name in names for term in to_terms(name)}
        own[by_id[entry.id]] |= terms
        if isinstance(entry.supercategory, str):
            for term in terms:
                above[term] |= to_terms(entry.supercategory) - {term}
    return Vocabulary(by_id, _relate(own, above))


def to_terms(name: str) -> set[Term]:
    """`Wine_glasses (empty)` to ("wine", "glasses"), ("wine", "glasse") and ("wine", "glass"): one of them is the singular.

    No rule tells buses from horses, so names are compared by all that they may be.
    """
    *first, last = _words(_BRACKETS.sub("", name)) or _words(name)
    singulars = {last, _IRREGULAR.get(last, last)} | {last.removesuffix(plural) + singular for plural, singular in _PLURALS
                                                      if last.endswith(plural) and len(last) > len(plural) + 1}
    return {(*first, word) for word in singulars}


def _relate(own: Mapping[Category, set[Term]], above: Mapping[Term, set[Term]]) -> dict[Category, frozenset[Category]]:
    owners: dict[Term, set[Category]] = defaultdict(set)
    for category, terms in own.items():
        for term in terms:
            owners[term].add(category)
    related: dict[Category, set[Category]] = {category: {category} for category in own}
    for category, terms in own.items():
        ends = {term[start:] for term in terms for start in range(len(term))}
        for other_term in ends.union(_all_above(terms, above)):
            for other in owners.get(other_term, ()):
                related[category].add(other)
                related[other].add(category)
    return {category: frozenset(others) for category, others in related.items()}


def _all_above(terms: Iterable[Term], above: Mapping[Term, set[Term]]) -> Iterator[Term]:
    """`terms` and what is above them, each once, also where the tree is a circle."""
    waiting, seen = list(terms), set[Term]()
    while waiting:
        term = waiting.pop()
        if term not in seen:
            seen.add(term)
            waiting += above.get(term, ())
            yield term


def _words(name: str) -> list[str]:
    return re.split(r"[\s_\-]+", name.strip(" _-\t\n").casefold())
