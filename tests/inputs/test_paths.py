"""Files as people name them: folders, patterns, links, URLs, with a tree or without."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.errors import FilesetError
from agc_ml.inputs.folders import is_root_file
from agc_ml.inputs.paths import escaped, logical_name, resolve, split_tree


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with links, loops, hidden files and files of other kinds."""
    data = tmp_path / "data"
    for name in (
        *("a.root", "run1/b.root", "run1/c.root.1", "run1/deep/d.pool.root.2", "E.ROOT"),
        *(".hidden.root", ".snapshot/daily/a.root", ".Trash-1000/x.root", "run1/.sys.v#.b.root"),
        *("notes.txt", "run1/log.json", "run1/b.root.part", "x[1].root", "tree.root/f.root"),
        *("../elsewhere/run2/g.root", "../elsewhere/run2/.old/h.root"),
    ):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (data / "run2").symlink_to("../elsewhere/run2")
    (data / "again").symlink_to("run1")
    (data / "loop").symlink_to(".")
    (data / "run1/up").symlink_to("../..")
    (tmp_path / "elsewhere/run2/back").symlink_to(data)
    (data / "latest.root").symlink_to("run1/b.root")
    (data / "gone.root").symlink_to("/nowhere/gone.root")
    return data


ALL = (
    *("E.ROOT", "a.root", "gone.root", "run1/b.root", "run1/c.root.1"),
    *("run1/deep/d.pool.root.2", "run2/g.root", "tree.root/f.root", "x[1].root"),
)


def names(text: str, folder: Path) -> tuple[list[str], str]:
    found = resolve(text, folder, "here")
    return [place.lfn for place in found.locations], found.note or found.problem or ""


def test_a_folder(data: Path) -> None:
    """Through links, each real file once, without hidden ones; what is passed over is told."""
    found, note = names(".", data)
    assert found == sorted(ALL)
    assert "skipped 3 not called *.root (notes.txt, b.root.part, log.json)" in note
    assert "2 links to the same (latest.root, up)" in note
    absolute = resolve(str(data), Path("/"), "here")
    assert [place.lfn for place in absolute.locations] == [f"{data}/{name}" for name in found]
    assert all(lfn == url for lfn, url in absolute.locations)


@pytest.mark.parametrize(
    ("pattern", "expected", "says"),
    [
        ("**/*.root", [n for n in ALL if n.endswith("t")], "up"),
        ("**", sorted(ALL), "notes.txt"),
        ("run1/**/*.root", ["run1/b.root"], "1 link to the same (up)"),
        ("[a-z]*/[bg].root", ["run1/b.root", "run2/g.root"], "1 link to the same (b.root)"),
        (
            "*.root",
            ["a.root", "gone.root", "latest.root", "x[1].root"],
            "1 not called *.root (tree",
        ),
        ("*", ["E.ROOT", "a.root", "gone.root", "latest.root", "x[1].root"], "again, loop, notes."),
        ("run[12]/?.root", ["run1/b.root", "run2/g.root"], ""),
        ("x[1].root", ["x[1].root"], ""),
        ("[a-b].root", ["a.root"], ""),
        (".snapshot/*/*.root", [".snapshot/daily/a.root"], ""),
        (".*.root", [".hidden.root"], ""),
        ("run1/../*/g.root", ["run2/g.root"], ""),
        ("none*.root", [], "no file matches"),
        ("run?", [], "no file matches; only run1, run2 there"),
        ("*.txt", [], "no file matches; only notes.txt there"),
    ],
)
def test_patterns(pattern: str, expected: list[str], says: str, data: Path) -> None:
    found, note = names(pattern, data)
    assert found == sorted(expected)
    assert says in note


def test_a_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "n.txt").touch()
    assert names(str(tmp_path), tmp_path) == (
        [],
        "no *.root files in that folder; only n.txt there",
    )


def test_a_folder_that_may_not_be_listed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for an empty one: its files would be missing in silence."""

    def refused(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    for text in (".", "*.root", "run1/**"):
        with pytest.raises(FilesetError, match=r"here: /.*: can't be read \(Permission denied\)"):
            resolve(text, data, "here")


@pytest.mark.parametrize(
    ("text", "lfn", "url", "tree"),
    [
        ("a.root", "a.root", "{data}/a.root", None),
        ("./run1//b.root", "./run1//b.root", "{data}/run1/b.root", None),
        ("run1/../a.root", "run1/../a.root", "{data}/a.root", None),
        ("none.root", "none.root", "{data}/none.root", None),
        ("a.root:T", "a.root", "{data}/a.root", "T"),
        ("a.root:/dir/T", "a.root", "{data}/a.root", "dir/T"),
        ("none.root.1:T", "none.root.1", "{data}/none.root.1", "T"),
        ("file:{data}/a.root", "{data}/a.root", "{data}/a.root", None),
        ("file://{data}/a.root:T", "{data}/a.root", "{data}/a.root", "T"),
        ("file://localhost{data}/a.root", "{data}/a.root", "{data}/a.root", None),
        ("root://h:1094//x.root:T", "/x.root", "root://h:1094//x.root", "T"),
        ("root://h.root:1094//x.root", "/x.root", "root://h.root:1094//x.root", None),
        ("https://h/x.root?a=b:T", "/x.root?a=b:T", "https://h/x.root?a=b:T", None),
        ("root://[::1]:1//x.root", "/x.root", "root://[::1]:1//x.root", None),
        ("root://h//$DATA/~.root:$T", "/$DATA/~.root", "root://h//$DATA/~.root", "$T"),
        ("https://h/~/a.root?a=$DATA", "/~/a.root?a=$DATA", "https://h/~/a.root?a=$DATA", None),
        ("root://h//a b.root", "/a b.root", "root://h//a b.root", None),
        ("$DATA/a.root", "$DATA/a.root", "{data}/a.root", None),
        ("~/a.root", "~/a.root", "{data}/a.root", None),
    ],
)
def test_one_file(
    text: str,
    lfn: str,
    url: str,
    tree: str | None,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"DATA": data, "HOME": data, "T": "Events"}.items():
        monkeypatch.setenv(name, str(value))
    found = resolve(text.format(data=data), data, "here")
    (place,) = found.locations
    assert place.lfn == lfn.format(data=data)
    assert place.url == url.format(data=data)
    assert found.tree == tree
    assert found.is_missing == ("none" in text)


def test_a_file_that_is_called_like_one_with_a_tree(data: Path) -> None:
    (data / "a.root:T").touch()
    found = resolve("a.root:T", data, "here")
    assert (found.locations[0].url, found.tree) == (f"{data}/a.root:T", None)
    assert names("*.root:T", data)[0] == names("*.root", data)[0]
    assert resolve("*.root:T", data, "here").tree == "T"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("root://h//d/*.root", "agc-ml fileset from-glob NAME=root://h//d/"),
        ("https://h/d/[ab].root:T", "a pattern on a server"),
        ("https://me:secret@h/*.root", "a pattern on a server"),
        ("file://elsewhere/a.root", "on another machine"),
        ("root://[x//a.root", "not a URL"),
        ("root:///a.root", "SCHEME://HOST/PATH is needed"),
        ("root://h//a.root\t123", "without tabs"),
        ("https://h/a#1.root", "write '#' in a name as %23"),
        ("memory://x.root", "SCHEME://HOST/PATH is needed"),
        ("", "'' is empty"),
        ("$SET_TO_NOTHING", "'$SET_TO_NOTHING' is empty"),
        ("$NO_SUCH/a.root", "$NO_SUCH is not set"),
        ("$DOOR//a.root", "$DOOR//a.root: variables are expanded in paths only"),
        ("https:/${SET_TO_NOTHING}/h/$DOOR", "and this would be a URL; write the URL out"),
        ("root:$SLASHES$DOOR", "variables are expanded in paths only"),
        ("https://$DOOR/a.root", "expanded in paths only, not in URLs; write it out"),
        ("https://${DOOR}.evil/a.root", "expanded in paths only, not in URLs; write it out"),
        ("/d/$BEARER_TOKEN/a.root", "$BEARER_TOKEN may be a secret, and is not expanded"),
        ("/d/${AWS_SECRET_ACCESS_KEY}", "$AWS_SECRET_ACCESS_KEY may be a secret"),
        ("x" * 5000, "can't be read (File name too long)"),
        ("~nobody-of-that-name/a.root", "here: ~nobody"),
    ],
)
def test_what_is_no_place(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SET_TO_NOTHING": "",
        "SLASHES": "//",
        "DOOR": "root://h",
        "BEARER_TOKEN": "hush",
        "AWS_SECRET_ACCESS_KEY": "hush",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FilesetError) as caught:
        resolve(text, tmp_path, "here")
    assert str(caught.value).startswith("here: ")
    assert says in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "me:secret" not in str(caught.value)


words = st.text("ab.:0", min_size=1, max_size=8)


@given(words, st.sampled_from(["", ".1", ".22"]), st.text("abT_/;1", min_size=1, max_size=5))
def test_a_tree_is_split_off_again(stem: str, number: str, tree: str) -> None:
    path = f"{stem}.root{number}"
    assert is_root_file(path)
    for place in (path, f"root://host.root:1094//{path}"):
        if place.count(":") == place.count("root://host.root:"):
            assert split_tree(place) == (place, None)
        assert split_tree(f"{place}:x{tree}") == (place, f"x{tree}")


@given(st.text("a*?[]$~%:#", min_size=1, max_size=8))
def test_what_is_written_is_meant(stem: str) -> None:
    path = f"/d/{stem}.root"
    for place in (path, f"{path}:T", f"/d{path}/../~x"):
        found = resolve(escaped(place), Path("/elsewhere"), "here")
        if "/../" not in place:
            assert [url for _, url in found.locations] == [place]
        assert (found.tree, found.problem) == (None, None)
    url = f"https://h:1{path}"
    with contextlib.suppress(FilesetError):  # such as ':' that begins a tree
        (found,) = resolve(escaped(url), Path("/"), "here").locations
        assert unquote(found.url) == unquote(url)


def test_names_on_servers_without_escapes() -> None:
    for name in ("root://h//d/a%24.root?b=1", "root://h//d/a$HOME.root"):
        assert resolve(escaped(name), Path("/"), "here").locations[0].url == name
    with pytest.raises(FilesetError, match="a fileset can't list it; rename it"):
        escaped("root://h//d/a*.root")


def test_logical_names_of_spellings() -> None:
    assert logical_name("root://h//d/a#1.root") == "/d/a#1.root"
    spellings = ("/d/a.root", "file:/d/a.root", "file:///d/a.root", "file://localhost/d/a.root")
    assert {logical_name(text) for text in (*spellings, "root://h//d/a.root")} == {"/d/a.root"}
