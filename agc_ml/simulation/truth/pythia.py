"""Hard process and shower: batches of hadronised events of one unit of one sample.

Two streams of random numbers alternate: one for the hard process with the decays of its resonances,
one for the shower and hadronisation. So samples that share the first have the same hard events, and
the size of batches changes nothing.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np

from agc_ml.errors import GenerateError
from agc_ml.simulation.events import Array
from agc_ml.simulation.samples import COMMON, Sample, Vetoes
from agc_ml.simulation.truth.randomness import pythia_seed, stream_key


class Batch(NamedTuple):
    """Hadronised events: Pythia's particles, and the number of each event's attempt.

    ``refused`` is True for events that a veto would have stopped, if vetoes are not enforced.
    """

    particles: Any
    info: Any
    attempts: Array
    refused: Array


class Source:
    """Events of one unit of a sample.

    Parameters
    ----------
    unit
        Number of the unit; units are independent.
    enforced
        Vetoes that stop events: None for none, by default the sample's. With others, the sample's
        vetoes only mark events, which measures their loss.
    """

    def __init__(
        self,
        sample: Sample,
        seed: int,
        unit: int,
        *,
        enforced: Vetoes | Literal["own"] | None = "own",
    ) -> None:
        pythia8mc = _library()
        from agc_ml.simulation.truth import hooks, topw  # noqa: PLC0415 - they need Pythia

        quiet_fastjet()
        self._most_attempts = hooks.MAX_ATTEMPTS
        self._pythia = pythia8mc.Pythia("", False)
        hard = pythia_seed(stream_key(seed, "hard", sample.hard_stream), unit)
        rest = pythia_seed(stream_key(seed, "rest", sample.name), unit)
        # Settings of the sample and the seed; quiet, as workers print nothing.
        lines = [setting.line for setting in (*COMMON, *sample.settings)]
        lines += ["Print:quiet = on", "Random:setSeed = on", f"Random:seed = {hard}"]
        for line in lines:
            if not self._pythia.readString(line):
                raise GenerateError(f"{sample.name}: Pythia does not know {line!r}")
        self._process = None if sample.native else topw.GluonBottomToTopW()
        if self._process is not None:
            self._pythia.setSigmaPtr(self._process)
        stopping = sample.vetoes if enforced == "own" else enforced
        self._hooks = hooks.Hooks(self._pythia, sample.vetoes, stopping)
        self._pythia.setUserHooksPtr(self._hooks)
        if not self._pythia.init():
            raise GenerateError(f"{sample.name}: Pythia can't start with its settings")
        self._hooks.start(hard, rest)
        self._name = sample.name

    def batch(self, n_events: int) -> Batch:
        """Next ``n_events`` events that pass the enforced vetoes.

        Raises
        ------
        GenerateError
            The unit has no event numbers left.
        """
        batch = self._pythia.nextBatch(n_events)
        attempts = np.asarray(batch.prt.scale[:, 0]).astype(np.int64)  # stamped by the hooks
        if self._hooks.attempt >= self._most_attempts:
            raise GenerateError(
                f"{self._name}: {self._most_attempts:,} attempts, too few events; no event passes "
                "its vetoes or settings"
            )
        refused = np.isin(attempts, list(self._hooks.refused))
        self._hooks.refused.clear()
        return Batch(batch.prt, batch.info, attempts, refused)


def _library() -> Any:
    if "PYTHIA8DATA" in os.environ:
        raise GenerateError(
            "PYTHIA8DATA is set, so Pythia would read the files of another installation; unset it "
            "on the workers"
        )
    try:
        import pythia8mc  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing_extra(error) from error
    return pythia8mc


def missing_extra(error: ImportError) -> GenerateError:
    """Error for a missing library of the extra ``generate``."""
    return GenerateError(
        f"{error.name or error} is not installed where events are generated; "
        "pip install 'agc-ml[generate]' there"
    )


@functools.cache
def quiet_fastjet() -> None:
    """Suppress the banners of both copies of FastJet: they print them once, now."""
    pythia8mc = _library()
    try:
        import fastjet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing_extra(error) from error
    with _no_output():
        event = pythia8mc.Event()
        event.init("")
        pythia8mc.SlowJet(-1, 0.4, 1.0).analyze(event)
        particle = fastjet.PseudoJet(1.0, 0.0, 0.0, 1.0)
        fastjet.ClusterSequence([particle], fastjet.JetDefinition(fastjet.antikt_algorithm, 0.4))


@contextmanager
def _no_output() -> Iterator[None]:
    """Discard the output of C++ libraries."""
    if sys.stdout is None:  # closed already
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
