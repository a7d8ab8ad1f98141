"""CPython's own tests of the language pass when each of them is an observed call."""

import gc
import importlib
import io
import sys
import unittest

import pytest

from magpy import _C

MODULES = """
    generators genexps listcomps dictviews list dict ordered_dict defaultdict deque tuple slice userdict enumerate iter
    exceptions exception_variations except_star baseexception raise with contextlib
    scope dynamic class super property decorators keywordonlyarg funcattrs isinstance richcmp grammar
    unpack unpack_ex named_expressions patma copy dataclasses
""".split()


def outcome(name: str) -> tuple[int, list[str]]:
    """Number of tests of module test.test_<name>, and those that failed."""
    try:
        module = importlib.import_module(f"test.test_{name}")
    except ImportError:
        pytest.skip("this Python comes without its tests")
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    return result.testsRun, sorted(str(test) for test, _ in result.failures + result.errors)


@pytest.fixture(autouse=True)
def small_collections():
    """Many of these tests collect garbage over and over: what torch and pytest brought is none."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_language_tests_pass_observed(name, monkeypatch):
    expected = outcome(name)
    reasons = []

    def call(self, method):
        reasons.append(_C._observe(method)[1]["reason"])

    monkeypatch.setattr(unittest.TestCase, "_callTestMethod", call)
    assert outcome(name) == expected
    assert reasons
    assert sys.gettrace() is None and gc.isenabled()


@pytest.mark.filterwarnings("ignore")
def test_many_of_them_are_traced_to_the_end(monkeypatch):
    """The others open files, make abstract classes or use traceback: else the tests above would prove little."""
    reasons = []

    def call(self, method):
        reasons.append(_C._observe(method)[1]["reason"])

    monkeypatch.setattr(unittest.TestCase, "_callTestMethod", call)
    outcome("patma")
    assert reasons.count(None) > len(reasons) * 2 / 3
