"""Neural networks: trained with Keras on TensorFlow, and exported to ONNX for scoring."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import TrainingError, UsageError
from agc_ml.training.training_set import TrainingSet

Array = NDArray[Any]
Params = Mapping[str, int | float]

DEFAULTS: Final[Params] = {
    "layers": 2,
    "width": 64,
    "dropout": 0.1,
    "learning_rate": 2e-3,
    "batch_size": 256,
    "epochs": 30,
}
# Epochs between two validations
STEP: Final = 5

# Largest difference of a score between Keras and its ONNX export
TOLERANCE: Final = 1e-5

_OPSET: Final = 17


def _library() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no log lines
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it sums in another order each time
    try:
        import keras  # noqa: PLC0415 - heavy
        import tensorflow as tf  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise UsageError(
            f"TensorFlow is not installed ({error}): pip install 'agc-ml[keras]'"
        ) from error
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel("ERROR")  # it warns of functions that are retraced for each network
    return keras


class Prepared(NamedTuple):
    """Rows and labels, with mean and standard deviation of each feature."""

    rows: Array
    labels: Array
    mean: Array
    deviation: Array


def prepare(data: TrainingSet) -> Prepared:
    """Return the rows and labels of a training set, for a network."""
    rows = np.ascontiguousarray(data.features.reshape(-1, data.features.shape[2]))
    deviation = rows.std(axis=0, dtype=np.float64)
    return Prepared(
        rows,
        data.labels.ravel().astype(np.float32),
        rows.mean(axis=0, dtype=np.float64),
        np.where(deviation > 0, deviation, 1),
    )


def steps(params: Params) -> list[int]:
    """Return the epochs after which the network is validated, with the last one."""
    last = int({**DEFAULTS, **params}["epochs"])
    return [*range(STEP, last, STEP), last]


class Learner:
    """Training of a network, which scales the features itself."""

    def __init__(self, prepared: Prepared, params: Params, seed: int) -> None:
        self._keras = _library()
        self._seed = seed
        self._data = prepared
        settings = {**DEFAULTS, **params}
        self._batch_size = int(settings["batch_size"])
        self._keras.utils.set_random_seed(seed)
        self.network = self._network(settings)
        self._score = self._compiled_score()
        self._done = 0

    def _network(self, params: Params) -> Any:
        layers, width = self._keras.layers, int(params["width"])
        n_features = self._data.rows.shape[1]
        # an adapted Normalization layer does not survive the export, Rescaling does; all layers are
        # named, as Keras numbers unnamed ones in the order of the process
        scaled = layers.Rescaling(
            scale=(1 / self._data.deviation).tolist(),
            offset=(-self._data.mean / self._data.deviation).tolist(),
            name="scaled",
        )
        hidden = [
            layer
            for number in range(int(params["layers"]))
            for layer in (
                layers.Dense(width, activation="relu", name=f"hidden_{number}"),
                layers.Dropout(float(params["dropout"]), seed=self._seed, name=f"drop_{number}"),
            )
        ]
        network = self._keras.Sequential(
            [
                layers.Input((n_features,), name="features"),
                scaled,
                *hidden,
                layers.Dense(1, activation="sigmoid", name="scores"),
            ],
            name="assignment",
        )
        network.compile(
            optimizer=self._keras.optimizers.Adam(float(params["learning_rate"])),
            loss="binary_crossentropy",
        )
        return network

    def _compiled_score(self) -> Any:
        import tensorflow as tf  # noqa: PLC0415 - heavy

        signature = [tf.TensorSpec((None, self._data.rows.shape[1]), tf.float32)]
        return tf.function(lambda rows: self.network(rows, training=False), signature)

    def train(self, until: int) -> None:
        """Train until so many epochs are done."""
        rows, labels = self._data.rows, self._data.labels
        for epoch in range(self._done, until):
            # an order of its own for each epoch, whatever the steps of validation
            order = np.random.default_rng([self._seed, epoch]).permutation(len(rows))
            self.network.fit(
                rows[order],
                labels[order],
                batch_size=self._batch_size,
                epochs=1,
                shuffle=False,
                verbose=0,
            )
        self._done = until

    def scores(self, features: Array) -> Array:
        """Return the scores of rows, float32, shape (n,)."""
        return np.asarray(self._score(np.ascontiguousarray(features, np.float32)))[:, 0]

    def scorer(self, features: Array) -> Callable[[], Array]:
        """Return a function that scores these rows with the current network."""
        return lambda: self.scores(features)

    def save(self, folder: Path, stem: str) -> dict[str, Path]:
        """Write the network as .keras and ONNX, and check their scores.

        Raises
        ------
        TrainingError
            A file gives other scores than the network.
        """
        source, path = folder / f"{stem}.keras", folder / f"{stem}.onnx"
        self.network.save(source)
        self.network.export(str(path), format="onnx", verbose=False, opset_version=_OPSET)
        _make_canonical(path)
        rows = self._data.rows[:4096]
        loaded = self._keras.models.load_model(source, safe_mode=True, compile=False)
        for name, scores in (
            ("the .keras file", np.asarray(loaded(rows, training=False))[:, 0]),
            ("its ONNX", onnx_scores(path.read_bytes(), rows)),
        ):
            difference = float(np.abs(scores - self.scores(rows)).max())
            if not difference <= TOLERANCE:
                raise TrainingError(
                    f"{path.name}: the scores of {name} differ from those of the network in memory "
                    f"by {difference:.2g} (allowed: {TOLERANCE:g}); it is not registered"
                )
        return {"model": path, "source": source}


def _make_canonical(path: Path) -> None:
    """Remove what depends on the writing process from an ONNX file: counters in names."""
    import onnx  # noqa: PLC0415 - heavy

    model = onnx.load(path)
    model.graph.doc_string = ""
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    path.write_bytes(model.SerializeToString(deterministic=True))


def onnx_scores(content: bytes, rows: Array) -> Array:
    """Return the scores of rows by ONNX Runtime, on one thread."""
    import onnxruntime  # noqa: PLC0415 - heavy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: rows})
    return np.asarray(scores)[:, 0]
