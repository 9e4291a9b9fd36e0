"""Nothing is held across a yield: recording streams leave their caller as it was, however they are used."""

import ast
from itertools import islice
from pathlib import Path
from textwrap import indent

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import geophone
from geophone.core.errors import GeophoneError
from geophone.core.rng import draws
from geophone.data import synthetic
from geophone.models import SmallCNN
from geophone.models.tap import record
from geophone.perturb import LinfPGD
from geophone.train import initialised


@pytest.fixture(scope="module")
def split():
    return synthetic(classes=3, train=10, val=10, test=24, size=8).test


def network(seed=0):
    return initialised(lambda: SmallCNN(3, (0.5,), (0.5,), width=2), seed).eval()


class WithDropout(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
        )


def state():
    """What a context may change for the whole thread."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_tf32,
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        torch.get_rng_state().sum().item(),
    )


def hooks(*networks):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for net in networks for m in net.modules())


def values(stream):
    return [{name: responses.x.clone() for name, responses in batch.items()} for batch in stream]


def same(a, b):
    return len(a) == len(b) and all(
        list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("outside", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_streams_that_are_zipped_and_left_open(outside, split):
    nets = [network(seed) for seed in range(3)]
    with outside():
        before = state()
        wanted = [values(record(net, split.batches(8))) for net in nets]
        assert state() == before
        streams = [record(net, split.batches(8)) for net in (*nets, nets[0])]
        found = []
        for batches in zip(*streams, strict=True):
            assert state() == before
            assert hooks(*nets) == 0
            found.append(batches)
        for i, one in enumerate((*wanted, wanted[0])):
            assert same(values(batches[i] for batches in found), one)
        left = [record(net, split.batches(8)) for net in nets]
        for stream in left:
            next(stream)
        left[0].close()
        del left[1]
        assert (state(), hooks(*nets)) == (before, 0)
    assert torch.is_grad_enabled()


def test_the_network_may_be_attacked_and_trained_between_two_batches(split):
    """What the attack runs sees no hooks, gradients are on, and the stream goes on with what it is given."""
    net, wanted = network(), values(record(network(), split.batches(8)))
    stream = record(net, split.batches(8))
    found = []
    for batch, images in zip(stream, split.batches(8), strict=True):
        found.append(batch)
        attack = LinfPGD(eps=0.1, steps=2)
        attack(images.x, images.y, net, draws(0, index=images.index))
        net(images.x).sum().backward()
    assert net.conv1.weight.grad is not None
    assert same(values(found), wanted)


def test_a_network_in_training_mode_keeps_its_statistics(split):
    """The responses are those of its mode, with statistics of the batch and dropout."""
    net, twin = initialised(WithDropout, 0), initialised(WithDropout, 0)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    torch.manual_seed(0)
    found = values(record(net, split.batches(8)))
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = [twin(batch.x) for batch in split.batches(8)]
    assert all(torch.equal(batch["logits"], logits) for batch, logits in zip(found, wanted, strict=True))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert int(twin[1].num_batches_tracked) == 3  # the mutant: what a plain pass does
    net.eval()
    version = net[1].running_mean._version
    list(record(net, split.batches(8)))
    assert net[1].running_mean._version == version


def test_loaders(split):
    """Pairs of images and labels in a fixed order are batches, with the place in the stream for an index."""
    net, x = network(), split.x.float() / 255
    wanted = values(record(net, split.batches(8)))
    pairs = TensorDataset(x, split.y)
    for loader in (DataLoader(pairs, 8), [(x[i : i + 8], split.y[i : i + 8].int()) for i in (0, 8, 16)]):
        found = list(record(net, loader))
        assert same(values(found), wanted)
        assert torch.equal(torch.cat([batch["relu1"].index for batch in found]), torch.arange(24))
        assert torch.equal(torch.cat([batch["relu1"].y for batch in found]), split.y)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, split.y, strict=True))

    assert same(values(record(net, DataLoader(Stream(), 8))), wanted)
    shuffled = DataLoader(list(zip(x, split.y, strict=True)), 8, shuffle=True)
    bundles = DataLoader(pairs, batch_sampler=[[1, 0], [3, 2]])
    for given, said in (
        (shuffled, "order is its own"),
        (bundles, "order is its own"),
        (split, "not a Split"),
        (x, r"it was given a tensor \[1, 8, 8\]"),
        ([x[:8]], r"given a tensor \[8, 1, 8, 8\]"),
        ([(x[:8], split.y[:7])], "given a tuple of a tensor"),
        ([(x[:8], None)], "a tuple of a tensor .*, a NoneType"),
        ([{"image": x[:8]}], "given a dict"),
        ([()], "a tuple of nothing"),
        (3, "not a int"),
        (None, "not a NoneType"),
    ):
        with pytest.raises(GeophoneError, match=said):
            list(islice(record(net, given), 2))


# No generator of the package holds a context across a yield.


HELD = {
    "study/execute.py:_outcomes": "its handler stops the jobs that were not begun; no switch is set",
}
"""Generators with a yield inside a `with` or a `try` with a handler or a clean-up, and why they may."""


def held(source, name):
    """Generators that yield inside a `with`, or inside a `try` that cleans up, but for context managers."""

    def visit(node, path, function, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                manager = any("contextmanager" in ast.unparse(d) for d in child.decorator_list)
                yield from visit(child, [*path, child.name], None if manager else ".".join([*path, child.name]), False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, [*path, child.name], function, inside)
            elif isinstance(child, ast.Lambda):
                yield from visit(child, path, function, False)
            else:
                if isinstance(child, ast.Yield | ast.YieldFrom) and inside and function:
                    yield f"{name}:{function}"
                holds = isinstance(child, ast.With | ast.AsyncWith) or (isinstance(child, ast.Try) and child.finalbody)
                cleans = isinstance(child, ast.Try) and any(
                    h.type is None or "BaseException" in ast.unparse(h.type) for h in child.handlers
                )
                yield from visit(child, path, function, inside or bool(holds) or cleans)

    return set(visit(ast.parse(source), [], None, False))


def test_no_generator_holds_a_context_across_a_yield():
    root = Path(geophone.__file__).parent
    found = set()
    for file in sorted(root.rglob("*.py")):
        found |= held(file.read_text(), str(file.relative_to(root)))
    assert found == set(HELD)


SETTERS = {
    *("set_grad_enabled", "use_deterministic_algorithms", "manual_seed", "set_num_threads", "register_forward_hook"),
    *("set_default_dtype", "train", "eval", "requires_grad_", "__enter__", "enter_context"),
}


def test_no_generator_sets_a_switch_by_hand():
    root = Path(geophone.__file__).parent
    for file in sorted(root.rglob("*.py")):
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        for function in functions:
            manager = any("contextmanager" in ast.unparse(decorator) for decorator in function.decorator_list)
            nodes = list(ast.walk(function))
            if not manager and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes):
                called = {node.func.attr for node in nodes if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
                assert called.isdisjoint(SETTERS), f"{file}: {function.name}"


@pytest.mark.parametrize(
    "body",
    [
        "    with no_grad():\n        for x in xs:\n            yield x\n",
        "    for x in xs:\n        with a, b:\n            yield from x\n",
        "    try:\n        yield 1\n    finally:\n        put_back()\n",
        "    try:\n        yield 1\n    except BaseException:\n        put_back()\n        raise\n",
        "    async with a:\n        yield 1\n",
        "    with a:\n        x = yield\n",
    ],
)
def test_a_generator_that_holds_something_is_caught(body):
    kind = "async def" if "async" in body else "def"
    assert held("class A:\n" + indent(f"{kind} f(xs):\n{body}", "  "), "m") == {"m:A.f"}
    assert held(f"@contextmanager\n{kind} f(xs):\n{body}", "m") == set()


def test_what_yields_after_its_contexts_is_not_caught():
    assert held("def f(xs):\n    with a:\n        y = [g(x) for x in xs]\n    yield y\n", "m") == set()
    assert held("def f(xs):\n    with a:\n        def g():\n            yield 1\n", "m") == set()
