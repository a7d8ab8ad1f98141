"""Sources of several sections, compiled side by side."""

import ctypes
import os
import uuid

import pytest

from magpy import _C

SECTIONS = """
#ifndef MP_PARTS
#define MP_PARTS 1
#define MP_PART 0
#endif
#define MP_SECTION(n) ((n) % MP_PARTS == MP_PART)
"""


def source_of(bodies, wanted):
    """A source that is long enough for a process for each section. `wanted`: text that only this test has."""
    filling = "/* " + "x" * 20_000 * len(bodies) + " */\n"
    return f"/* {wanted} */" + SECTIONS + filling + "".join(
        f"#if MP_SECTION({i})\n{body}\n#endif\n" for i, body in enumerate(bodies)
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGPY_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache"


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("sections", [1, 2, 5, 40])
def test_all_sections_are_there_however_many_processes_share_them(cache, sections, cpus):
    if len(os.sched_getaffinity(0)) < cpus:
        pytest.skip("one CPU")
    bodies = [f"int f{i}(void) {{ return {i} * 7; }}" for i in range(sections)]
    bodies[-1] += "".join(f"int f{i}(void);" for i in range(sections))
    bodies[-1] += "int all(void) { return " + " + ".join(f"f{i}()" for i in range(sections)) + "; }"
    text = source_of(bodies, uuid.uuid4())
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(own)[:cpus])
    try:
        path, address = _C._run_load_code(text, "all", sections)
    finally:
        os.sched_setaffinity(0, own)
    assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 7 * sum(range(sections))
    assert os.path.dirname(path) == str(cache)
    assert sorted(name.rpartition(".")[2] for name in os.listdir(cache)) == ["c", "so"]


@pytest.mark.parametrize("broken", range(3))
def test_a_mistake_in_any_section_is_told_and_leaves_nothing_behind(cache, broken):
    bodies = [f"int f{i}(void) {{ return {'none' if i == broken else i}; }}" for i in range(3)]
    with pytest.raises(RuntimeError, match="none"):
        _C._run_load_code(source_of(bodies, uuid.uuid4()), "f0", 3)
    assert os.listdir(cache) == []


def test_sections_that_miss_a_function_of_each_other_do_not_load(cache):
    bodies = ["int f0(void);", "int f0(void); int f1(void) { return f0(); }"]
    with pytest.raises(RuntimeError, match="f0"):
        _C._run_load_code(source_of(bodies, uuid.uuid4()), "f1", 2)
