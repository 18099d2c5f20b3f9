from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs.datasets import Dataset, File, plain_tree
from agc_ml.inputs.fileset import Fileset

names = st.text("abcdef", min_size=1, max_size=4)
files = st.lists(names, min_size=1, max_size=5, unique=True).map(
    lambda lfns: tuple(File(lfn=lfn, replicas=(f"/data/{lfn}",), entries=len(lfn)) for lfn in lfns)
)
datasets = st.lists(
    st.builds(Dataset, name=names, process=names, files=files, xsec=st.floats(0.1, 1e5)),
    min_size=1,
    max_size=4,
    # datasets of one process add up, so that they may not share files
    unique_by=(lambda dataset: dataset.name, lambda dataset: dataset.process),
)
filesets = st.builds(Fileset, datasets.map(tuple), st.floats(1, 1e5))


def one(**changes: object) -> Fileset:
    file = File(lfn="/store/a.root", replicas=("root://x//store/a.root",), entries=3)
    dataset = Dataset(name="tt", process="ttbar", files=(file,), xsec=1.0)
    return Fileset((replace(dataset, **changes),), 10.0)


@given(filesets, st.integers(1, 6))
def test_limit_keeps_the_first_files(fileset: Fileset, n: int) -> None:
    limited = fileset.limit(files=n)
    assert [d.name for d in limited.datasets] == [d.name for d in fileset.datasets]
    for before, after in zip(fileset.datasets, limited.datasets, strict=True):
        assert after.files == before.files[:n]
    assert limited.limit(files=n) == limited
    assert (limited.digest == fileset.digest) == (limited == fileset)


@given(filesets)
def test_digest_is_stable_and_replicas_change_nothing(fileset: Fileset) -> None:
    moved = replace(
        fileset,
        datasets=tuple(
            replace(d, files=tuple(replace(f, replicas=("https://else/where",)) for f in d.files))
            for d in fileset.datasets
        ),
    )
    assert moved.digest == fileset.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"process": "wjets"},
        {"variation": "ME_var"},
        {"xsec": 2.0},
        {"is_data": True},
        {"metadata": {"era": "B"}},
        {"files": (File(lfn="/store/b.root", replicas=("x",), entries=3),)},
        {"files": (File(lfn="/store/a.root", replicas=("x",), entries=4),)},
        {"files": (File(lfn="/store/a.root", replicas=("x",), entries=3, uuid="u"),)},
        {"files": (File(lfn="/store/a.root", replicas=("x",), entries=3, tree="T"),)},
    ],
)
def test_digest_changes_with_all_that_changes_a_result(changes: dict[str, object]) -> None:
    assert one(**changes).digest != one().digest
    assert replace(one(), luminosity=11.0).digest != one().digest


def test_metadata_is_what_processors_look_for() -> None:
    fileset = one(metadata={"era": "B"})
    assert fileset.metadata(fileset.datasets[0]) == {
        "era": "B",
        "dataset": "tt",
        "process": "ttbar",
        "variation": "nominal",
        "is_data": False,
        "xsec": 1.0,
        "luminosity": 10.0,
        "nevts": 3,
    }
    assert fileset.to_coffea()["tt"]["files"] == {"root://x//store/a.root": "Events"}


def test_select() -> None:
    names = ("tt", "tt_up", "w")
    fileset = Fileset(tuple(replace(one().datasets[0], name=n, process=n) for n in names))
    assert [d.name for d in fileset.select(["tt*"]).datasets] == ["tt", "tt_up"]
    assert [d.name for d in fileset.select(["w", "tt"]).datasets] == ["tt", "w"]
    with pytest.raises(UsageError, match="there are: tt, tt_up, w"):
        fileset.select(["z"])


@pytest.mark.parametrize("xsec", [0.0, -1.0, float("nan"), float("inf")])
def test_cross_section_must_be_a_positive_number(xsec: float) -> None:
    with pytest.raises(FilesetError, match=r"dataset tt: xsec is"):
        one(xsec=xsec)


def test_what_makes_no_fileset() -> None:
    with pytest.raises(FilesetError, match="no datasets"):
        Fileset(())
    with pytest.raises(FilesetError, match="dataset tt is listed twice"):
        Fileset(one().datasets * 2)
    with pytest.raises(FilesetError, match="no files"):
        one(files=())
    with pytest.raises(FilesetError, match="luminosity"):
        replace(one(), luminosity=-1.0)
    with pytest.raises(UsageError, match="at least one file"):
        one().limit(files=0)


def file(lfn: str, **facts: object) -> File:
    return replace(File(lfn=lfn, replicas=(f"root://x/{lfn}",)), **facts)


@pytest.mark.parametrize(
    "twins",
    [
        (file("/a.root"), file("/a.root", replicas=("https://y//a.root",))),
        (file("/a.root", uuid="7-1"), file("/b.root", uuid="7-1")),
    ],
)
def test_one_file_under_two_entries_of_a_dataset(twins: tuple[File, File]) -> None:
    with pytest.raises(FilesetError, match="would count twice") as caught:
        one(files=twins)
    assert all(twin.lfn in str(caught.value) for twin in twins)
    with pytest.raises(FilesetError, match="is listed twice"):
        one(files=(twins[0], twins[0]))


trees = st.lists(names, min_size=1, max_size=3)
spellings = st.tuples(
    st.sampled_from(["", "/", "//"]), st.sampled_from(["/", "//"]), st.sampled_from(["", ";1"])
)


@given(trees, spellings, spellings)
def test_a_tree_is_one_however_it_is_spelled(
    parts: list[str], one_way: tuple[str, str, str], other_way: tuple[str, str, str]
) -> None:
    a, b = (f"{begin}{slash.join(parts)}{end}" for begin, slash, end in (one_way, other_way))
    assert plain_tree(a) == plain_tree(b) == "/".join(parts)
    assert plain_tree(f"{a}x") != plain_tree(b)
    with pytest.raises(FilesetError, match="is listed twice"):
        one(files=(file("/a.root", tree=a), file("/a.root", tree=b)))
    with pytest.raises(FilesetError, match="the same file"):
        one(files=(file("/a.root", uuid="7-1", tree=a), file("/b.root", uuid="7-1", tree=b)))
    first, second = (
        Dataset(name=name, process="ttbar", files=(file("/a.root", tree=tree),))
        for name, tree in (("one", a), ("two", b))
    )
    with pytest.raises(FilesetError, match="the same file"):
        Fileset((first, second))


def test_two_trees_of_one_file_are_two_things() -> None:
    one(files=(file("/a.root", uuid="7-1"), file("/b.root", uuid="7-1", tree="Others")))


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (file("/a.root"), file("/a.root"), "lfn /a.root"),
        (file("/a.root", uuid="7-1"), file("/b.root", uuid="7-1"), "uuid 7-1"),
    ],
)
def test_one_file_in_two_datasets(first: File, second: File, says: str) -> None:
    """Refused where the datasets add up to one histogram, and only there."""
    dataset = Dataset(name="one", process="ttbar", files=(first,), xsec=1.0)
    other = Dataset(name="two", process="ttbar", files=(second,), xsec=1.0, metadata={"era": "B"})
    with pytest.raises(FilesetError) as caught:
        Fileset((dataset, other))
    for part in (f"{first.lfn} in dataset one", f"{second.lfn} in dataset two", says, "twice"):
        assert part in str(caught.value)
    Fileset((dataset, replace(other, process="wjets")))
    Fileset((dataset, replace(other, variation="ME_var")))
