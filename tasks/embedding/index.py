"""Where each key is, among the sorted keys of many segments: eight bytes of memory a key.

An entry is the first bits of a key and, in the low bits, its place (its number, counted through all
segments): as many bits as places need, at least 33 for a key below 2^31 of them. So one sorted array
of numbers holds all, and the few candidates that it gives are compared in full with the segments.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tasks.embedding.segment import Keys, in_threads, prefixes, sorted_once

_MANY = 1_000_000  # keys

Places = NDArray[np.int64]  # [N]; -1: not there


class KeyIndex:
    """An index over `parts`, the keys [rows, 2] of each segment, sorted."""

    def __init__(self, parts: Sequence[Keys]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        total = int(self._starts[-1])
        self._bits = np.uint64(max(1, (total - 1).bit_length()))
        self._mask = np.uint64((1 << int(self._bits)) - 1)
        self._entries = np.arange(total, dtype=np.uint64)
        for part, (start, end) in zip(parts, pairwise(self._starts), strict=True):
            self._entries[start:end] |= self._cut(prefixes(part))
        # Timsort merges the runs that the segments are; of many keys two halves at once.
        middle = total // 2 if total > _MANY else 0
        in_threads(_sort, [self._entries[:middle], self._entries[middle:]] if middle else [])
        _sort(self._entries)

    def find(self, keys: Keys) -> Places:
        """The place of each key [N, 2]; any of them where several segments hold it."""
        wanted = self._cut(prefixes(keys))
        order = np.argsort(wanted)  # near keys are looked for near each other in memory
        at = np.empty(len(keys), dtype=np.int64)
        at[order] = np.searchsorted(self._entries, wanted[order])
        places = np.full(len(keys), -1, dtype=np.int64)
        left = np.arange(len(keys))
        while len(left):
            left = left[at[left] < len(self._entries)]
            entries = self._entries[at[left]]
            alike = self._cut(entries) == wanted[left]
            left, entries = left[alike], entries[alike]
            candidates = (entries & self._mask).astype(np.int64)
            same = (self.keys_at(candidates) == keys[left]).all(axis=1)
            places[left[same]] = candidates[same]
            left = left[~same]
            at[left] += 1
        return places

    def keys_at(self, places: Places) -> Keys:
        """The keys [N, 2] at places, none of them -1."""
        keys = np.empty((len(places), 2), dtype=np.uint64)
        for part, which, rows in self.split(places):
            keys[which] = self._parts[part][rows]
        return keys

    def where(self, places: Places) -> tuple[Places, Places]:
        """The number of the part that has each of `places`, and the row in it."""
        parts = np.searchsorted(self._starts, places, side="right") - 1
        return parts, places - self._starts[parts]

    def split(self, places: Places) -> Iterator[tuple[int, Places, Places]]:
        """For each part that has some of `places`: its number, which of them, and their rows in it."""
        parts, rows = self.where(places)
        if len(self._parts) <= 1 << 16:
            parts = parts.astype(np.uint16)  # sorted by radix
        order = np.argsort(parts, kind="stable")
        of_part = parts[order]
        edges = [0, *(np.flatnonzero(of_part[1:] != of_part[:-1]) + 1).tolist(), len(places)]
        for begin, end in pairwise(edges):
            if begin < end:
                part, which = int(of_part[begin]), order[begin:end]
                yield part, which, rows[which]

    def repeated(self) -> Places:
        """The places of the keys that several segments hold."""
        cut = self._cut(self._entries)
        again = np.zeros(len(cut), dtype=np.bool_)
        again[1:] = cut[1:] == cut[:-1]
        runs = again.copy()
        runs[:-1] |= again[1:]
        alike = (self._entries[runs] & self._mask).astype(np.int64)
        keys = self.keys_at(alike)
        by_key = np.lexsort((keys[:, 1], keys[:, 0]))
        same = np.zeros(len(keys) + 1, dtype=np.bool_)  # as the one before
        same[1:-1] = (keys[by_key[1:]] == keys[by_key[:-1]]).all(axis=1)
        return alike[by_key[same[:-1] | same[1:]]]

    def distinct(self) -> int:
        """How many different keys there are."""
        repeated = self.repeated()
        return len(self._entries) - len(repeated) + len(sorted_once(self.keys_at(repeated)))

    def _cut(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return numbers & ~self._mask


def _sort(numbers: NDArray[np.uint64]) -> None:
    numbers.sort(kind="stable")
