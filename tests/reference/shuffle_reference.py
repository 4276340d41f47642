"""The order of shuffled sessions a second time: Python's whole numbers and sorted lists, no code of `metarec.data`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

WORD = 2**64
GAMMA = 0x9E3779B97F4A7C15


def splitmix(state: int, n: int = 1) -> int:
    """The n-th number, from 1, of splitmix64 started at `state`."""
    z = (state + n * GAMMA) % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def state_of(user: str, number: int, seed: int) -> int:
    """Where the generator of a session starts."""
    digest = int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest(), "little")
    of_user = mix(seed, digest)
    return mix(of_user, number)


def mix(state: int, value: int) -> int:
    """The finaliser of splitmix64 over the first number exclusive-or the value."""
    return splitmix((splitmix(state) ^ value) - GAMMA)


def order(user: str, number: int, seed: int, positions: Sequence[int]) -> list[int]:
    """From which of the `positions` of a session the items at these positions come."""
    state = state_of(user, number, seed)
    return sorted(positions, key=lambda position: splitmix(state, position + 1))
