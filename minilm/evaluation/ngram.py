"""N-gram models, the baseline of the transformer: what counting reaches without a neural network.

An n-gram model of order k predicts a character from the k - 1 before it, by what followed them in the
training split.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minilm.data.tokenizer import Ids
from minilm.errors import InputError

ORDER = 6  # of the largest model: a larger one takes more memory than it gains
MOST_CHARACTERS = 5_000_000  # of the training split that are counted, in less than a gigabyte of memory
_TEST_PIECE = 1 << 18  # characters of the test split at once, so that memory does not grow with it
_UNSEEN = -1

Integers = npt.NDArray[np.int64]


def ngram_losses(train: Ids, test: Ids, vocab_size: int, order: int = ORDER) -> list[float]:
    """Mean nats per character of `test` for each order from 1, the unigram cross-entropy, to `order`.

    They are means over every character of `test` but its first, the same that `evaluate` scores; of a shorter
    one InputError is raised. Only the first MOST_CHARACTERS of `train` are counted. Both are arrays of token
    ids, (tokens,), which may be on disk.
    """
    if len(test) < 2:
        raise InputError("the test split needs at least 2 characters")
    model = NGramModel(train[:MOST_CHARACTERS], vocab_size, order)
    nats = np.zeros(order)
    for start in range(1, len(test), _TEST_PIECE):
        before = max(0, start - order + 1)  # the first prediction's context
        probabilities = model.probabilities(test[before : start + _TEST_PIECE])
        nats -= np.log(probabilities[:, start - before :]).sum(1)
    return (nats / (len(test) - 1)).tolist()


class _Counts(NamedTuple):
    """The n-grams of one length in the training split. Ids are ranks among those seen."""

    codes: Integers  # (n-grams,), id of all but the last character * vocabulary + the last, ascending
    times: Integers  # (n-grams,), how often each occurs
    context_times: Integers  # (contexts,), how often something follows each n-gram one shorter
    context_types: Integers  # (contexts,), how many different characters do


class NGramModel:
    """Models of every order up to `order`, each falling back on the one below.

    P_k(c | h) = (count(h c) + types(h) P_{k-1}(c | h')) / (count(h) + types(h))

    where h is the k - 1 characters before c, h' lacks the first of them, and types(h) is the number of
    different characters that follow h in the training split: the more there are, the more probable is yet
    another one. P_k is P_{k-1} where h was never followed by anything, and P_0 is uniform.

    This is method C of "The zero-frequency problem" (Witten and Bell, 1991), which is that of "Implementing
    the PPM Data Compression Scheme" (Moffat, 1990), as interpolated in "An Empirical Study of Smoothing
    Techniques for Language Modeling" (Chen and Goodman, 1998).

    The ids of `train`, (tokens,), lie in [0, vocab_size); `order` is at least 1.
    """

    def __init__(self, train: Ids, vocab_size: int, order: int):
        self.vocab_size, self.order = vocab_size, order
        self.counts: list[_Counts] = []
        tokens = train.astype(np.int64)
        ids, contexts = np.zeros(len(tokens), np.int64), 1  # of the empty context before each character
        for length in range(1, min(order, len(train)) + 1):
            # An id stands for all characters but the last, so that codes of any length fit into 64 bits.
            coded = ids * vocab_size + tokens[length - 1 :]
            # NumPy's would take ten times as long.
            found = torch.unique(torch.from_numpy(coded), return_inverse=True, return_counts=True)
            codes, ids, times = (each.numpy() for each in found)
            of_context = codes // vocab_size
            context_times = np.bincount(of_context, times, contexts).astype(np.int64)
            context_types = np.bincount(of_context, minlength=contexts)
            self.counts.append(_Counts(codes, times, context_times, context_types))
            # The last n-gram is followed by nothing: it is no context.
            ids, contexts = ids[:-1], len(codes)

    def probabilities(self, tokens: Ids) -> npt.NDArray[np.float64]:
        """P_k of each character given those before it: (tokens,) -> (order, tokens), row i is k = i + 1.

        Where fewer than k - 1 characters come before one, P_k is that of as many as there are.
        """
        tokens = tokens.astype(np.int64)
        found = np.full((self.order, len(tokens)), 1 / self.vocab_size)
        ids = np.zeros(len(tokens), np.int64)
        for row, counts in enumerate(self.counts):
            # `ids` are the contexts of the characters from `row` on; the others have none so long.
            places = np.flatnonzero(ids != _UNSEEN)
            context = ids[places]
            codes = context * self.vocab_size + tokens[row:][places]
            rank = torch.searchsorted(torch.from_numpy(counts.codes), torch.from_numpy(codes)).numpy()
            rank = rank.clip(max=len(counts.codes) - 1)
            seen = counts.codes[rank] == codes
            times = np.where(seen, counts.times[rank], 0)
            total, types = counts.context_times[context], counts.context_types[context]
            lower = found[row, row:][places]
            smoothed = (times + types * lower) / np.maximum(1, total + types)
            found[row, row:][places] = np.where(total > 0, smoothed, lower)
            found[row + 1 :] = found[row]  # the orders above begin with it, or have no counts
            ids[places] = np.where(seen, rank, _UNSEEN)
            ids = ids[:-1]
        return found
