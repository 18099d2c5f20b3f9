"""Random numbers that depend on their purpose, never on when or where they are drawn.

Each event of each collection has a generator of its own, seeded by a hash of the set's seed, the
dataset, the event's number and the collection. So batches, workers and resumes change nothing, and
a change in one collection leaves the others as they were.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.simulation.kernel_cache import kernel

PYTHIA_SEEDS: Final = 900_000_000
"""Largest seed of Pythia's generator; the smallest is 1."""

# Constants of splitmix64.
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


def stream_key(*names: object) -> int:
    """64-bit key of a stream of random numbers, from the names of its purpose."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def pythia_seed(key: int, unit: int) -> int:
    """Seed of a unit: different for up to 900 million units of one stream."""
    return 1 + (key + unit) % PYTHIA_SEEDS


@kernel
def _mixed(value: Any) -> Any:
    """splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014): each bit depends on all others."""
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@kernel
def event_seeds(key: Any, numbers: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """One 32-bit seed an event, from a stream's key and the event numbers."""
    seeds = np.empty(len(numbers), np.uint32)
    for i in range(len(numbers)):
        seeds[i] = np.uint32(_mixed(_mixed(numbers[i]) ^ np.uint64(key)) >> np.uint64(32))
    return seeds
