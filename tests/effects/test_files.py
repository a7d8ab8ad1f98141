"""Files that a call writes: opened, written and closed at the commit, in the program's order. Each scenario runs in
plain Python and compiled, in directories of the same content, and must note the same."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.traps.differential import Wrap, attempt, same_as_eager

Program = Callable[[torch.Tensor, str], Any]


def appended(x: torch.Tensor, path: str) -> torch.Tensor:
    with open(path, "a") as file:
        file.write(f"shape {tuple(x.shape)}\n")
        print("and more", len(x), file=file)
        file.writelines(["a\n", "b\n"])
    return x * 2


def rewritten(x: torch.Tensor, path: str) -> Any:
    file = open(path, mode="w", encoding="utf-8")  # noqa: SIM115
    count = file.write("é")
    file.flush()
    file.close()
    return x + count, file.closed


def never_closed(x: torch.Tensor, path: str) -> torch.Tensor:
    open(path, "w").write("left to the collector")  # noqa: SIM115
    return x * 2


def in_bytes(x: torch.Tensor, path: str) -> torch.Tensor:
    with open(path, "ab") as file:
        file.write(b"\0\1")
    return x * 2


def as_csv(x: torch.Tensor, path: str) -> torch.Tensor:
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", 1, x.shape[0]])
        writer.writerows([[1, 2], [3, None]])
    return x * 2


def as_json(x: torch.Tensor, path: str) -> torch.Tensor:
    with open(path, "w") as file:
        json.dump({"sizes": list(x.shape), "name": "é"}, file, indent=1)
    return x * 2


def with_data(x: torch.Tensor, path: str) -> torch.Tensor:
    with open(path, "a") as file:
        if (x > 2).any():
            file.write("large\n")
        print("sum", x.sum().item(), file=file)
    return x * 2


def two_files(x: torch.Tensor, path: str) -> torch.Tensor:
    with open(path, "w") as first, open(path + ".2", "w") as second:
        first.write("1")
        second.write("2")
        first.write("3")
    return x * 2


def looked_at_after(x: torch.Tensor, path: str) -> Any:
    with open(path, "a") as file:
        file.write("more")
    return x * 2, os.path.getsize(path)


def with_an_error(x: torch.Tensor, path: str) -> Any:
    try:
        with open(path, "a") as file:
            file.write("before")
            raise KeyError("stop")
    except KeyError as error:
        return x * 2, str(error)


def may_fail(x: torch.Tensor, path: str) -> Any:
    try:
        with open(path, "w") as file:
            file.write("here")
    except OSError as error:
        return x - 1, type(error)
    return x * 2


def given_away(x: torch.Tensor, path: str) -> Any:
    file = open(path, "a")  # noqa: SIM115
    file.write("x")
    return x * 2, file


# the program, and the least number of hits in 5 calls
PROGRAMS: list[tuple[Program, int]] = [
    (appended, 4),
    (rewritten, 4),
    (never_closed, 4),
    (in_bytes, 4),
    (as_csv, 4),
    (as_json, 4),
    (with_data, 3),
    (two_files, 4),
    (looked_at_after, 0),
    (with_an_error, 0),
    (may_fail, 4),
]


def contents(directory: Path) -> list[tuple[str, bytes]]:
    return [(p.name, p.read_bytes()) for p in sorted(directory.iterdir()) if p.is_file()]


@pytest.mark.parametrize(("program", "hits"), PROGRAMS, ids=[program.__name__ for program, _ in PROGRAMS])
def test_written_files(program: Program, hits: int, tmp_path: Path) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        function = wrap(program)
        for i in (0, 1, 2, 1, 0):
            yield function(torch.ones(3) * i, str(tmp_path / "file")), contents(tmp_path)

    same_as_eager(scenario, min_hits=hits)


def test_a_file_that_is_given_away(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    function = torch.compile(given_away, backend="magpy")
    for i in range(1, 4):
        result, file = function(torch.ones(3), path)
        file.write("y")
        file.close()
        assert Path(path).read_text() == "xy" * i
        assert result.tolist() == [2.0] * 3


class TestWhatCannotBeOpened:
    """Files that a later call cannot open: eager's exception, and nothing else has happened."""

    @pytest.mark.parametrize("how", ["directory", "no directory"])
    @pytest.mark.parametrize("program", [appended, may_fail])
    def test_later(self, program: Program, how: str, tmp_path: Path) -> None:
        def scenario(wrap: Wrap) -> Iterator[Any]:
            shutil.rmtree(tmp_path)
            inside = tmp_path / "inside"
            inside.mkdir(parents=True)
            seen: list[int] = []

            def counted(x: torch.Tensor, path: str) -> Any:
                seen.append(1)
                return program(x, path)

            function = wrap(counted)
            path = str(inside / "file")
            for _ in range(2):
                yield function(torch.ones(3), path), contents(inside)
            shutil.rmtree(inside)
            if how == "directory":
                (inside / "file").mkdir(parents=True)
            yield attempt(function, torch.ones(3), path), list(seen)
            shutil.rmtree(inside, ignore_errors=True)
            inside.mkdir()
            yield function(torch.ones(3), path), contents(inside), list(seen)

        same_as_eager(scenario, min_hits=1)


def test_order_among_other_effects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "file")

    def program(x: torch.Tensor) -> torch.Tensor:
        print("before")
        with open(path, "w") as file:
            file.write("first")
        print("after", file=sys.stderr)
        with open(path, "a") as file:
            file.write(" second")
        return x * 2

    function = torch.compile(program, backend="magpy")
    for _ in range(3):
        function(torch.ones(3))
        assert Path(path).read_text() == "first second"
        assert capsys.readouterr() == ("before\n", "after\n")
        os.remove(path)


def test_files_are_closed_and_let_go(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    function = torch.compile(appended, backend="magpy")
    for _ in range(3):
        function(torch.ones(3), path)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(50):
        function(torch.ones(3), path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


# -- Files that are read ---------------------------------------------------------------------------------------------


def read_text(x: torch.Tensor, path: str) -> Any:
    with open(path) as file:
        return x * 2, file.read(), file.closed


def read_lines(x: torch.Tensor, path: str) -> Any:
    lines = []
    with open(path, encoding="utf-8") as file:
        first = file.readline()
        for line in file:
            lines.append(line)
        file.seek(0)
        return x * len(first), lines, file.readlines()


def read_bytes(x: torch.Tensor, path: str) -> Any:
    file = open(path, "rb")  # noqa: SIM115
    data = file.read(2), file.tell(), file.read()
    file.close()
    return x * 2, data


def read_json(x: torch.Tensor, path: str) -> Any:
    with open(path) as file:
        return x * len(json.load(file))


def read_csv(x: torch.Tensor, path: str) -> Any:
    with open(path, newline="") as file:
        return x * 2, list(csv.reader(file)), sum(1 for _ in csv.DictReader(["a,b", "1,2"]))


def read_with_pathlib(x: torch.Tensor, path: str) -> Any:
    return x * 2, Path(path).read_text()


def read_or_else(x: torch.Tensor, path: str) -> Any:
    try:
        with open(path) as file:
            return x * 2, file.read()
    except OSError as error:
        return x, type(error)


def listed(x: torch.Tensor, path: str) -> Any:
    return x * len(os.listdir(os.path.dirname(path))), sorted(os.listdir(os.path.dirname(path)))


READERS = [read_text, read_lines, read_bytes, read_json, read_csv, read_with_pathlib, read_or_else, listed]


@pytest.mark.parametrize("program", READERS, ids=[program.__name__ for program in READERS])
def test_read_files(program: Program, tmp_path: Path) -> None:
    def scenario(wrap: Wrap) -> Iterator[Any]:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        path = tmp_path / "file"
        function = wrap(program)
        for text in ("[1, 2]\n[3]", "[1, 2]\n[3]", "[1, 2]\n[4]", "[1, 2]\n[3]"):
            path.write_text(text if program is not read_json else text.replace("\n", ",").join("[]"))
            os.utime(path, (1, 1))  # neither size nor time tell that the content is another
            yield attempt(function, torch.ones(3), str(path))
        (tmp_path / "other").write_text("")
        yield attempt(function, torch.ones(3), str(path))
        path.unlink()
        yield type(attempt(function, torch.ones(3), str(path)))

    same_as_eager(scenario, min_hits=2)


def test_arrays_that_are_read(tmp_path: Path) -> None:
    path = str(tmp_path / "array.npy")

    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(lambda x: x * torch.from_numpy(np.load(path)).sum())
        for value in (1.0, 1.0, 2.0):
            np.save(path, np.full(3, value))
            yield function(torch.ones(3))

    same_as_eager(scenario, hits=1)


def test_a_file_that_is_written_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "file")

    def program(x: torch.Tensor) -> Any:
        with open(path, "w") as file:
            file.write("written")
        with open(path) as file:
            return x * 2, file.read()

    def scenario(wrap: Wrap) -> Iterator[Any]:
        function = wrap(program)
        for _ in range(3):
            yield function(torch.ones(3))

    same_as_eager(scenario)


def test_a_file_from_outside_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1\n2\n3\n")

    def scenario(wrap: Wrap) -> Iterator[Any]:
        with path.open() as file:
            function = wrap(lambda x: (x * 2, file.readline()))
            for _ in range(3):
                yield function(torch.ones(3))

    same_as_eager(scenario)
