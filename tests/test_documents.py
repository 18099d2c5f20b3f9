"""JSON and YAML of others: read within bounds, or refused with a line."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import agc
from hypothesis import given
from hypothesis import strategies as st

from agc_ml import documents
from agc_ml.errors import AgcError, FilesetError, FitError
from agc_ml.inputs.fileset import Fileset
from agc_ml.statistics.workspace.fit_config import load_config

TOO_MANY = "more than 1,000,000 values, with repetitions by anchors and merges"


def levels(form: str, times: int) -> str:
    """Lists or mappings that repeat the one before, and so on."""
    return "a: &a {x: 1}\n" + "".join(
        f"{b}: &{b} {form % ', '.join([f'*{a}'] * times)}\n" for a, b in pairwise("abcdefghij")
    )


YAML = {
    "billion laughs": (levels("[%s]", 10), f"line 7: {TOO_MANY}"),
    "merges of merges": (levels("{<<: [%s]}", 20), f"line 6: {TOO_MANY}"),
    "a cycle": ("a: &a [*a]", "line 1: a recursive alias"),
    "a cycle of mappings": ("a: &b\n  c: {d: *b}", "line 2: a recursive alias"),
    "a merge of itself": ("&a {<<: *a}", "line 1: a recursive alias"),
    "deep": ("[" * 1_000_000, "line 1: more than 100 levels"),
    "deep mappings": ("{a: " * 100_000, "more than 100 levels"),
    "deep lists": ("- " * 100_000, "more than 100 levels"),
    "deep keys": ("? " * 100_000, "more than 100 levels"),
    "a double key": ("a: 1\nb:\n  c: 1\n  c: 2", "line 3: 'c' is there twice"),
    "an integer": ("a: 1" + "0" * 5000, "line 1: an integer of more than 308 digits: 1000"),
    "hexadecimal": ("a: 0x" + "f" * 300, "an integer of more than 308 digits: 0xff"),
    "octal": ("a: 0" + "7" * 100_000, "an integer of more than 308 digits: 0777"),
    "binary": ("a: 0b" + "1" * 100_000, "an integer of more than 308 digits: 0b11"),
    "of sixties": ("a: 1" + ":59" * 100_000, "an integer of more than 308 digits: 1:59"),
    "a number of sixties": ("a: 1" + ":59" * 1000 + ".5", "is not a valid float"),
    "no day": ("a: 2001-99-99", "line 1: '2001-99-99' is not a valid timestamp"),
    "no time": ("a: 0001-01-01 00:00:00 +99:99", "is not a valid timestamp"),
    "a tag": ("a: !!timestamp x", "line 1: 'x' is not a valid timestamp"),
    "no flag": ("a: !!bool x", "line 1: 'x' is not a valid bool"),
    "no number": ("a: !!int ''", "line 1: '' is not a valid int"),
    "NUL": ('a: "x\\0y"', r"line 1: 'x\x00y' has characters that are not UTF-8, or NUL"),
    "NUL as it is": ("a: x\0y", "control characters are not allowed"),
    "a surrogate": ('a: "\\ud800"', "invalid Unicode character"),
    "a surrogate as key": ('"\\ud83d\\ude00": a', "invalid Unicode character"),
    "no character": ('a: "\\U00110000"', "invalid Unicode character"),
    "code": ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a list as key": ("? [a]\n: 1", "unhashable"),
    "no anchor": ("*x", "found undefined alias 'x', line 1"),
    "two documents": ("a: 1\n---\nb: 1", "but found another document"),
    "a merge of text": ("<<: 5", "expected a mapping or list of mappings for merging"),
    "a tab": ("a:\n\t- b", "line 2"),
}
JSON = {
    "deep": ("[" * 1_000_000, "more than 100 levels"),
    "deep mappings": ('{"a":' * 100_000, "more than 100 levels"),
    "deeper than most": ("[" * 150 + "]" * 150, "more than 100 levels"),
    "many values": (f"[{'[],' * 10_000_001}]", "more than 10,000,000 values"),
    "a double key": ('{"a": {"c": 1, "c": 1}}', "'c' is there twice"),
    "an integer": ('{"a": [1%s]}' % ("0" * 400), "a -> 0: an integer of more than 308 digits: 1"),
    "an enormous one": ("1" * 100_000, "an integer of 100,000 digits: 1111"),
    "NUL": ('{"a": {"b": "\\u0000"}}', r"a -> b: '\x00' has characters that are not UTF-8, or NUL"),
    "a surrogate": ('["\\ud800"]', r"0: '\ud800' has characters that are not UTF-8"),
    "a surrogate as key": ('{"\\udfff": 1}', r"a key: '\udfff' has characters that are not UTF-8"),
    "more behind it": ("[1] x", "Extra data: line 1 column 5"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize(
    ("parse", "content", "says"),
    [
        *(
            pytest.param(documents.yaml_of, *case, id=f"yaml: {name}")
            for name, case in YAML.items()
        ),
        *(
            pytest.param(documents.json_of, *case, id=f"json: {name}")
            for name, case in JSON.items()
        ),
    ],
)
def test_what_is_out_of_bounds(parse: Any, content: str, says: str) -> None:
    begun = time.process_time()
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.process_time() - begun < 10


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x85\ufeff")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(values)
def test_what_is_written_is_read(value: Any) -> None:
    assert documents.json_of(json.dumps(value)) == value
    assert documents.json_of(json.dumps(value, ensure_ascii=False)) == value
    text = yaml.safe_dump(value)
    assert documents.yaml_of(text) == yaml.safe_load(text)


def test_anchors_that_are_sound() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: !!set {p, q}\ne: 2001-01-01"
    assert documents.yaml_of(text) == yaml.safe_load(text)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Without waiting, and without memory."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="it is a pipe or a device, not a file"):
            documents.text(path)
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(IsADirectoryError, match=r"^\[Errno 21\] Is a directory$"):
            documents.text(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open
    assert documents.text(Path("/proc/self/cmdline"))  # of which the size is not known
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="it has more than 134,217,728 bytes"):
        documents.text(tmp_path / "huge")
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(1 << 28)))
    with pytest.raises(ValueError, match="it unpacks to more than 134,217,728 bytes"):
        documents.text(tmp_path / "bomb")
    (tmp_path / "cut").write_bytes(gzip.compress(b"{}")[:-5])
    with pytest.raises(ValueError, match="damaged: "):
        documents.text(tmp_path / "cut")
    (tmp_path / "latin").write_bytes("größe".encode("latin-1"))
    with pytest.raises(ValueError, match="can't decode byte"):
        documents.text(tmp_path / "latin")
    (tmp_path / "bom").write_bytes(gzip.compress("\ufeffa".encode()))
    assert documents.text(tmp_path / "bom") == "a"
    with pytest.raises(ValueError, match="more than 32 MiB of YAML; write it as JSON"):
        documents.yaml_of("#" * (1 << 25) + "#")


@pytest.mark.parametrize("name", ["f.json", "f.yaml", "f.yml.gz", "f.json.gz", "fit.yml"])
def test_each_is_one_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for content, _ in (JSON if "json" in name else YAML).values():
        if len(content) < 200_000:
            raw = content.encode("utf-8", "surrogatepass")
            path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
            kind: type[AgcError] = FitError if name == "fit.yml" else FilesetError
            with pytest.raises(kind) as caught:
                load_config(path) if name == "fit.yml" else Fileset.load(path)
            assert str(caught.value).startswith(f"{path}: can't be read as ")
            assert "\n" not in str(caught.value)


def test_memory_and_time() -> None:
    """What comes before a bound; of YAML a tenth of it."""
    code = (
        "import re\n"
        "from agc_ml import documents\n"
        "for parse, text in (\n"
        "    (documents.yaml_of, '[' + '{},' * 99_999),\n"
        "    (documents.json_of, '[' + '[],' * 4_999_998),\n"
        "):\n"
        "    try:\n"
        "        parse(text)\n"
        "    except ValueError as error:\n"
        "        print(re.findall(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[0])\n"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 10
    of_yaml, of_json = (int(line) >> 10 for line in done.stdout.splitlines())
    assert of_yaml < 150  # MiB, of which the libraries have some 40
    assert of_json < 1000


def test_errors_are_no_commands_for_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"\x1b]0;title\x07\u202e": {"x": []}}))
    called = agc("fileset", "show", tmp_path / "f.json")
    assert called.code == 1
    assert called.err.replace("\n", "").isprintable()
    (tmp_path / "f.json").write_text(json.dumps({"x" * 100_000: ["a.root:", "a.root:"]}))
    assert len(agc("fileset", "show", tmp_path / "f.json").err) < 11_000
