"""Random numbers that are a pure function of (key, position): Philox4x32-10, in tensor operations.

A generator with state would tie a sample's disruption to the batch, process and device that it happened to
be made in. This one gives sample `i` the same numbers wherever and however often it is disrupted.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits (in int64 tensors) for each counter of four words and key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(keys: Tensor, count: int, stream: int) -> Tensor:
    """Numbers in (0, 1), `count` for each sample.

    Args:
        keys: (B,) int64, one key a sample.
        count: how many numbers.
        stream: tells apart the uses of one key, so that two disruptions of a sample are independent.

    Returns:
        (B, count) float32 on the device of `keys`.
    """
    blocks = torch.arange((count + 3) // 4, device=keys.device)[None]
    zero = torch.zeros_like(blocks)
    words = philox(
        (blocks & _WORD, blocks >> 32, zero + stream, zero),
        ((keys & _WORD)[:, None], ((keys >> 32) & _WORD)[:, None]),
    )
    # 23 bits and a half: never 0, never 1, exact in float32.
    bits = torch.stack(words, dim=-1).flatten(1)[:, :count] >> 9
    return (bits.to(torch.float32) + 0.5) * 2.0**-23


def normal(keys: Tensor, count: int, stream: int) -> Tensor:
    """Standard normal numbers (Box and Muller); arguments and shape as `uniform`."""
    half = (count + 1) // 2
    pairs = uniform(keys, 2 * half, stream)
    radius = torch.sqrt(-2 * torch.log(pairs[:, :half]))
    angle = 2 * math.pi * pairs[:, half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


def choose(keys: Tensor, rows: int, columns: int, chosen: int, stream: int) -> Tensor:
    """Choose exactly `chosen` of `columns` places in each of `rows` rows, for each sample.

    Returns:
        (B, rows, columns) bool, true where chosen.
    """
    order = uniform(keys, rows * columns, stream).unflatten(1, (rows, columns)).argsort(dim=2)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=keys.device)
    return mask.scatter_(2, order[:, :, :chosen], True)


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps, but keeps every bit."""
    product = word * constant
    return (product >> 32) & _WORD, product & _WORD
