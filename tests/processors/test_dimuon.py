from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import uproot

import agc_ml as agc


def test_pairs_of_the_real_file(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "coffea_nano_dimuon.root"
    result = agc.run("dimuon", str(path), site="inline", output=tmp_path, chunk_size=7, quiet=True)
    spectrum = result.templates["dimuon_mass_coffea_nano_dimuon"]
    tree = uproot.open(path)["Events"]
    masses = []
    names = [f"Muon_{field}" for field in ("pt", "eta", "phi", "mass", "charge")]
    for event in ak.to_list(tree.arrays(names)):
        muons = [
            m for m in zip(*(event[n] for n in names), strict=True) if m[0] > 5 and abs(m[1]) < 2.4
        ]
        for i, (pt1, eta1, phi1, _, charge1) in enumerate(muons):
            for pt2, eta2, phi2, _, charge2 in muons[i + 1 :]:
                if charge1 * charge2 < 0:  # masses of the muons are negligible
                    masses.append(
                        np.sqrt(2 * pt1 * pt2 * (np.cosh(eta1 - eta2) - np.cos(phi1 - phi2)))
                    )
    assert masses
    assert spectrum.sum(flow=True).value == len(masses)
    expected, _ = np.histogram(masses, bins=240, range=(0, 120))
    assert np.abs(np.cumsum(spectrum.values()) - np.cumsum(expected)).max() <= 1
    assert spectrum.axes[0].label == r"$m_{\mu\mu}$ [GeV]"


def test_without_events_that_pass(tmp_path: Path, real_data: Path) -> None:
    path = real_data / "nanoAOD_2015_CMS_Open_Data_ttbar.root"
    result = agc.run("dimuon", str(path), site="inline", output=tmp_path, quiet=True)
    assert result.status == "complete"
    assert result.metrics.events == 200
