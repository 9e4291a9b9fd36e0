import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import geophone


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Callable[[str, int, int], dict[str, Any]]]:
    """Runs cases of a format in a process that has imported geophone and nothing else, and so has one thread."""
    paths = [str(Path(geophone.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ) as server:

        def ask(name: str, first: int, count: int) -> dict[str, Any]:
            assert server.stdin
            assert server.stdout
            server.stdin.write(json.dumps([name, first, count, os.cpu_count() or 1]) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, "the process that runs the cases ended"
            return json.loads(answer)

        yield ask
        assert server.stdin
        server.stdin.close()
