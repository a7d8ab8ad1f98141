"""A bar chart of steady-state rows: speeds relative to eager, a group of bars per model."""

from __future__ import annotations

from typing import Any

NAMES = {
    "inductor": "Inductor",
    "inductor_freezing": "Inductor freezing",
    "inductor_max_autotune": "Inductor max-autotune",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "magpy": "magpy",
    "magpy_freezing": "magpy freezing",
}


def speeds(row: dict[str, Any]) -> dict[str, float]:
    """How many times faster than eager each contender of a row is, by the rounds' medians."""
    eager = row["vs_eager"]
    others = {name: eager / row[f"vs_{name}"] for name in NAMES if f"vs_{name}" in row}
    return {name: {**others, "magpy": eager}[name] for name in NAMES if name in others or name == "magpy"}


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Write the chart, as SVG or PNG by the name. Raises ImportError where matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    contenders = [name for name in NAMES if any(name in speeds(row) for row in rows)]
    width = 0.8 / len(contenders)
    figure, axes = plt.subplots(figsize=(max(8.0, 0.5 * len(rows)), 4.5))
    for place, contender in enumerate(contenders):
        heights = [speeds(row).get(contender, 0.0) for row in rows]
        left = [i - 0.4 + (place + 0.5) * width for i in range(len(rows))]
        axes.bar(left, heights, width, label=NAMES[contender])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row["model"] for row in rows], rotation=45, ha="right")
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=0.25)  # bars of what is slower than that end at the border
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_ylabel("speed relative to eager")
    same = {(row["threads"], row["dtype"]) for row in rows}
    if len(same) == 1:
        threads, dtype = same.pop()
        axes.set_title(f"Inference, {threads} thread{'s' if threads > 1 else ''}, {dtype}")
    axes.legend(ncols=len(contenders))
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
