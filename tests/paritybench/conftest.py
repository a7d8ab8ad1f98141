"""ParityBench's cases as items; the options are in tests/conftest.py, where `pytest tests` finds them as well."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.paritybench.checkout import Record, Runner, as_json, find_items
from tests.paritybench.outcomes import COMPLETE, OUTCOMES, summary_key

LETTERS = {"graph": ".", "tree": "t", "again": "a", "miss": "m", "fallback": "b"}
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
    option = config.getoption
    listed = Path(option("cases")) if option("cases") else None
    items = find_items(folder, option("half"), listed, option("sample"), option("seed"))
    metafunc.parametrize("paritybench_item", items, ids=str)


@pytest.fixture(scope="session")
def paritybench_runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = generated(request.config)
    assert folder is not None
    options = {name: request.config.getoption(name) for name in ("backend", "mode", "seconds", "memory")}
    runner = Runner(folder, tmp_path_factory.mktemp("paritybench"), **options)
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
    option = config.getoption
    terminalreporter.section(f"ParityBench, backend {option('backend')}, {option('mode')}")
    line = terminalreporter.line
    counted = [record for record in records if record.outcome != "skip"]
    by_project: dict[str, set[str]] = {}
    for record in counted:
        by_project.setdefault(record.project, set()).add(record.outcome)
    cases = Counter(record.outcome for record in counted)
    projects = Counter(max(seen, key=OUTCOMES.index) for seen in by_project.values())

    def share(outcomes: tuple[str, ...]) -> str:
        n, m = sum(cases[name] for name in outcomes), sum(projects[name] for name in outcomes)
        of_cases, of_projects = 100 * n / max(1, len(counted)), 100 * m / max(1, len(by_project))
        return f"{n:6} {of_cases:7.2f} % {m:9} {of_projects:7.2f} %"

    line(f"{'':24} {'cases':>16} {'projects (worst)':>20}")
    for name in OUTCOMES:
        if cases[name]:
            line(f"{name:24} {share((name,))}")
    line(f"{'complete: ' + ', '.join(COMPLETE):24} {share(COMPLETE)}")
    line(f"{'skip':24} {len(records) - len(counted):6}")
    reasons = Counter((r.outcome, summary_key(r.reason)) for r in records if r.outcome != "graph")
    for (outcome, reason), count in reasons.most_common(TOP):
        line(f"{count:6} {outcome}: {reason}")
    if path := option("json"):
        names = ("half", "cases", "sample", "seed", "backend", "mode")
        Path(path).write_text(as_json(records, {name: option(name) for name in names}))
