"""The kernel cache is private, verified, bounded and dispensable. Each case runs in processes of its own."""

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

SOURCE = "int answer(void) { return 42; }"
LOAD = f"""
import ctypes, logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(name)s: %(message)s")
from magpy import _C
def load(source={SOURCE!r}):
    path, address = _C._run_load_code(source, "answer")
    return path, ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
ROOT = Path(__file__).parents[2]


def start(code, **env):
    merged = {**os.environ, "PYTHONPATH": str(ROOT), **{k: str(v) for k, v in env.items()}}
    merged = {k: v for k, v in merged.items() if v != "UNSET"}
    return subprocess.Popen(
        [sys.executable, "-c", LOAD + textwrap.dedent(code)],
        env=merged,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(code="print(load())", **env):
    process = start(code, **env)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    return out


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def objects(cache):
    return sorted(cache.glob("*.so"))


def counting_compiler(tmp_path):
    """A compiler that notes each time it is run."""
    log, script = tmp_path / "compilations", tmp_path / "counting-cc"
    script.write_text(f'#!/bin/sh\necho run >> {log}\nexec cc "$@"\n')
    script.chmod(0o755)
    return script, lambda: log.read_text().count("run") if log.exists() else 0


def test_compiled_once_and_kept_with_its_source(cache, tmp_path):
    cc, count = counting_compiler(tmp_path)
    for _ in range(2):
        assert "42" in run(MAGPY_CACHE_DIR=cache, CC=cc)
    assert count() == 1
    assert [p.suffix for p in sorted(cache.iterdir())] == [".c", ".so"]
    assert next(cache.glob("*.c")).read_text() == SOURCE
    assert cache.stat().st_mode & 0o777 == 0o700
    assert all(p.stat().st_mode & 0o077 == 0 for p in cache.iterdir())


def test_the_place_is_the_xdg_cache_directory(tmp_path):
    ask = "print(_C.cache_dir())"
    assert run(ask, MAGPY_CACHE_DIR="UNSET", XDG_CACHE_HOME=tmp_path).strip() == str(tmp_path / "magpy")
    home = run(ask, MAGPY_CACHE_DIR="UNSET", XDG_CACHE_HOME="UNSET", HOME=tmp_path).strip()
    assert home == str(tmp_path / ".cache" / "magpy")


def damaged(data):
    return bytes(data[:200]) + bytes([data[200] ^ 1]) + bytes(data[201:])


@pytest.mark.parametrize(
    "spoil", [damaged, lambda d: d[:-1], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"not ours" * 1000]
)
def test_a_spoiled_object_is_made_again(cache, tmp_path, spoil):
    cc, count = counting_compiler(tmp_path)
    run(MAGPY_CACHE_DIR=cache, CC=cc)
    (made,) = objects(cache)
    good = made.read_bytes()
    made.write_bytes(spoil(good))
    assert "42" in run(MAGPY_CACHE_DIR=cache, CC=cc)
    assert count() == 2
    assert "42" in run(MAGPY_CACHE_DIR=cache, CC=cc)
    assert count() == 2  # whole again


def test_an_object_of_another_source_is_not_taken(cache):
    run(MAGPY_CACHE_DIR=cache)
    (first,) = objects(cache)
    other = 'load("int answer(void) { return 7; }")'
    run(other, MAGPY_CACHE_DIR=cache)
    (second,) = set(objects(cache)) - {first}
    second.write_bytes(first.read_bytes())
    assert ", 7)" in run(f"print({other})", MAGPY_CACHE_DIR=cache)


def test_an_object_that_others_may_write_to_is_not_loaded(cache, tmp_path):
    cc, count = counting_compiler(tmp_path)
    run(MAGPY_CACHE_DIR=cache, CC=cc)
    objects(cache)[0].chmod(0o666)
    assert "42" in run(MAGPY_CACHE_DIR=cache, CC=cc)
    assert count() == 2


def test_a_linked_object_is_not_loaded(cache, tmp_path):
    cc, count = counting_compiler(tmp_path)
    run(MAGPY_CACHE_DIR=cache, CC=cc)
    (made,) = objects(cache)
    made.rename(tmp_path / "elsewhere.so")
    made.symlink_to(tmp_path / "elsewhere.so")
    assert "42" in run(MAGPY_CACHE_DIR=cache, CC=cc)
    assert count() == 2 and not made.is_symlink()


def unusable(out, cache, why):
    assert "42" in out and "('', 42)" in out  # works, and keeps nothing
    assert f"magpy: the kernel cache {cache} is not used: {why}" in out


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to_is_not_used(cache, mode):
    cache.mkdir()
    cache.chmod(mode)
    unusable(run(MAGPY_CACHE_DIR=cache), cache, "others may write to it")
    assert not list(cache.iterdir())


def test_a_linked_directory_is_not_used(cache, tmp_path):
    (tmp_path / "target").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "target")
    unusable(run(MAGPY_CACHE_DIR=cache), cache, "it is not a directory")
    unusable(run(MAGPY_CACHE_DIR=f"{cache}/"), f"{cache}/", "it is not a directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_of_another_user_is_not_used(cache):
    cache.mkdir(mode=0o700)
    os.chown(cache, 12345, 12345)
    unusable(run(MAGPY_CACHE_DIR=cache), cache, "it belongs to another user")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_object_of_another_user_is_not_loaded(cache, tmp_path):
    cc, count = counting_compiler(tmp_path)
    run(MAGPY_CACHE_DIR=cache, CC=cc)
    os.chown(objects(cache)[0], 12345, 12345)
    assert "42" in run(MAGPY_CACHE_DIR=cache, CC=cc)
    assert count() == 2


def test_a_place_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    unusable(run(MAGPY_CACHE_DIR=tmp_path / "file" / "cache"), tmp_path / "file" / "cache", "it cannot be made")


def test_no_home(tmp_path):
    out = run(MAGPY_CACHE_DIR="UNSET", XDG_CACHE_HOME="UNSET", HOME="UNSET")
    assert "('', 42)" in out and "no home directory" in out


def test_a_read_only_directory_still_serves_what_is_in_it():
    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:
        Path(open_to_all).chmod(0o755)
        cache = Path(open_to_all, "cache")
        run(MAGPY_CACHE_DIR=cache)
        cache.chmod(0o500)
        drop = ""
        if os.geteuid() == 0:  # root writes everywhere: look at it as a user whose directory it is
            drop = "import hashlib, os; os.setegid(65534); os.seteuid(65534)\n"
            for path in [cache, *cache.iterdir()]:
                os.chown(path, 65534, 65534)
        code = drop + 'print(load()); print(load("int answer(void) { return 8; }"))'
        out = run(code, MAGPY_CACHE_DIR=cache, TMPDIR="/tmp")
        assert ".c', 42)" in out and "('', 8)" in out
        assert len(objects(cache)) == 1


def test_many_writers_at_once(cache):
    code = "print([load(f'int answer(void) {{ return {i}; }}')[1] for i in range(4)])"
    processes = [start(code, MAGPY_CACHE_DIR=cache) for _ in range(4)]
    for process in processes:
        assert "[0, 1, 2, 3]" in process.communicate(timeout=120)[0]
    assert len(objects(cache)) == 4 and not list(cache.glob("*.tmp.*"))


def test_deleted_while_in_use(cache):
    code = """
    import shutil
    print(load()[1])
    shutil.rmtree(_C.cache_dir())
    print(load()[1], load("int answer(void) { return 9; }")[1])
    """
    assert run(code, MAGPY_CACHE_DIR=cache).split() == ["42", "42", "9"]
    assert len(objects(cache)) == 2


def test_the_least_recently_used_goes_first(cache):
    code = """
    import os, sys
    for i in range(6):
        path, _ = load(f"int answer(void) {{ return {i}; }}")
        for p in (path, path[:-1] + "so"): os.utime(p, (1000 + i, 1000 + i))
        if i == 2: load("int answer(void) { return 0; }")  # used again: now
    """
    run(code, MAGPY_CACHE_DIR=cache)
    sizes = sum(p.stat().st_size for p in cache.iterdir())
    newest = max(p.stat().st_mtime for p in objects(cache))
    run('load("int answer(void) { return 99; }")', MAGPY_CACHE_DIR=cache, MAGPY_CACHE_LIMIT=sizes // 2)
    left = objects(cache)
    assert 1 < len(left) < 6 and sum(p.stat().st_size for p in cache.iterdir()) <= sizes // 2
    assert max(p.stat().st_mtime for p in left) >= newest  # the one that was used again is there
    assert any("99" in p.read_text() for p in cache.glob("*.c"))


def test_abandoned_files_are_removed_and_foreign_ones_left(cache):
    cache.mkdir(mode=0o700)
    old, young = (cache / f"{'0' * 32}.1.{i}.tmp.so" for i in range(2))
    foreign = cache / "notes.txt"
    for path in (old, young, foreign):
        path.write_text("x")
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    run(MAGPY_CACHE_DIR=cache, MAGPY_CACHE_LIMIT=0)
    assert not old.exists() and young.exists() and foreign.exists()


@pytest.mark.parametrize(
    "env", [{"PATH": "", "CC": "UNSET"}, {"CC": "/bin/false"}, {"CC": "/nonexistent", "PATH": "/nowhere"}]
)
def test_without_a_compiler_there_is_one_warning(cache, env):
    code = """
    for _ in range(3):
        try: load()
        except RuntimeError as e: print("said:", e)
    """
    out = run(code, MAGPY_CACHE_DIR=cache, **env)
    assert out.count("said: no working C compiler was found") == 3
    assert out.count("magpy: ") == 1 and "operator by operator" in out


def test_source_that_does_not_compile(cache):
    code = """
    try: load("int answer(void) { return }")
    except RuntimeError as e: print("said:", e)
    print(load())
    """
    out = run(code, MAGPY_CACHE_DIR=cache)
    assert "said: the C compiler failed" in out and "error: expected expression" in out and ", 42)" in out
    assert len(list(cache.iterdir())) == 2


def test_the_compiler_may_have_arguments_and_gets_no_shell(cache, tmp_path):
    code = "print(load('int answer(void) { return EXTRA; }'))"
    out = run(code, MAGPY_CACHE_DIR=cache, CC="cc -DEXTRA=5")
    assert ", 5)" in out
    run(MAGPY_CACHE_DIR=cache, CC=f"cc; touch {tmp_path}/harm")
    assert not (tmp_path / "harm").exists()
