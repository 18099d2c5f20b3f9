"""Models that crash, hold or fill what opens them: a line, and this process lives."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models import forest, linear_onnx
from variants import Array, as_ubj, read_ubj

from agc_ml.errors import ModelError
from agc_ml.models import cards, content, model_files
from agc_ml.models.backends import isolated_loading, onnx_graph, xgboost_backend
from agc_ml.models.content import Content
from agc_ml.models.loading import load_model
from agc_ml.models.model import Model
from agc_ml.models.registry import Registry, Version
from agc_ml.training import bundles

LIMITS = "takes more than"


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    line = str(caught.value)
    assert path.stem in line
    assert "\n" not in line
    return line


def onnx_of(
    nodes: Sequence[Any], constants: dict[str, Any], n_features: int = 4, out: Any = ("n", 1)
) -> bytes:
    """An ONNX model of these nodes, from x to y."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - heavy

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", n_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


def looping(times: str) -> Any:
    """A loop over x, as often as ``times`` says, to xl."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - heavy

    def info(name: str, kind: int, shape: Any = None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Identity", ["v"], ["vo"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("c", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT),
        ],
        [info("co", TensorProto.BOOL, []), info("vo", TensorProto.FLOAT)],
    )
    return helper.make_node("Loop", [times, "yes", "x"], ["xl"], body=body)


def node(kind: str, given: str, gives: str, **attributes: Any) -> Any:
    from onnx import helper  # noqa: PLC0415 - heavy

    return helper.make_node(kind, given.split(), gives.split(), **attributes)


WEIGHTS = {"w": np.ones((4, 1), np.float32)}
LOOP = {"yes": np.array(True), "forever": np.array(2**62), **WEIGHTS}


def only_for_large(then: Sequence[Any], many: int) -> list[Any]:
    """Nodes that make m: many if a feature is above 1e7, which no trial has; else 0."""
    return [
        node("ReduceMax", "x", "most", keepdims=0),
        node("Greater", "most limit", "is_large"),
        node("Cast", "is_large", "one", to=7),
        node("Mul", "one many", "m"),
        *then,
        node("MatMul", "x w", "xw"),
    ]


def dependent(then: Sequence[Any], many: int) -> bytes:
    constants = {"limit": np.array([1e7], np.float32), "many": np.array(many), **LOOP}
    nodes = only_for_large(then, many)
    used = {name for one in nodes for name in one.input}
    needed = {name: value for name, value in constants.items() if name in used}
    return onnx_of(nodes, needed)


@pytest.fixture
def large_rows() -> np.ndarray:
    return np.full((2000, 4), 1e8, np.float32)


def test_a_loop_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_loading, "CPU_S", 1)
    data = onnx_of([looping("forever"), node("MatMul", "xl w", "y")], LOOP)
    (tmp_path / "loop.onnx").write_bytes(data)
    start = time.monotonic()
    line = refusal(tmp_path / "loop.onnx")
    assert "loop.onnx: reading it and scoring a few rows takes more than 1 s; train or" in line
    assert time.monotonic() - start < 10


def test_scores_that_are_made_up(tmp_path: Path) -> None:
    nodes = [
        node("RandomNormalLike", "x", "noise"),
        node("Add", "x noise", "xn"),
        node("MatMul", "xn w", "y"),
    ]
    (tmp_path / "m.onnx").write_bytes(onnx_of(nodes, WEIGHTS))
    assert "it scores the same rows differently each time" in refusal(tmp_path / "m.onnx")


def test_a_constant_of_terabytes(tmp_path: Path) -> None:
    nodes = [
        node("ConstantOfShape", "s", "c"),
        node("ReduceSum", "c", "cs", keepdims=0),
        node("MatMul", "x w", "xw"),
        node("Add", "xw cs", "y"),
    ]
    (tmp_path / "m.onnx").write_bytes(onnx_of(nodes, {"s": np.array([10**6, 10**6]), **WEIGHTS}))
    assert re.search("takes more than [24][.0]* GB of memory", refusal(tmp_path / "m.onnx"))


@pytest.mark.parametrize("k", [0, 10**7, 2**40])
def test_impossible_numbers_of_features(k: int, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx([1, 2], k=k))
    assert re.search(
        r"can't read it|it takes \d+ features; 1 to 1,000,000", refusal(tmp_path / "m.onnx")
    )


def test_words_of_a_file_are_one_line(tmp_path: Path) -> None:
    data = linear_onnx([1], columns=3).replace(b"y", b"\n")
    (tmp_path / "m.onnx").write_bytes(data)
    assert "input (n, k) and output" in refusal(tmp_path / "m.onnx")


def test_numbers_are_looked_for_in_no_time() -> None:
    start = time.process_time()
    assert xgboost_backend._stored_number(b"num_treesSL" * 200_000, "num_trees") is None
    assert time.process_time() - start < 2


def test_a_loop_that_only_some_rows_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_rows: np.ndarray
) -> None:
    (tmp_path / "m.onnx").write_bytes(
        dependent([node("Squeeze", "m", "k"), looping("k"), node("MatMul", "xl w", "y")], 2**62)
    )
    model = load_model(tmp_path / "m.onnx").members[0]
    assert model(np.ones((3, 4))).tolist() == [4, 4, 4]
    monkeypatch.setattr(onnx_graph, "DEADLINE_S", 0.3)
    monkeypatch.setattr(onnx_graph, "SLOWER", 0)
    with pytest.raises(
        ModelError, match=r"model m .*scoring 2000 rows takes more than \d+ s, perh"
    ):
        model(large_rows)
    assert model(np.ones((3, 4))).tolist() == [4, 4, 4]


def test_a_size_that_only_some_rows_have(tmp_path: Path, large_rows: np.ndarray) -> None:
    then = [
        node("ConstantOfShape", "m", "c"),
        node("ReduceSum", "c", "cs", keepdims=0),
    ]
    data = dependent([*then, node("MatMul", "x w", "xv"), node("Add", "xv cs", "y")], 10**11)
    (tmp_path / "m.onnx").write_bytes(data)
    model = load_model(tmp_path / "m.onnx").members[0]
    assert model(np.ones((3, 4))).tolist() == [4, 4, 4]
    with pytest.raises(ModelError, match=r"scoring \d+ rows takes more than 4 GB of memory"):
        model(large_rows)


def test_one_step_that_can_not_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_rows: np.ndarray
) -> None:
    """A product of large matrices: it is left alone."""
    then = [
        node("Concat", "m m", "mm", axis=0),
        node("ConstantOfShape", "mm", "c"),
        node("MatMul", "c c", "cc"),
        node("ReduceSum", "cc", "cs", keepdims=0),
    ]
    data = dependent([*then, node("MatMul", "x w", "xv"), node("Add", "xv cs", "y")], 4000)
    (tmp_path / "m.onnx").write_bytes(data)
    model = load_model(tmp_path / "m.onnx").members[0]
    model(np.ones((3, 4)))
    monkeypatch.setattr(onnx_graph, "DEADLINE_S", 0.1)
    monkeypatch.setattr(onnx_graph, "SLOWER", 0)
    monkeypatch.setattr(onnx_graph, "GRACE_S", 0.1)
    with pytest.raises(ModelError, match="scoring 2000 rows takes more than"):
        model(large_rows)


def test_where_memory_does_not_do_rows_are_parted(tmp_path: Path) -> None:
    """In a process of its own: its limit is set once."""
    wide = np.full((4, 4000), 0.25, np.float32)
    nodes = [node("MatMul", "x a", "h"), node("Tanh", "h", "t"), node("MatMul", "t b", "y")]
    data = onnx_of(nodes, {"a": wide, "b": np.ones((4000, 1), np.float32)})
    (tmp_path / "m.onnx").write_bytes(data)
    code = (
        "import sys, numpy as np, agc_ml\n"
        "from agc_ml.models.backends import onnx_graph\n"
        "onnx_graph.MEMORY = 200_000_000\n"
        f"model = agc_ml.load_model({str(tmp_path / 'm.onnx')!r})\n"
        "rows = np.random.default_rng(1).normal(size=(40_000, 4)).astype(np.float32)\n"
        "right = np.tanh(rows.sum(axis=1) / 4) * 4000\n"
        "print(np.abs(model(rows) - right).max() < 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.fixture(scope="module")
def ubj(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return forest(tmp_path_factory.mktemp("sound") / "m.ubj", n_features=3).read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("left_children", 10**8, "a node has a child that does not exist"),
        ("split_indices", 10**8, "a node tests a feature that does not exist"),
        ("split_type", 1, "its categories do not fit|can't read it|crashed the reader"),
    ],
)
def test_binary_models_are_checked_too(
    field: str, value: int, message: str, ubj: bytes, tmp_path: Path
) -> None:
    tree = read_ubj(ubj)
    first = tree["learner"]["gradient_booster"]["model"]["trees"][0]
    marker, values = first[field]
    first[field] = Array(marker, [value, *values[1:]])
    (tmp_path / "m.ubj").write_bytes(as_ubj(tree))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "m.ubj")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{L" + bytes(7) + b"\x01a" + b"[" * 1_000_000, r"crashed the reader \(SIGSEGV\); train"),
        (b"{L\x7f\xff\xff\xff\xff\xff\xff\xff", r"can't read it|more than 2\.0 GB of memory"),
        (b"{", "it is not JSON, or truncated"),
        (b"{i", "can't read it|crashed the reader|of memory"),
    ],
    ids=["deep", "long", "one byte", "two bytes"],
)
def test_a_crash_of_the_reader_is_a_line(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.ubj").write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path / "m.ubj")
    assert "\n" not in str(caught.value)


def test_what_was_tried_is_not_tried_again(
    ubj: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither here nor where the driver of a run gives it; what others made by hand is."""
    import pickle  # noqa: PLC0415 - in tests only

    data = linear_onnx([1, 2, 4.5])
    (tmp_path / "m.onnx").write_bytes(data)
    (tmp_path / "m.ubj").write_bytes(ubj)
    tried: list[str] = []
    right = isolated_loading._trial_failure

    def counted(data: bytes, format: Any) -> str:  # noqa: A002 - as it is
        tried.append(format)
        return right(data, format)

    monkeypatch.setattr(isolated_loading, "_trial_failure", counted)
    monkeypatch.setattr(content, "_safe", set())
    for name in ("m.onnx", "m.ubj", "m.onnx", "m.ubj"):
        model = load_model(tmp_path / name)
        assert isinstance(model, Model)
        model(np.zeros((2, 3)))
    assert tried == ["onnx", "xgboost"]

    travelling = pickle.dumps(load_model(tmp_path / "m.onnx"))
    for is_safe in (True, False):
        code = (
            "import sys, pickle, numpy as np\n"
            "from agc_ml.models import content\n"
            "from agc_ml.models.backends import isolated_loading\n"
            "isolated_loading._trial_failure = lambda *_: 'it was tried'\n"
            f"model = pickle.loads({travelling!r})\n"
            f"data = content._contents[model.sha256].data\n"
            f"if not {is_safe}: content._safe.clear()\n"
            "try: print(model(np.ones((1, 3))))\n"
            "except Exception as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert ("it was tried" not in done.stdout) == is_safe
        assert is_safe == ("[7.5]" in done.stdout)
    assert not Content(data).is_safe


def test_nothing_of_the_user_gets_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ubj: bytes
) -> None:
    """Neither secrets, nor modules that lie about where the user happens to be."""
    place = tmp_path / "place"
    place.mkdir()
    for name in ("xgboost", "numpy", "json"):
        (place / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(place)
    monkeypatch.setenv("AGC_ML_TRAINING_TOKEN", "secret")
    given_to: list[dict[str, str]] = []
    right = subprocess.Popen

    def seen(*args: Any, **kwargs: Any) -> Any:
        given_to.append(kwargs["env"])
        return right(*args, **kwargs)

    monkeypatch.setattr(isolated_loading.subprocess, "Popen", seen)
    monkeypatch.setattr(content, "_safe", set())
    (tmp_path / "m.ubj").write_bytes(ubj)
    load_model(tmp_path / "m.ubj")
    assert not (tmp_path / "ran").exists()
    assert len(given_to) == 1
    assert "secret" not in str(given_to)


def test_an_interrupt_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ubj: bytes) -> None:
    started: list[Any] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, *args: Any, **kwargs: Any) -> Any:
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().communicate(*args, **kwargs)

    monkeypatch.setattr(isolated_loading.subprocess, "Popen", Interrupted)
    monkeypatch.setattr(content, "_safe", set())
    (tmp_path / "m.ubj").write_bytes(ubj)
    with pytest.raises(KeyboardInterrupt):
        load_model(tmp_path / "m.ubj")
    assert started[0].returncode == -9


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.onnx", "zero.json"):
        assert "it is a pipe or a device, not a file" in refusal(tmp_path / name)
    for name in ("model.yaml", "even.onnx"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="no card"):
        load_model(tmp_path)
    (tmp_path / "card.yaml").write_text(
        yaml.safe_dump(
            {"schema": 1, "name": "a", "version": "1", "models": [{"file": "even.onnx"}]}
        )
    )
    with pytest.raises(ModelError, match=r"even\.onnx: it is a pipe or a device"):
        load_model(tmp_path / "card.yaml")


def test_files_that_are_too_large(tmp_path: Path) -> None:
    for name in ("m.onnx", "m.json", "m.ubj"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(model_files.MOST_BYTES + 1)
        assert "it has more than 1,000,000,000 bytes" in refusal(tmp_path / name)
    with pytest.raises(ModelError, match="no card"):  # other files there do no harm
        load_model(tmp_path)


def test_cards_that_are_too_large(tmp_path: Path) -> None:
    """A row of golden rows that is named again and again; many bytes that are slow to read."""
    row = ",".join(["0"] * 1000)
    text = (
        "schema: 1\nname: a\nversion: '1'\nmodels:\n- file: m.json\n  golden:\n"
        f"    rows: [&a [{row}]{', *a' * 20_000}]\n    margins: [0]\n"
    )
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ModelError, match="more than 1,000,000 values, with repetitions by anchors"):
        load_model(tmp_path)
    (tmp_path / "model.yaml").write_text(text + "#" * cards.MOST_YAML)
    with pytest.raises(ModelError, match="a card of more than 1 MB"):
        load_model(tmp_path)


def test_files_of_a_registry_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "even.onnx")
    version = Version("mine", "1", {}, {"even.onnx": "0" * 64}, tmp_path)
    with pytest.raises(ModelError, match=r"mine@1: even\.onnx can't be read \(it is a pipe"):
        Registry(tmp_path).content(version, "even.onnx")


def test_damaged_golden_rows(tmp_path: Path) -> None:
    path = tmp_path / "golden_even.npz"
    np.savez_compressed(path, rows=np.zeros((100, 3)), scores=np.zeros(100))
    whole = path.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("rows.npy", bytes(bundles.MOST_GOLDEN_BYTES + 1))
    objects = io.BytesIO()
    np.savez(objects, rows=np.array([{}], object), scores=np.zeros(1))
    for data, reason in (
        (whole[:50], "not a zip"),
        (b"", "not a zip"),
        (packed.getvalue(), "it unpacks to 0.5 GB"),
        (objects.getvalue(), "Object arrays"),
        (whole.replace(b"scores", b"scares"), "scores"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=rf"golden_even\.npz: no golden rows \(.*{reason}"):
            bundles.read_golden(tmp_path, "even")
