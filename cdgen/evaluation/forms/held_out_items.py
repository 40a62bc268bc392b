"""Questions that are made from held-out text: the next sentence, the order of words, and repeated names."""

import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice, permutations
from typing import NamedTuple, TypeAlias

from cdgen.evaluation.forms.sentences import Sentence, abbreviations, bare, sentences, words

CONTEXT = 500  # characters of context, in whole sentences; less at the start of a document
SHORTEST, LONGEST = 30, 250  # length in characters of a sentence that a question is about
OTHERS = 3  # number of wrong sentences in a question about the next sentence
_SIMILAR = 0.1  # maximum difference in length between them and the true one, relative to the true one
_SHUFFLED = 3  # number of consecutive words that are shuffled
_OCCURRENCES = 3  # minimum number of times that a name occurs in its document
_RARE = 1000  # in a text without capitals, a name is at most one word in 1000


class Question(NamedTuple):
    """A question: which of several continuations of a context is the one in the text.

    Attributes:
        place: number of the document, and of the sentence in it, from 0.
        context: the text before the continuation.
        continuations: the true one, then the others, each with the white space before it.
    """

    place: tuple[int, int]
    context: str
    continuations: list[str]


class Document:
    """A document that questions are made from."""

    def __init__(self, text: str, abbreviated: frozenset[str]) -> None:
        self.sentences = sentences(text, abbreviated)
        self._abbreviated = abbreviated

    def context(self, at: int) -> tuple[int, str]:
        """Return the number of the first sentence of the context of a sentence, and the context."""
        first, length = at, 0
        while first > 0 and length < CONTEXT:
            first -= 1
            length += len(self.sentences[first].text)
        parts = [part for text, separator in self.sentences[first:at] for part in (separator, text)]
        return first, "".join(parts[1:])

    @cached_property
    def names(self) -> Counter[str]:
        """Number of occurrences of each word that is probably a name."""
        counts = Counter(bare(word) for sentence in self.sentences for word in sentence.text.split())
        if any(word != word.lower() for word in counts):
            inner = {word for sentence in self.sentences for word in inner_words(sentence.text).values()}
            found = {word for word in inner if word[:1].isupper() and word[1:].islower() and word.lower() not in counts}
        else:
            most = max(_OCCURRENCES, counts.total() // _RARE)
            found = {word for word, count in counts.items() if len(word) > 1 and count <= most}
        kept = sorted(word for word in found - self._abbreviated if counts[word] >= _OCCURRENCES)
        return Counter({word: counts[word] for word in kept if not any(map(_divides, word))})


class Documents:
    """All documents, and their sentences by length."""

    def __init__(self, texts: Sequence[str]) -> None:
        abbreviated = abbreviations(texts)
        self.documents = [Document(text, abbreviated) for text in texts]
        self.places = [
            (number, at)
            for number, document in enumerate(self.documents)
            for at, sentence in enumerate(document.sentences)
            if sentence.is_finished and SHORTEST <= len(sentence.text) <= LONGEST
        ]
        self._by_length = sorted((len(self.sentence(place).text), place) for place in self.places)

    def sentence(self, place: tuple[int, int]) -> Sentence:
        """Return the sentence at a place."""
        return self.documents[place[0]].sentences[place[1]]

    def similar(self, length: int) -> list[tuple[int, int]]:
        """Return the places of sentences that are about as long as `length` characters."""
        low = bisect_left(self._by_length, (round(length * (1 - _SIMILAR)),))
        high = bisect_right(self._by_length, (round(length * (1 + _SIMILAR)) + 1,))
        return [place for _, place in self._by_length[low:high]]


Maker: TypeAlias = Callable[[random.Random, Documents, tuple[int, int]], "Question | None"]


def questions(texts: Sequence[str], count: int, seed: int) -> dict[str, list[Question]]:
    """Make questions from texts.

    The same texts, count and seed give the same questions; a larger count extends the questions of a smaller one.

    Args:
        texts: documents, in any language.
        count: greatest number of questions of each kind.
        seed: random seed.
    Returns:
        The questions by kind: next_sentence, word_order and name; fewer than `count` if the texts give no more.
    """
    documents, found = Documents(texts), {}
    for kind, make in KINDS.items():
        source = random.Random(f"{seed} {kind}")
        made = (make(source, documents, place) for place in source.sample(documents.places, len(documents.places)))
        found[kind] = list(islice(filter(None, made), count))
    return found


def next_sentence(source: random.Random, documents: Documents, place: tuple[int, int]) -> Question | None:
    """Ask for the next sentence: the true one, or three others of similar length from elsewhere in the document.

    If the document has fewer such sentences, they come from other documents. This is a narrative cloze test
    (Mostafazadeh et al. 2016, "A corpus and cloze evaluation for deeper understanding of commonsense stories", whose
    wrong endings people wrote) with sampled endings.
    """
    number, at = place
    first, context = documents.documents[number].context(at)
    if first == at:
        return None
    text, separator = documents.sentence(place)
    similar = [each for each in documents.similar(len(text)) if documents.sentence(each).text != text]
    others = [each for each in similar if each[0] == number and not first <= each[1] <= at + 1]
    if len(others) < OTHERS:
        others = [each for each in similar if each[0] != number]
    if len(others) < OTHERS:
        return None
    chosen = [text, *(documents.sentence(each).text for each in source.sample(others, OTHERS))]
    return Question(place, context, [separator + each for each in chosen])


def word_order(source: random.Random, documents: Documents, place: tuple[int, int]) -> Question | None:
    """Ask for the order of words: the true sentence, or the same with three consecutive words in another order.

    A shuffle of the whole sentence is so easy that it hardly tells models apart. The first and the last word stay,
    since capital letters and punctuation would give them away. Jain et al. 2023, "Bring your own data! Self-supervised
    evaluation for large language models" (arXiv 2306.13651), measure the sensitivity to shuffled words.
    """
    text, _ = documents.sentence(place)
    tokens, space = words(text)
    starts = range(1, len(tokens) - _SHUFFLED)
    if not starts:
        return None
    start = source.choice(starts)
    end = start + _SHUFFLED
    others = [list(each) for each in permutations(tokens[start:end]) if list(each) != tokens[start:end]]
    if not others:
        return None
    shuffled = tokens[:start] + source.choice(others) + tokens[end:]
    return Question(place, "", [space.join(tokens), space.join(shuffled)])


def name(source: random.Random, documents: Documents, place: tuple[int, int]) -> Question | None:
    """Ask for a name of the context that is repeated: the true one, or another name of the document.

    The other name is not in the context, is about as frequent, and is the most similar one in last letter and length.
    That is the Children's Book Test's question about named entities (Hill et al. 2016, "The Goldilocks principle"),
    scored like a language model's cloze by the name and what follows it (Radford et al. 2019, section 3.2).
    """
    document = documents.documents[place[0]]
    _, context = document.context(place[1])
    text, separator = documents.sentence(place)
    tokens, known = text.split(), {bare(word) for word in context.split()}
    found = [(at, word) for at, word in inner_words(text).items() if word in document.names and word in known]
    if not found:
        return None
    at, true = found[0]
    absent = sorted({*document.names} - known - {bare(token) for token in tokens})
    count = document.names[true]
    others = [word for word in absent if count <= 2 * document.names[word] <= 4 * count]
    if not others:
        return None
    source.shuffle(others)
    other = min(others, key=lambda word: (word[-1] != true[-1], abs(len(word) - len(true))))
    before = context + separator + " ".join(tokens[:at])
    changed = [token.replace(true, other) if bare(token) == true else token for token in tokens[at:]]
    return Question(place, before, [" " + " ".join(each) for each in (tokens[at:], changed)])


KINDS: dict[str, Maker] = {"next_sentence": next_sentence, "word_order": word_order, "name": name}


def inner_words(text: str) -> dict[int, str]:
    """Return the words of a sentence that follow a word or a comma, by index; a capital letter there marks a name."""
    tokens = text.split()
    return {
        at: bare(token)
        for at, token in enumerate(tokens)
        if at > 0 and token[0].isalpha() and (tokens[at - 1][-1].isalpha() or tokens[at - 1][-1] == ",")
    }


def _divides(character: str) -> bool:
    """Return whether a character separates words or is part of a number."""
    return not character.isalpha() and character.isascii()
