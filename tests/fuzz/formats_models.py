"""Files of weights, and files of Python that make a network."""

import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from geophone.models.load import load_model
from geophone.models.run import seeded
from tests.fuzz.harness import Case, Format, Mutator, register
from tests.fuzz.mutate import TEXTS, any_bytes, any_json, any_zip, chosen, other_thing, put, write_members

MAKER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(3, 2)
        self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
        self.register_buffer("steps", torch.tensor(3, dtype=torch.int32))

    def forward(self, x):
        return self.head(self.relu(self.norm(self.conv(x))).mean((2, 3)))

def make():
    return Net()
"""


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("steps", torch.tensor(3, dtype=torch.int32))


def _state() -> dict[str, Tensor]:
    with seeded(0, torch.device("cpu")):
        return {key: value.clone() for key, value in _Net().state_dict().items()}


def _make(folder: Path, name: str, **how: Any) -> None:
    (folder / "net.py").write_text(MAKER)
    state = _state()
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save({"state_dict": state, "epoch": 3}, folder / name, **how)


def _tensors(given: Any) -> list[dict[Any, Any]]:
    """All dictionaries in what a file holds."""
    if not isinstance(given, dict):
        return []
    return [given, *(one for part in given.values() for one in _tensors(part))]


def _load(case: Case) -> nn.Module:
    return load_model(chosen(case, "weights*"), f"{case.folder / 'net.py'}:make")


def _right(case: Case, model: nn.Module) -> str | None:
    """Every value is one of the file's, up to the rounding of its type."""
    path = chosen(case, "weights*")
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            held = [{key: file.get_tensor(key) for key in file.keys()}]  # noqa: SIM118
    else:
        held = _tensors(torch.load(path, map_location="cpu", weights_only=True))
    names = model.state_dict()
    for given in held:
        ends = {str(key).rpartition("conv.")[0] for key in given if str(key).endswith("conv.weight")}
        for start in ends:
            if all(_same(given.get(start + key), own, key) for key, own in names.items()):
                return None
    return f"no dictionary of the file has the values of the network that was loaded ({case.done})"


def _same(given: Any, own: Tensor, key: str) -> bool:
    if given is None:
        return key.endswith("num_batches_tracked")
    if given.is_floating_point() != own.is_floating_point() and own.is_floating_point():
        return False
    return given.shape == own.shape and torch.allclose(
        given.double(), own.double(), rtol=2**-7 if given.itemsize == 2 else 1e-6, atol=0
    )


def _odd(value: Tensor, draw: Any) -> tuple[Any, str]:
    """A tensor of another kind, type or value in the place of this one."""
    floats = value.is_floating_point()
    kinds = [
        *(
            (f"{t}", lambda t=t: value.to(t))
            for t in (
                torch.float64,
                torch.float16,
                torch.bfloat16,
                torch.int64,
                torch.int8,
                torch.uint8,
                torch.bool,
                torch.complex64,
                torch.float8_e4m3fn,
                torch.float8_e5m2,
                torch.float32,
                torch.uint16,
            )
        ),
        ("sparse", lambda: value.to_sparse()),
        ("meta", lambda: value.to("meta")),
        ("quantised", lambda: torch.quantize_per_tensor(value.float().nan_to_num(neginf=0), 0.1, 0, torch.qint8)),
        ("nan", lambda: torch.full_like(value, math.nan) if floats else value),
        ("inf", lambda: torch.full_like(value, math.inf) if floats else value),
        ("minus inf", lambda: torch.full_like(value, -math.inf) if floats else value),
        ("1e300", lambda: torch.full_like(value, 1e300, dtype=torch.float64)),
        ("half", lambda: torch.full_like(value, 0.5, dtype=torch.float32)),
        ("expanded", lambda: torch.zeros(()).expand(value.shape)),
        ("huge", lambda: torch.zeros(1).expand(1 << 40)),
        ("vast", lambda: torch.zeros(1).expand(3, 1 << 40)),
        ("empty", lambda: torch.empty(0)),
        ("scalar", lambda: torch.tensor(1.0)),
        ("transposed", lambda: value.permute(tuple(reversed(range(value.ndim))))),
        ("more", lambda: torch.cat([value.reshape(-1), value.reshape(-1)])),
        ("text", lambda: "a text"),
        ("none", lambda: None),
        ("number", lambda: 3),
        ("list", lambda: value.tolist()),
        ("parameter", lambda: nn.Parameter(value.detach().clone(), requires_grad=floats)),
        ("nested", lambda: torch.nested.nested_tensor([value.flatten().float(), value.flatten().float()])),
    ]
    name, make = draw.choice(kinds)
    return make(), name


def _rename(state: dict[Any, Any], draw: Any) -> tuple[dict[Any, Any], str]:
    key = draw.choice(list(state))
    new = draw.choice((0, 1.5, None, (1, 2), True, *TEXTS, f"module.{key}", key.upper(), f"{key}.", f".{key}"))
    return {new if name == key else name: value for name, value in state.items()}, f"{key} is {new!r:.40}"


def _layout(state: dict[Any, Any], draw: Any) -> tuple[Any, str]:
    name = draw.choice(("net", "model", "model_state", "ema", "module", "params", "weights", 0, None, "x" * 300))
    return draw.choice(
        (
            ({name: state}, f"under {name!r:.20}"),
            ({name: state, "ema": dict(state)}, f"under {name!r:.20} and ema"),
            ({"a": state, "b": dict(state)}, "two of no name"),
            (
                {"state": {"model": state}, "optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": [{}]}},
                "deep",
            ),
            ([state], "in a list"),
            ({f"module.model.{key}": value for key, value in state.items()}, "two beginnings"),
            ({f"_orig_mod.{key}": value for key, value in state.items()}, "compiled"),
            ({"state_dict": {}}, "empty"),
            ({}, "nothing"),
            (state.get("conv.weight", 3), "one tensor"),
            ({"state_dict": state, "model": {}}, "an empty model beside"),
        )
    )


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import os; os._exit(77)",))


def _objects(state: dict[Any, Any], draw: Any) -> tuple[Any, str]:
    import argparse

    import numpy as np

    name, thing = draw.choice(
        (
            ("NumPy scalar", np.float64(1.5)),
            ("NumPy array", np.ones(3)),
            ("Namespace", argparse.Namespace(lr=1)),
            ("module", nn.Linear(2, 2)),
            ("code", _Evil()),
            ("path", Path("/a")),
            ("set", {1}),
            ("type", dict),
            ("complex", 1j),
            ("device", torch.device("cpu")),
            ("dtype", torch.float32),
        )
    )
    return draw.choice(({"state_dict": state, "extra": thing}, {**state, "extra": thing})), f"with a {name}"


def _anew(legacy: bool) -> Mutator:
    """Another checkpoint, sound as a file."""

    def mutator(case: Case) -> str:
        path, draw = chosen(case, "weights*"), case.draw
        put(path, b"")
        state: Any = _state()
        what = draw.choice(("odd", "odd", "odd", "drop", "rename", "layout", "objects", "add", "counts"))
        if what == "odd":
            key = draw.choice(list(state))
            state[key], how = _odd(state[key], draw)
            what = f"{key} is {how}"
        elif what == "drop":
            what = f"without {(key := draw.choice(list(state)))}"
            del state[key]
        elif what == "add":
            state[draw.choice((*TEXTS, "extra", 7, None))] = torch.ones(1)
        elif what == "counts":
            del state["norm.num_batches_tracked"]
        elif what == "rename":
            state, what = _rename(state, draw)
        elif what == "layout":
            state, what = _layout(state, draw)
        else:
            state, what = _objects(state, draw)
        if isinstance(state, dict) and draw.random() < 0.3:
            state = {"state_dict": state}
        try:
            torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        except (RuntimeError, NotImplementedError, pickle.PicklingError, ValueError):
            path.write_bytes(b"")
        return what

    return mutator


def _pickle_bytes(case: Case) -> str:
    """One byte of the pickle inside a zip checkpoint."""
    path = chosen(case, "weights*")
    try:
        with zipfile.ZipFile(path) as file:
            parts = [(info.filename, file.read(info)) for info in file.infolist()]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        return any_bytes("weights*")(case)
    at = [i for i, (name, data) in enumerate(parts) if name.endswith("data.pkl") and data]
    if at:
        name, data = parts[at[0]]
        place = case.draw.randrange(len(data))
        parts[at[0]] = (name, data[:place] + bytes([case.draw.randrange(256)]) + data[place + 1 :])
        write_members(path, parts)
    return "a byte of the pickle"


def _safe_header(case: Case) -> str:
    """The header of a safetensors file changed as JSON."""
    path = chosen(case, "weights*")
    data = path.read_bytes() if path.is_file() else b""
    put(path, b"")
    size = int.from_bytes(data[:8], "little")
    header = case.folder / "header.json"
    header.write_bytes(data[8 : 8 + size] or b"{}")
    how = any_json("header.json")(case) if case.draw.random() < 0.7 else _safe_field(header, case)
    new = header.read_bytes()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])
    return how


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (ValueError, RecursionError):
        return False
    return True


def _safe_field(header: Path, case: Case) -> str:
    document = json.loads(header.read_text()) if _is_json(header) else {}
    if not isinstance(document, dict) or not document:
        return "nothing"
    key = case.draw.choice(list(document))
    part = document[key]
    if isinstance(part, dict):
        field = case.draw.choice(("dtype", "shape", "data_offsets"))
        part[field] = case.draw.choice(
            {
                "dtype": (
                    "F64",
                    "F16",
                    "BF16",
                    "I64",
                    "I32",
                    "I8",
                    "U8",
                    "BOOL",
                    "F8_E4M3",
                    "F8_E5M2",
                    "F4",
                    "C64",
                    "X",
                ),
                "shape": ([], [0], [1 << 40], [1 << 62, 1 << 62], [3, 1, 3, 3], [3, 1, 9, 1], [-1], [0, 1 << 62]),
                "data_offsets": ([0, 0], [0, 1 << 60], [8, 0], [4, 12], [-4, 8]),
            }[field]
        )
    header.write_text(json.dumps(document))
    return f"{key} changed"


for name, file, how, mutators in (
    (
        "checkpoint",
        "weights.pt",
        {},
        (
            _anew(False),
            _anew(False),
            _anew(False),
            any_bytes("weights*"),
            _pickle_bytes,
            any_zip("weights*"),
            other_thing("weights*"),
        ),
    ),
    (
        "checkpoint-old",
        "weights.pth",
        {"_use_new_zipfile_serialization": False},
        (_anew(True), any_bytes("weights*"), any_bytes("weights*")),
    ),
    (
        "safetensors",
        "weights.safetensors",
        {},
        (any_bytes("weights*"), _safe_header, _safe_header, other_thing("weights*")),
    ),
):
    register(
        Format(
            name=name,
            make=lambda folder, file=file, how=how: _make(folder, file, **how),
            use=_load,
            right=_right,
            mutators=mutators,
            cases=400,
        )
    )


_FILES = (
    "def make(: pass",
    "raise SystemExit(3)",
    "import sys; sys.exit()",
    "raise Exception('two\\nlines')",
    "raise Exception",
    "import nothing_like_this",
    "from torch import nn\nclass Odd(Exception):\n    def __str__(self): return '\\x1b[31mred'\nraise Odd",
    "make = 3",
    "make = None",
    "def make(): return None",
    "def make(): return dict",
    "from torch import nn\ndef make(): return nn.Linear",
    "from torch import nn\ndef make(): return nn.Linear(2, 2), 3",
    "def make(): return {}",
    "def make(x): return x",
    "def make(*, x): return x",
    "def make(): raise SystemExit('bye')",
    "def make(): raise RuntimeError('a\\nb\\nc')",
    "def make(): raise MemoryError",
    "def make(): return make()",
    "def make(): yield 1",
    "import torch\ndef make(): return torch.ones(3)",
    "make = dict",
    "from torch import nn\nclass Net(nn.Module):\n    def __init__(self): pass\nmake = Net",
    "from torch import nn\nclass Net(nn.Module):\n    def eval(self): raise ValueError('no')\nmake = Net",
    "from torch import nn\nclass Net(nn.Module):\n    def state_dict(self, *a, **k): return {'a': 1}\nmake = Net",
    "from torch import nn\nmake = nn.LazyLinear(3)",
    "import torch\nfrom torch import nn\nwith torch.device('meta'): make = nn.Linear(2, 2)",
    "from torch import nn\nmake = nn.Linear(2, 2)",
    "from torch import nn\ndef make(): return nn.Linear(2, 2)",
    "def __getattr__(name): raise ValueError(name)",
    "def __getattr__(name): return lambda: name",
    "\x00",
    "# -*- coding: nothing -*-\n",
    "x = " + "(" * 300,
    "x = " + "-" * 50_000 + "1",
    "from geophone.core.errors import GeophoneError\nraise GeophoneError('mine. Mend it.')",
    "from geophone import PERTURBATIONS\nPERTURBATIONS.add('LinfPGD', 3)\n",
)


def _python(case: Case) -> str:
    """Another file of Python, or another name for what is in it."""
    draw = case.draw
    if draw.random() < 0.3:
        case.words[0] = draw.choice((*TEXTS, "make", "Net", "nn", "__name__", "make()", "make:make", "absent"))
    if draw.random() < 0.2:
        case.words[1] = draw.choice(
            ("random.py", "torch.py", "a b.py", "é.py", "x" * 250 + ".py", "a.b.py", ".py", "3.py")
        )
        (case.folder / case.words[1]).write_text(MAKER)
        return f"named {case.words[1][:20]}"
    if case.words[1] == "net.py":
        put(case.folder / "net.py", draw.choice(_FILES).encode())
    return "another file"


def _module(case: Case) -> nn.Module:
    path = f"{case.folder}/{case.words[1]}:{case.words[0]}"
    return load_model(chosen(case, "weights*"), path) if case.number % 3 == 0 else load_model(path)


register(
    Format(
        name="model-file",
        make=lambda folder: _make(folder, "weights.pt"),
        words=("make", "net.py"),
        use=_module,
        right=lambda case, made: (
            None if isinstance(made, nn.Module) and not made.training else "no module in eval mode"
        ),
        mutators=(_python, _python, _python, any_bytes("net.py"), other_thing("net.py")),
        row=50,
        quiet=False,  # what the user's code prints is the user's
    )
)
