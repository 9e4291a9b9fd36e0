"""`python -m benchmarks [NAME ...] [--threads N] [--repeats N] [--device cuda] [--quick]`; `--help` lists the names."""

import click
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.adversarial import adversarial
from benchmarks.attacks import attack
from benchmarks.claims import claims
from benchmarks.compare import HEAD, machine, peak_mib, ratio, seconds
from benchmarks.corruptions import corruptions
from benchmarks.gradients import gradients
from benchmarks.manifolds import manifolds
from benchmarks.similarity import similarities
from geophone.core.rng import stream
from geophone.core.types import describe
from geophone.data import ImageData, Split, fashion_mnist_mini
from geophone.models import resnet20, small_cnn
from geophone.perturb import GaussianNoise
from geophone.probes.layers import measure
from geophone.train import AugMix, Corrupted, SelectivityRegularised, Standard, Training, fit, initialised


def network(data: ImageData, device: str, make=resnet20) -> nn.Module:
    return initialised(lambda: make(10, data.mean, data.std), 0).eval().to(device)


def random_images(n: int, device: str) -> Split:
    x = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=stream("images", n))
    return Split(x, torch.arange(n) % 10, torch.arange(n)).to(device)


def forward(model: nn.Module, split: Split, passes: int = 1) -> None:
    with torch.no_grad():
        for batch in split.batches(256):
            for _ in range(passes):
                model(batch.x)


def recording(repeats: int, device: str) -> None:
    data = fashion_mnist_mini()
    model = network(data, device)
    split = data.test.take(2000).to(device)
    print(HEAD)
    print(
        ratio(
            "recording and every metric of clean responses, ResNet20, 19 layers, 2,000 images, over one forward pass",
            *(lambda: measure(model, split), lambda: forward(model, split), repeats, "≤ 1.5"),
        )
    )
    print(
        ratio(
            "recording and all metrics, clean and one noise (drift, CKA), over two forward passes",
            *(lambda: measure(model, split, [GaussianNoise()]), lambda: forward(model, split, 2), repeats, "≤ 1.5"),
        )
    )


def memory(repeats: int, device: str) -> None:
    """60,000 images through ResNet20: peak memory against 6,000, and time over bare passes, half before, half after."""
    data = fashion_mnist_mini()
    model = network(data, device)
    split = random_images(60_000, device)
    part = Split(split.x[:6000], split.y[:6000], split.index[:6000])
    noise = [GaussianNoise()]
    measure(model, part.take(600), noise)
    before = peak_mib()
    measure(model, part, noise)
    small = peak_mib()
    halves = [Split(split.x[half], split.y[half], split.index[half]) for half in (slice(30_000), slice(30_000, None))]
    bare = seconds(lambda: forward(model, halves[0], 2))
    ours = seconds(lambda: measure(model, split, noise))
    large = peak_mib()
    bare += seconds(lambda: forward(model, halves[1], 2))
    print(f"peak resident memory: {before:.0f} MiB after 600 images, {small:.0f} after 6,000, {large:.0f} after 60,000")
    print(f"60,000 images, clean and one noise, all metrics: {ours:.0f} s over {bare:.0f} s bare = {ours / bare:.2f}")


def training(repeats: int, device: str) -> None:
    data = fashion_mnist_mini().to(device)
    once = Training(epochs=1)
    print(HEAD)
    for make, images, recipes in (
        (small_cnn, 2560, (Standard(), SelectivityRegularised(1.0), AugMix(), Corrupted())),
        (resnet20, 256, (Standard(), SelectivityRegularised(1.0))),
    ):
        part = ImageData(data.name, data.classes, data.train.take(images), data.val.rows(torch.arange(0)), data.test)

        def bare(make=make, part=part) -> None:
            model = network(data, device, make).train().to(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
            for batch in part.train.batches(128):
                x = batch.x.contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad()
                cross_entropy(model(x), batch.y).backward()
                optimizer.step()

        for recipe in recipes:

            def ours(recipe=recipe, make=make, part=part) -> None:
                fit(network(data, device, make), part, recipe, once)

            name = f"one epoch of {describe(recipe)}, {make.__name__}, {images:,} images, over a bare loop"
            print(ratio(name, ours, bare, repeats))


ALL = {
    f.__name__: f
    for f in (recording, memory, attack, training, adversarial, corruptions, gradients, similarities, manifolds, claims)
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ALL)))
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--quick", is_flag=True, help="`manifolds`: a tenth of the reference's programs, extrapolated.")
def main(names: tuple[str, ...], threads: int, repeats: int, device: str, quick: bool) -> None:
    """Run benchmarks; default all of them."""
    torch.set_num_threads(threads)
    print(machine())
    for name in names or ALL:
        print(f"\n### {name}\n", flush=True)
        ALL[name](repeats, device, **({"quick": quick} if name == "manifolds" else {}))


main()
