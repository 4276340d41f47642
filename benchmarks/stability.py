"""How the cells of a finished survey trained, as Markdown, and their loss curves as an SVG that stands alone.

    python benchmarks/stability.py outputs/compare/RUN [--picture curves.svg]

Reads `metarec compare experiment=lora_stability` and its like; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from metarec.report import style
from metarec.report.finished import read_run
from metarec.report.sheet import said
from metarec.report.training import Names, loss_curves, training_rows, training_sheet


def cells_of(survey: Path) -> list[tuple[Names, list[Any]]]:
    """((residual or variant, algorithm), runs by seed) of every cell, in the survey's order."""
    document = json.loads((survey / "survey.json").read_text())
    found = []
    for block in document["blocks"]:
        for row in block["adapted"]:
            stem = "_".join([*block["block"], row["residual"], row["algorithm"]])
            runs = [read_run(survey / "jobs" / f"{stem}_seed{seed}", stem) for seed in document["seeds"]]
            found.append(((row["residual"], row["algorithm"]), runs))
    return found


def main() -> None:
    """Print the table; write the picture where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("survey", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    cells = cells_of(options.survey)
    sheet = training_sheet(training_rows(cells), str(options.survey.name))
    assert sheet is not None
    print("| " + " | ".join([*sheet.columns, "token accuracy", "over control"]) + " |")
    print("|" + "---|" * (len(sheet.columns) + 2))
    for row, (_, runs) in zip(sheet.rows, cells, strict=True):
        accuracy = " ".join(f"{run.document['metrics']['fewshot']['hr@1']:.3f}" for run in runs)
        control = " ".join(
            f"{run.document['metrics']['fewshot']['hr@1'] - run.document['metrics']['control']['hr@1']:+.3f}"
            for run in runs
        )
        print("| " + " | ".join([*map(said, row), accuracy, control]) + " |")
    if options.picture is not None:
        picture = loss_curves(cells)
        assert picture is not None
        colours = "".join(f"--{name}:{value};" for name, value in style.LIGHT.items())
        sheet_of_style = f"svg{{{colours};background:#fff;font-family:sans-serif}}" + "".join(
            line for line in style.style_sheet().splitlines(keepends=True) if line.startswith("svg ")
        )
        svg = str(picture.svg)
        at = svg.index(">") + 1
        options.picture.write_text(svg[:at] + f"<style>{sheet_of_style}</style>" + svg[at:] + "\n")
        print(f"\n{picture.caption}")


if __name__ == "__main__":
    main()
