"""Hard process and shower: batches of hadronised events of one unit of one sample.

Two streams of random numbers take turns: one for the hard process with the decays of its
resonances, one for all that follows. So samples that share the first have the same hard events
whatever their showers do, and how many events Pythia is asked for at once changes nothing.
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

    ``refused`` says of each event whether a veto would have stopped it (where vetoes only look on).
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
        Its number; units are independent.
    enforced
        Vetoes that stop events: None for none, by default the sample's. Where they are others, the
        sample's only mark what they refuse, which measures their loss.
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
        """The next ``n_events`` that no veto stopped.

        Raises
        ------
        GenerateError
            The unit has tried more events than it has numbers for.
        """
        found = self._pythia.nextBatch(n_events)
        attempts = np.asarray(found.prt.scale[:, 0]).astype(np.int64)  # stamped by the hooks
        if self._hooks.attempt >= self._most_attempts:
            raise GenerateError(
                f"{self._name}: {self._most_attempts:,} attempts, too few events; its vetoes or "
                "settings let nothing pass"
            )
        refused = np.isin(attempts, list(self._hooks.refused))
        self._hooks.refused.clear()
        return Batch(found.prt, found.info, attempts, refused)


def _library() -> Any:
    if "PYTHIA8DATA" in os.environ:
        raise GenerateError(
            "PYTHIA8DATA is set, so Pythia would read the files of another installation; unset it "
            "where events are generated"
        )
    try:
        import pythia8mc  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing_extra(error) from error
    return pythia8mc


def missing_extra(error: ImportError) -> GenerateError:
    """The error for a library of the extra ``generate`` that is not there."""
    return GenerateError(
        f"{error.name or error} is not installed where events are generated; "
        "pip install 'agc-ml[generate]' there"
    )


@functools.cache
def quiet_fastjet() -> None:
    """Let both copies of FastJet print their banner now, to nowhere, instead of into our output."""
    pythia8mc = _library()
    try:
        import fastjet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise missing_extra(error) from error
    with _no_output():
        event = pythia8mc.Event()
        event.init("")
        pythia8mc.SlowJet(-1, 0.4, 1.0).analyze(event)
        one = fastjet.PseudoJet(1.0, 0.0, 0.0, 1.0)
        fastjet.ClusterSequence([one], fastjet.JetDefinition(fastjet.antikt_algorithm, 0.4))


@contextmanager
def _no_output() -> Iterator[None]:
    """Send what C++ prints to nowhere."""
    if sys.stdout is None:  # closed: nobody would see it
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
