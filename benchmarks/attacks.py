"""White-box attacks over bare forward and backward passes, beside the libraries that are installed."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.compare import HEAD, ratio
from geophone.core.errors import GeophoneError
from geophone.core.rng import draws
from geophone.core.types import Batch
from geophone.data import ImageData, Split, fashion_mnist_mini
from geophone.models import resnet20, small_cnn
from geophone.models.load import import_torchvision
from geophone.models.run import evaluating
from geophone.perturb import LinfAPGD, LinfPGD
from geophone.perturb.attacks.fold import folded
from geophone.probes.curves import eps_curve
from geophone.probes.survival import survival
from geophone.train import Standard, Training, fit, initialised

STEPS = 20


def trained(data: ImageData, device: str, make: Callable[..., nn.Module]) -> nn.Module:
    """A network after two short epochs: it must have something to lose, and nothing more."""
    part = ImageData(data.name, data.classes, data.train.take(5120), data.val.rows(torch.arange(0)), data.test)
    model = initialised(lambda: make(10, data.mean, data.std), 0).to(device)
    fit(model, part.to(device), Standard(), Training(epochs=2))
    return model.eval()


def radius(model: nn.Module, split: Split) -> float:
    """An eps that leaves about 35 % of the images standing, the robust accuracy of the measurements to compare with."""
    curve = eps_curve(model, split, LinfPGD(steps=STEPS), [k / 510 for k in range(1, 33)])
    found = min(zip(curve.eps, curve.accuracy(), strict=True), key=lambda one: abs(one[1][0] - 0.35))
    print(f"eps {found[0] * 255:.1f}/255, robust accuracy {found[1][0]:.3f}\n")
    return found[0]


def attack(repeats: int, device: str) -> None:
    data = fashion_mnist_mini()
    split = data.test.take(128).to(device)
    (batch,) = split.batches(128)
    for name, make in (("ResNet20", resnet20), ("small_cnn", small_cnn)):
        model = trained(data, device, make)
        twin = folded(model, batch.x)
        gap = float((twin(batch.x) - model(batch.x)).abs().max() / model(batch.x).abs().max())
        print(f"\n{name}: folded copy differs by {gap:.1e} of the largest logit; ", end="")
        eps = radius(model, split)
        print(HEAD)

        def bare(model: nn.Module = model) -> None:
            for _ in range(STEPS):
                x = batch.x.clone().requires_grad_()
                torch.autograd.grad(cross_entropy(model(x), batch.y, reduction="sum"), x)

        for label, run in runs(model, batch, split, eps):
            found: list[Tensor | float] = []
            measured = ratio(f"{name}: {label}", lambda run=run, found=found: found.append(run()), bare, repeats)
            robust = standing(model, found[-1], batch)
            print(replace(measured, name=f"{measured.name}, robust accuracy {robust:.3f}"), flush=True)


def standing(model: nn.Module, found: Tensor | float, batch: Batch) -> float:
    if isinstance(found, float):
        return found
    with torch.no_grad():
        return (model(found).argmax(1) == batch.y).float().mean().item()


def runs(
    model: nn.Module, batch: Batch, split: Split, eps: float
) -> Iterator[tuple[str, Callable[[], Tensor | float]]]:
    """What is timed: ours for examples and for accuracy alone, then each library that can be imported."""
    rng = draws(0, "attack", index=batch.index)
    for attack in (LinfPGD(eps=eps, steps=STEPS), LinfAPGD(eps=eps, steps=STEPS)):
        kind = type(attack).__name__
        yield f"{kind}-{STEPS}, the examples", lambda attack=attack: attack(batch.x, batch.y, model, rng)
        yield (
            f"{kind}-{STEPS}, the accuracy alone (verified)",
            lambda attack=attack: survival(model, split, [attack]).accuracy()[0],
        )
    yield "LinfPGD-20 at ten eps, the whole curve", lambda: ten(model, split, eps)
    yield from libraries(model, batch, eps)


def ten(model: nn.Module, split: Split, eps: float) -> float:
    return eps_curve(model, split, LinfPGD(steps=STEPS), [eps * 2.0**k for k in range(-5, 5)]).accuracy()[5][0]


def libraries(model: nn.Module, batch: Batch, eps: float) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    step = 2.5 * eps / STEPS
    x, y = batch.x, batch.y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import foolbox

            pgd = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=STEPS)
            yield "foolbox LinfPGD", lambda: pgd.run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=eps)
        except ImportError:
            print("foolbox is not installed")
        try:
            import torchattacks

            theirs = torchattacks.PGD(model, eps=eps, alpha=step, steps=STEPS)
            yield "torchattacks PGD", lambda: theirs(x, y)
        except ImportError:
            print("torchattacks is not installed")
        try:
            from pyautoattack.autopgd_base import APGDAttack

            def autoattack() -> Tensor:
                found = APGDAttack(model, n_iter=STEPS, eps=eps, norm="Linf", n_restarts=1, loss="ce", device=x.device)
                return found.perturb(x, y)

            yield "AutoAttack APGD-CE, examples that are fooled", autoattack
        except ImportError:
            print("pyautoattack is not installed")
        try:
            import_torchvision()  # which adv-lib imports; beside some builds of torch it needs help
            from adv_lib.attacks import apgd, pgd_linf

            yield "adv-lib pgd_linf", lambda: pgd_linf(model, x, y, eps, steps=STEPS, absolute_step_size=step)
            yield "adv-lib apgd", lambda: apgd(model, x, y, eps, norm=float("inf"), n_iter=STEPS)
        except (ImportError, RuntimeError, GeophoneError):
            print("adv-lib is not installed (or not importable beside this torch)")
        try:
            from art.attacks.evasion import ProjectedGradientDescent
            from art.estimators.classification import PyTorchClassifier

            shape = tuple(x.shape[1:])
            classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1))
            art = ProjectedGradientDescent(
                classifier, eps=eps, eps_step=step, max_iter=STEPS, num_random_init=1, verbose=False
            )

            def run() -> Tensor:
                with evaluating(model):
                    return torch.from_numpy(art.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

            yield "ART PGD", run
        except ImportError:
            print("ART is not installed")
