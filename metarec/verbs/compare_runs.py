"""`metarec compare RUN...`: finished runs in one table, measured again from their per-user figures; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metarec.config.arguments import new_directory
from metarec.config.check import raise_all
from metarec.config.compose import values_to_yaml
from metarec.config.fields import group_schema
from metarec.config.reading import CompareRuns, Reading
from metarec.report.comparison import comparison
from metarec.report.comparison_text import comparison_latex, comparison_markdown, comparison_table
from metarec.report.finished import read_runs
from metarec.report.protocol import refusals
from metarec.report.tables import show
from metarec.runs import atomic, rundir

Json = dict[str, Any]


def compare_runs(words: Sequence[str], options: CompareRuns, overrides: Sequence[str]) -> Path:
    """Write comparison.json, .md and .tex to a directory of their own and print the table; returns the directory."""
    runs = read_runs(words, options.metric)
    raise_all(refusals(runs))
    document = comparison(runs, defaults=usual, metric=options.metric, methods=options.methods, against=options.against)
    with own_directory(words, options, "compare", overrides) as directory:
        write(directory, document)
    show(comparison_table(document))
    print(f"comparison of {len(runs)} runs in {directory}: comparison.json, .md, .tex", flush=True)
    return directory


@contextmanager
def own_directory(words: Sequence[str], options: Reading, verb: str, overrides: Sequence[str]) -> Iterator[Path]:
    """A sealed directory OUTPUT_DIR/VERB/STAMP with what the block writes into it, or none where the block fails."""
    directory = new_directory(options.output_dir, verb)
    try:
        with rundir.whole_or_nothing(directory):
            asked = values_to_yaml({"runs": list(words), **asdict(options)})
            rundir.write_run_card(directory, config_yaml=asked, overrides=overrides)
            yield directory
            rundir.seal(directory)
    except BaseException:
        directory.rmdir()
        raise


def write(directory: Path, document: Json) -> None:
    """The three files of a comparison."""
    atomic.write_json(directory / "comparison.json", document)
    atomic.write_text(directory / "comparison.md", comparison_markdown(document))
    atomic.write_text(directory / "comparison.tex", comparison_latex(document))


def usual(group: str, name: str) -> Mapping[str, Any]:
    """The options of a group's alternative as they come; none for one that this metarec does not know."""
    schema = group_schema(group, name)
    return {} if schema is None else asdict(schema())
