"""One epoch of each adversarial recipe over the bare passes it needs: those of the attack, and those trained on."""

import torch
from torch.nn.functional import cross_entropy

from benchmarks.compare import HEAD, ratio
from geophone.core.types import describe
from geophone.data import ImageData, fashion_mnist_mini
from geophone.models import small_cnn
from geophone.train import Adversarial, FastAdversarial, Mart, Trades, Training, fit, initialised


def adversarial(repeats: int, device: str) -> None:
    data = fashion_mnist_mini().to(device)
    part = ImageData(data.name, data.classes, data.train.take(1280), data.val.rows(torch.arange(0)), data.test)

    def network() -> torch.nn.Module:
        return initialised(lambda: small_cnn(10, data.mean, data.std), 0).to(device)

    print(HEAD)
    for recipe, steps, passes in ((Adversarial(), 7, 1), (FastAdversarial(), 1, 1), (Trades(), 10, 2), (Mart(), 10, 2)):

        def bare(steps: int = steps, passes: int = passes) -> None:
            model = network().to(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
            for batch in part.train.batches(128):
                x = batch.x.contiguous(memory_format=torch.channels_last)
                model.eval()
                for _ in range(steps):
                    x.requires_grad_()
                    (gradient,) = torch.autograd.grad(cross_entropy(model(x), batch.y), x)
                    x = (x.detach() + 0.01 * gradient.sign()).clamp(0, 1)
                model.train()
                optimizer.zero_grad()
                torch.stack([cross_entropy(model(x), batch.y) for _ in range(passes)]).sum().backward()
                optimizer.step()

        def ours(recipe=recipe) -> None:
            fit(network(), part, recipe, Training(epochs=1))

        name = f"one epoch of {describe(recipe)}, small_cnn, 1,280 images, over {steps} + {passes} bare passes a step"
        print(ratio(name, ours, bare, repeats))
