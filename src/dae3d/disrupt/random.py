"""Counter-based random numbers (Philox4x32-10) in tensor operations.

The numbers are a pure function of (key, position), so the disruption of a sample does not depend on its
batch, process or device, or on how often it has been disrupted before.
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
    """Uniform random numbers in (0, 1), `count` per sample.

    Args:
        keys: (B,) int64, one key per sample.
        count: numbers per sample.
        stream: distinguishes uses of the same key, so that the steps of a disruption are independent.

    Returns:
        (B, count) float32 on the device of `keys`.
    """
    blocks = torch.arange((count + 3) // 4, device=keys.device)[None]
    zero = torch.zeros_like(blocks)
    words = philox(
        (blocks & _WORD, blocks >> 32, zero + stream, zero),
        ((keys & _WORD)[:, None], ((keys >> 32) & _WORD)[:, None]),
    )
    # (23 bits + 0.5) / 2^23 is never 0 or 1 and exact in float32.
    bits = torch.stack(words, dim=-1).flatten(1)[:, :count] >> 9
    return (bits.to(torch.float32) + 0.5) * 2.0**-23


def normal(keys: Tensor, count: int, stream: int) -> Tensor:
    """Standard normal random numbers (Box-Muller transform); arguments and shape as in `uniform`."""
    half = (count + 1) // 2
    pairs = uniform(keys, 2 * half, stream)
    radius = torch.sqrt(-2 * torch.log(pairs[:, :half]))
    angle = 2 * math.pi * pairs[:, half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


def choose(keys: Tensor, rows: int, columns: int, chosen: int, stream: int) -> Tensor:
    """For each sample, choose exactly `chosen` of `columns` entries in each of `rows` rows.

    Returns:
        (B, rows, columns) bool, true where chosen.
    """
    order = uniform(keys, rows * columns, stream).unflatten(1, (rows, columns)).argsort(dim=2)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=keys.device)
    return mask.scatter_(2, order[:, :, :chosen], True)


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps around but loses no bits."""
    product = word * constant
    return (product >> 32) & _WORD, product & _WORD
