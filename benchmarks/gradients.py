"""Input-unit gradients over the passes that nothing can do without, and over one pass for each unit and image."""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.compare import HEAD, ratio, seconds
from geophone.data import Split, fashion_mnist_mini
from geophone.models import resnet20, small_cnn
from geophone.models.tap import tap
from geophone.probes.gradients import input_gradients
from geophone.train import initialised

_NAIVE = 4  # images that the time of the naive loop is worked out from


def gradients(repeats: int, device: str) -> None:
    data = fashion_mnist_mini()
    for name, make, n in (("small_cnn(width=16)", partial(small_cnn, width=16), 256), ("ResNet20", resnet20, 64)):
        model = initialised(partial(make, 10, data.mean, data.std), 0).eval().to(device)
        compare(f"{name}, {n} images", model, data.test.take(n).to(device), repeats)


def compare(name: str, model: nn.Module, split: Split, repeats: int) -> None:
    print(HEAD)
    for at_once in (1, 16):
        measured = ratio(
            f"{name}, {at_once} at once, over a forward pass and a backward pass up to it for each unit and logit",
            *(lambda at_once=at_once: input_gradients(model, split, at_once=at_once), lambda: bare(model, split)),
            repeats,
        )
        print(measured, flush=True)
    ours = seconds(lambda: input_gradients(model, split))
    naive = seconds(lambda: bare(model, split.take(_NAIVE), 1)) * len(split) / _NAIVE
    print(f"\n{name}: {ours:.1f} s; {naive:.0f} s with a pass for each unit and image\n", flush=True)


def bare(model: nn.Module, split: Split, batch_size: int = 64) -> None:
    """A forward pass, and for each unit and logit a backward pass up to it, for each batch; nothing is done with it."""
    for batch in split.batches(batch_size):
        x = batch.x.requires_grad_()
        with tap(model, detach=False) as seen:
            answers: list[Tensor] = [model(x), *seen.values()]
        for answer in answers:
            for unit in range(answer.shape[1]):
                torch.autograd.grad(answer[:, unit].sum(), x, retain_graph=True)
