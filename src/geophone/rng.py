"""Randomness that can be repeated: named streams for a program, keyed draws for an example.

Nothing here touches the global random state.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The constants of splitmix64 (Steele, Lea & Flood 2014, doi:10.1145/2714064.2660195) as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def key(*names: object) -> int:
    """A 63-bit integer from names: the same everywhere, whatever the platform or Python's hash seed."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(*names: object) -> torch.Generator:
    """A generator of its own for one use: `stream(seed, "shuffle", epoch)`. It lives on the CPU."""
    return torch.Generator().manual_seed(key(*names))


@dataclass(frozen=True)
class Draws:
    """Random numbers for each example, fixed by `(seed, example, what they are for)` and by nothing else.

    The generator is a counter hash (splitmix64's finaliser), so the draws of an example are the same in any batch, in
    any order, on any number of workers, and the same bits on every device.

    Attributes:
        seed: The stream's key.
        index: Which example each row is, `[n]`, int64. Draws live on its device.
    """

    seed: int
    index: Int[Tensor, " n"]

    def uniform(self, name: str, *shape: int) -> Float[Tensor, "n ..."]:
        """Uniform on [0, 1), float32 of shape `[n, *shape]`; `name` says what for."""
        bits = self._bits(name, _size(shape))
        return (((bits >> 40) & 0xFFFFFF).float() * 2.0**-24).reshape(-1, *shape)

    def normal(self, name: str, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal by Box and Muller's transform, float32 of shape `[n, *shape]`. |z| is at most 6.7."""
        size = _size(shape)
        bits = self._bits(name, (size + 1) // 2)
        radius = (((bits >> 32) & 0xFFFFFFFF).float() + 0.5).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = (bits & 0xFFFFFFFF).float().mul_(2.0**-31 * torch.pi)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return both[:, :size].reshape(-1, *shape)

    def child(self, *names: object) -> "Draws":
        """Other draws for the same examples."""
        return Draws(key(self.seed, *names), self.index)

    def __getitem__(self, rows: Tensor | slice) -> "Draws":
        return Draws(self.seed, self.index[rows])

    def _bits(self, name: str, size: int) -> Int[Tensor, "n m"]:
        device = self.index.device
        start = _mix(self.index * _GOLDEN + key(self.seed, name))
        counter = torch.arange(1, size + 1, device=device) * _GOLDEN
        return _mix(start[:, None] + counter)


def draws(*names: object, index: Int[Tensor, " n"]) -> Draws:
    """Per-example draws of a named stream: `draws(seed, "attack", epoch, index=batch.index)`."""
    return Draws(key(*names), index)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _mix(z: Tensor) -> Tensor:
    """Splitmix64's finaliser; int64 multiplication wraps, and the masks make the shifts logical."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)
