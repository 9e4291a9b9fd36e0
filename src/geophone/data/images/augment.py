"""Augmentation of training images, as tensor code over the whole batch."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import pad as pad_sides

from geophone.core.errors import GeophoneError
from geophone.core.rng import Draws


def crop_flip(x: Shaped[Tensor, "n c h w"], rng: Draws, pad: int = 4, flip: bool = True) -> Shaped[Tensor, "n c h w"]:
    """Shift each image by up to `pad` pixels each way, zeros coming in, and mirror every second one left to right.

    Each image is padded by zeros and cropped back to its size at a uniformly drawn place, then mirrored with
    probability 1/2. The draws belong to the example, whatever batch it is in.

    Args:
        x: Images `[n, c, h, w]`; left as they are.
        rng: Draws of these examples; name the epoch in them.
        pad: Largest shift in pixels.
        flip: Mirror at all.
    """
    if pad < 0:
        raise GeophoneError(f"pad is {pad}; allowed are whole numbers from 0.")
    n, c, h, w = x.shape
    device = x.device
    top, left = (rng.uniform("crop", 2) * (2 * pad + 1)).long().unbind(1)
    rows = top[:, None] + torch.arange(h, device=device)
    columns = left[:, None] + torch.arange(w, device=device)
    if flip:
        columns = torch.where(rng.uniform("flip", 1) < 0.5, columns.flip(1), columns)
    images = torch.arange(n, device=device)[:, None, None, None]
    channels = torch.arange(c, device=device)[:, None, None]
    return pad_sides(x, (pad, pad, pad, pad))[images, channels, rows[:, None, :, None], columns[:, None, None, :]]
