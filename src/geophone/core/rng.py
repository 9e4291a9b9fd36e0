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
        # The 24 highest bits, which the last step of the finaliser leaves as they are.
        bits = _multiplied(self._counters(name, _size(shape)))
        return _shifted(bits, 40, bits).float().mul_(2.0**-24).reshape(-1, *shape)

    def normal(self, name: str, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal by Box and Muller's transform, float32 of shape `[n, *shape]`. |z| is at most 6.7."""
        size = _size(shape)
        bits = _mix(self._counters(name, (size + 1) // 2))
        radius = _shifted(bits, 32).float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = bits.bitwise_and_(0xFFFFFFFF).float().mul_(2.0**-31 * torch.pi)
        both = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
        return both[:, :size].reshape(-1, *shape)

    def bits(self, name: str) -> Int[Tensor, " n"]:
        """One whole number for each example, uniform on [0, 2⁶³): a hash of what it is."""
        return _shifted(_mix(self._counters(name, 1)), 1)[:, 0]

    def child(self, *names: object) -> "Draws":
        """Other draws for the same examples."""
        return Draws(key(self.seed, *names), self.index)

    def __getitem__(self, rows: Tensor | slice) -> "Draws":
        return Draws(self.seed, self.index[rows])

    def _counters(self, name: str, size: int) -> Int[Tensor, "n m"]:
        start = _mix(self.index * _GOLDEN + key(self.seed, name))
        return start[:, None] + torch.arange(1, size + 1, device=self.index.device).mul_(_GOLDEN)


def draws(*names: object, index: Int[Tensor, " n"]) -> Draws:
    """Per-example draws of a named stream: `draws(seed, "attack", epoch, index=batch.index)`."""
    return Draws(key(*names), index)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _mix(z: Tensor) -> Tensor:
    """Splitmix64's finaliser, in place."""
    z = _multiplied(z)
    return z.bitwise_xor_(_shifted(z, 31))


def _multiplied(z: Tensor) -> Tensor:
    """All of splitmix64's finaliser but its last step, in place; int64 multiplication wraps."""
    spare = torch.empty_like(z)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        z.bitwise_xor_(_shifted(z, shift, spare)).mul_(factor)
    return z


def _shifted(z: Tensor, by: int, out: Tensor | None = None) -> Tensor:
    """Z shifted right as if it were unsigned."""
    return torch.bitwise_right_shift(z, by, out=out).bitwise_and_((1 << (64 - by)) - 1)
