"""Shared by all tests: a private kernel cache, one thread, and options."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MAGPY_CACHE_DIR", tempfile.mkdtemp(prefix="magpy-test-cache-"))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, those of tests/paritybench among them: pytest reads options before it finds that folder."""
    parser.addoption(
        "--spread", type=int, metavar="N", help="of a test with more than N sets of parameters, only N of them"
    )
    group = parser.getgroup("paritybench", "ParityBench's cases")
    group.addoption("--paritybench", metavar="DIR", help="a checkout; the cases of its generated/ become tests")
    group.addoption("--half", choices=("dev", "held", "all"), default="dev", help="files by the hash of their names")
    group.addoption("--cases", metavar="FILE", help="only those listed there: JSON of an earlier run, or a table (TSV)")
    group.addoption("--sample", type=int, metavar="N", help="only N cases, drawn at random")
    group.addoption("--seed", type=int, default=0, metavar="S", help="of --sample")
    group.addoption("--backend", default="magpy", help='"magpy"; "dynamo" is fullgraph=True without a compiler')
    modes = ("inference", "gradients", "training")
    group.addoption("--mode", choices=modes, default=modes[0], help="with gradients compared, or also in training mode")
    group.addoption("--seconds", type=float, default=120, help="limit for the import of a file, and for one case")
    group.addoption("--memory", type=float, default=12, metavar="GIB", help="limit of address space for one case")
    group.addoption("--json", metavar="FILE", help="write each case's outcome there")
    group.addoption("--paritybench-strict", action="store_true", help="what is not a complete graph is a failure")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--spread: the sets of parameters that stay lie evenly among all of a test's."""
    most = config.getoption("--spread")
    if not most:
        return
    stay: list[pytest.Item] = []
    for _, some in itertools.groupby(items, lambda item: item.nodeid.partition("[")[0]):
        sets = [*some]
        n = min(most, len(sets))
        stay += [sets[i * len(sets) // n] for i in range(n)]
    taken = {*stay}
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = stay


@pytest.fixture(autouse=True)
def clean_state():
    """Every test starts without traces and under one seed, and must leave torch's modes as it found them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    assert torch.is_grad_enabled(), "a test left grad mode off"
    assert sys.gettrace() is None, "a test left a tracer behind"
