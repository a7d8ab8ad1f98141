"""ParityBench's cases as items; the options are in tests/conftest.py, where `pytest tests` finds them as well."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.paritybench.checkout import Record, Runner, as_json, find_items
from tests.paritybench.outcomes import summary_key

LETTERS = {"graph": ".", "fallback": "b", "miss": "m"}
RECORDS = pytest.StashKey[list[Record]]()
TOP = 15  # reasons shown


def generated(config: pytest.Config) -> Path | None:
    folder = config.getoption("paritybench")
    return Path(folder) / "generated" if folder else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_cases.py" and not generated(config) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "paritybench_item" not in metafunc.fixturenames:
        return
    config = metafunc.config
    folder = generated(config)
    if folder is None or not folder.is_dir():
        raise pytest.UsageError(f"--paritybench: there is no folder {folder}")
    items = find_items(folder, config.getoption("half"), config.getoption("sample"), config.getoption("seed"))
    metafunc.parametrize("paritybench_item", items, ids=str)


@pytest.fixture(scope="session")
def paritybench_runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = generated(request.config)
    assert folder is not None
    runner = Runner(folder, request.config.getoption("backend"), tmp_path_factory.mktemp("paritybench"))
    yield runner
    runner.close()


@pytest.fixture
def record_outcome(request: pytest.FixtureRequest):
    """Keep a record for the summary."""
    records = request.config.stash.setdefault(RECORDS, [])

    def keep(record: Record) -> None:
        records.append(record)
        request.node.user_properties.append(("paritybench", record.outcome))

    return keep


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    outcome = dict(getattr(report, "user_properties", ())).get("paritybench")
    if outcome in LETTERS and report.when == "call" and report.passed:
        return outcome, LETTERS[outcome], outcome.upper()
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = config.stash.get(RECORDS, [])
    if not records:
        return
    terminalreporter.section(f"ParityBench, backend {config.getoption('backend')}")
    counted = [record for record in records if record.outcome != "skip"]
    outcomes = Counter(record.outcome for record in counted)
    for outcome, count in outcomes.most_common():
        terminalreporter.line(f"{count:6} cases {100 * count / len(counted):6.2f} %  {outcome}")
    terminalreporter.line(f"{len(records) - len(counted):6} cases           skip")
    by_project: dict[str, set[str]] = {}
    for record in counted:
        by_project.setdefault(record.project, set()).add(record.outcome)
    worst_first = ("error", "wrong", "fallback", "miss", "graph")
    projects = Counter(next(o for o in worst_first if o in seen) for seen in by_project.values())
    for outcome, count in projects.most_common():
        terminalreporter.line(f"{count:6} projects {100 * count / len(by_project):6.2f} %  {outcome} at worst")
    reasons = Counter((r.outcome, summary_key(r.reason)) for r in records if r.outcome != "graph")
    for (outcome, reason), count in reasons.most_common(TOP):
        terminalreporter.line(f"{count:6} {outcome}: {reason}")
    if path := config.getoption("paritybench_json"):
        names = ("half", "sample", "seed", "backend")
        Path(path).write_text(as_json(records, {name: config.getoption(name) for name in names}))
