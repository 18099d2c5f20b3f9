"""A real Triton server, out of NVIDIA's pytriton wheel, that serves Python models on the CPU.

Its environment is made on first use, inside the one that the tests run in.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import fcntl
import hashlib
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import psutil
import pytest

REQUIREMENTS: Final = Path(__file__).with_name("triton_requirements.txt")
INSTALL_TIMEOUT_S: Final = 400
START_TIMEOUT_S: Final = 120
STARTS: Final = 3
STARTED: Final = "Started GRPCInferenceService"
SHARED_MEMORY: Final = Path("/dev/shm")
SLOW_S: Final = 1.5


def weighted(features, version):
    """What most of the models give: each step is rounded once, so that it is exact anywhere."""
    total = np.zeros(len(features), np.float32)
    for column in range(features.shape[1]):
        total = total + features[:, column] * np.float32((column + 1) / (version + 2))
    return total / (np.float32(1) + np.abs(total))


class Served(NamedTuple):
    """A model: what it gives, in Python, and its interface."""

    scores: str = "weighted(features, self.version)"
    features: str = "TYPE_FP32 dims: [-1, 4]"
    output: str = "TYPE_FP32 dims: [-1]"
    max_rows: int = 0
    versions: tuple[int, ...] = (1,)


MODELS: Final = {
    "weighted": Served(versions=(1, 2)),
    "column": Served(
        "weighted(features, self.version)[:, None]",
        features="TYPE_FP32 dims: [4]",
        output="TYPE_FP32 dims: [1]",
        max_rows=1000,
    ),
    "wide": Served(features="TYPE_FP32 dims: [-1, 20]", versions=(1, 2)),
    "slow": Served(f"(time.sleep({SLOW_S}), weighted(features, self.version))[1]"),
    "short": Served("weighted(features, self.version)[1:]"),
    "nan": Served("np.append(weighted(features[1:], 1), np.float32(np.nan))"),
    "integer": Served("np.zeros(len(features), np.float32)", features="TYPE_INT32 dims: [-1, 4]"),
    "double": Served("np.zeros(len(features))", output="TYPE_FP64 dims: [-1]"),
}

_MODEL: Final = """\
import time

import numpy as np
import triton_python_backend_utils as triton


{weighted}

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        features = triton.get_input_tensor_by_name(request, "features").as_numpy()
        return triton.InferenceResponse([triton.Tensor("score", {scores})])
"""

_CONFIG: Final = """\
backend: "python"
max_batch_size: {served.max_rows}
input [{{ name: "features" data_type: {served.features} }}]
output [{{ name: "score" data_type: {served.output} }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
version_policy {{ all {{}} }}
"""

# Between the tests and a server: when they end, in whatever way, its input does too, and it takes
# down the server, the processes of its models, which become its own then, and their shared memory.
_KEEPER: Final = """\
import contextlib, ctypes, glob, os, signal, subprocess, sys
shared_memory, *command = sys.argv[1:]
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
print(server.pid, flush=True)
sys.stdin.read()
with contextlib.suppress(ProcessLookupError):
    os.killpg(server.pid, signal.SIGKILL)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
for file in glob.glob(shared_memory + "*"):
    os.unlink(file)
os._exit(0)
"""


def write_models(folder: Path) -> Path:
    """Write all models as Triton wants them."""
    for name, served in MODELS.items():
        for version in served.versions:
            file = folder / name / str(version) / "model.py"
            file.parent.mkdir(parents=True)
            source = inspect.getsource(weighted)
            file.write_text(_MODEL.format(weighted=source, scores=served.scores))
        (folder / name / "config.pbtxt").write_text(_CONFIG.format(served=served))
    return folder


def environment() -> Path:
    """Environment of the server; made on first use, by one of those who need it at a time."""
    kind = hashlib.sha256(f"{sys.version}{REQUIREMENTS.read_text()}".encode()).hexdigest()[:12]
    folder = Path(sys.prefix) / f"triton-{kind}"
    with (Path(sys.prefix) / "triton.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _install(partial)
            partial.rename(folder)
    return folder


def _install(folder: Path) -> None:
    venv = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(venv, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    python = str(folder / "bin" / "python")
    # Without what it depends on, which is for its own Python interface; compiled, as it starts anew
    # in each run and writes no bytecode itself.
    what = ["--no-deps", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *what]
    else:
        pip = [sys.executable, "-m", "pip", "--python", python]
        install = [*pip, "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(install, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    root = _root(folder)
    stub = f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copy(root / stub / "triton_python_backend_stub", root / "backends" / "python")


def _root(folder: Path) -> Path:
    return next(folder.glob("lib/python3.*/site-packages/pytriton/tritonserver"))


def _library() -> Path | None:
    """Folder of the shared library of this Python, which the server's models run in."""
    folder, name = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
    if folder and (Path(folder) / name).exists():
        return Path(folder)
    found = ctypes.util.find_library(f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return Path("/") if found else None


@dataclass
class Server:
    """A running server."""

    address: str
    pid: int
    _keeper: subprocess.Popen[str]

    def signal(self, number: int) -> None:
        """Send a signal to it and the processes of its models."""
        os.killpg(self.pid, number)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It runs, but does nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def has_ended(self) -> bool:
        return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE

    def stop(self) -> None:
        if self._keeper.poll() is None:
            self._keeper.communicate()


class Triton:
    """Servers of the models, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models = write_models(folder / "models")
        self._environment = environment()
        self._servers: list[Server] = []
        self.main = self.start()

    def start(self, *models: str, port: int = 0) -> Server:
        """Start a server of some of the models, or of all."""
        for _ in range(STARTS):  # another process may take a port that was free
            log = self._folder / f"server-{len(self._servers)}.log"
            server = self._launch(models or ("*",), port or free_port(), log)
            self._servers.append(server)
            deadline = time.monotonic() + START_TIMEOUT_S
            while time.monotonic() < deadline and not server.has_ended():
                if STARTED in log.read_text():  # not before its models are loaded
                    return server
                time.sleep(0.05)
            server.stop()
        pytest.fail(f"Triton does not start: {log.read_text()[-2000:]}")

    def _launch(self, models: tuple[str, ...], port: int, log: Path) -> Server:
        root = _root(self._environment)
        shared_memory = f"agc-ml-tests-{os.getpid()}-{port}-"
        command = [
            *(root / "bin" / "tritonserver", f"--model-repository={self._models}"),
            *(f"--backend-directory={root / 'backends'}", "--model-control-mode=explicit"),
            *(f"--load-model={name}" for name in models),
            *("--grpc-address=127.0.0.1", f"--grpc-port={port}"),
            *("--allow-http=false", "--allow-metrics=false"),
            f"--backend-config=python,shm-region-prefix-name={shared_memory}",
        ]
        variables = {
            **os.environ,
            "PATH": f"{self._environment / 'bin'}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": str(_library()),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with log.open("w") as output:
            keeper = subprocess.Popen(
                [sys.executable, "-c", _KEEPER, str(SHARED_MEMORY / shared_memory), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=variables,
                text=True,
                start_new_session=True,
            )
        assert keeper.stdout is not None
        return Server(f"127.0.0.1:{port}", int(keeper.stdout.readline()), keeper)

    def stop(self) -> None:
        for server in self._servers:
            server.stop()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton server with all models, and others on demand."""
    from conftest import absent  # noqa: PLC0415 - the tests' own, importable when they run

    if _library() is None:
        absent(
            "no Triton: this Python has no shared library (Debian: apt-get install libpython3-dev)"
        )
    try:
        environment()
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        absent(f"no Triton: it can't be installed ({said[-1] if said else 'no reason given'})")
    servers = Triton(tmp_path_factory.mktemp("triton"))
    yield servers
    servers.stop()
