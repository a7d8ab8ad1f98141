"""ParityBench's files and cases, found without importing them, and the client of the processes that run them."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Item:
    """One case of a file."""

    path: str
    number: int
    name: str

    @property
    def project(self) -> str:
        return Path(self.path).stem

    def __str__(self) -> str:
        return f"{self.project.removeprefix('test_')}-{self.number:03}-{self.name}"


@dataclass
class Record:
    """What became of one case."""

    project: str
    number: int
    name: str
    outcome: str
    reason: str
    seconds: float


def in_half(name: str, half: str) -> bool:
    """Whether a file belongs to `half`: the development half has names whose SHA-1 starts with 0 to 7."""
    return half == "all" or (hashlib.sha1(name.encode()).hexdigest()[0] in "01234567") == (half == "dev")


def find_items(generated: Path, half: str, listed: Path | None, sample: int | None, seed: int) -> list[Item]:
    """The cases of `generated`/test_*.py, in order of files; of these only those that a file lists (`read_list`);
    `sample` of them, drawn with `seed`."""
    wanted = read_list(listed) if listed else None
    items = []
    for path in sorted(generated.glob("test_*.py")):
        if in_half(path.name, half) and (wanted is None or path.stem in wanted):
            names = case_names(path.read_text())
            numbers = range(len(names)) if wanted is None else sorted(wanted[path.stem] & set(range(len(names))))
            items += [Item(str(path), number, names[number]) for number in numbers]
    if sample is not None and sample < len(items):
        items = [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), sample))]
    return items


def read_list(path: Path) -> dict[str, set[int]]:
    """Numbers of cases by project: from an earlier run's JSON, or tab-separated with columns `file` and `index`."""
    wanted: dict[str, set[int]] = {}
    text = path.read_text()
    if path.suffix == ".json":
        pairs = [(case["project"], case["number"]) for case in json.loads(text)["cases"]]
    else:
        pairs = [(row["file"], row["index"]) for row in csv.DictReader(text.splitlines(), delimiter="\t")]
    for project, number in pairs:
        wanted.setdefault(project, set()).add(int(number))
    return wanted


def case_names(source: str) -> list[str]:
    """The module of each case of the list TESTCASES, which is literal and ends a line by itself."""
    found = re.search(r"^TESTCASES = (\[\n.*?^\])$", source, re.MULTILINE | re.DOTALL)
    if not found:
        return []
    cases = ast.parse(found[1], mode="eval").body
    assert isinstance(cases, ast.List)
    return [ast.unparse(case.elts[0]) if isinstance(case, ast.Tuple) else "?" for case in cases.elts]


class Runner:
    """Runs items in processes of their own; the file of the last item stays imported."""

    def __init__(
        self, generated: Path, scratch: Path, *, backend: str, mode: str, seconds: float, memory: float
    ) -> None:
        """`seconds` is for the import of a file, and for one case; `memory` the GiB of address space of a case."""
        self.backend, self.mode = backend, mode
        self.opened: str | None = None
        self.import_failure: str | None = None
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
        limits = [str(generated.resolve()), str(seconds), str(int(memory * 2**30))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.paritybench.zygote", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=scratch,  # programs write files
        )

    def ask(self, request: dict[str, Any], answered: bool = True) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        if not answered:
            return {}
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts cases has died")
        return json.loads(line)

    def run(self, item: Item) -> Record:
        if self.opened != item.path:
            if self.opened:
                self.ask({"close": True}, answered=False)
            self.opened = item.path
            answer = self.ask({"open": str(Path(item.path).resolve())})
            self.import_failure = None if answer["imported"] else f"import: {answer['reason']}"
        if self.import_failure:
            answer = {"outcome": "skip", "reason": self.import_failure, "seconds": 0.0}
        else:
            answer = self.ask({"case": item.number, "backend": self.backend, "mode": self.mode})
        return Record(item.project, item.number, item.name, answer["outcome"], answer["reason"], answer["seconds"])

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def as_json(records: list[Record], options: dict[str, Any]) -> str:
    return json.dumps({"options": options, "cases": [asdict(record) for record in records]}, indent=1)
