"""`metarec report RUN...`: finished runs as one page that opens from disk, with their tables beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarec.config.reading import Report as Options
from metarec.errors import EnvironmentFault
from metarec.report.finished import read_runs
from metarec.report.pages import report as page_of
from metarec.runs import atomic
from metarec.verbs.compare_runs import own_directory, usual


def run_report(words: Sequence[str], options: Options, overrides: Sequence[str]) -> Path:
    """Write the page (and its Markdown and LaTeX, as asked) and return the path of the first of them."""
    runs = read_runs(words, options.metric)
    report = page_of(runs, defaults=usual, metric=options.metric, methods=options.methods, against=options.against)
    made = {"html": report.html, "md": report.markdown, "tex": report.latex}
    texts = {form: made[form]() for form in dict.fromkeys(options.formats)}
    if options.output is None:
        with own_directory(words, options, "report", overrides) as directory:
            paths = [_written(directory / f"report.{form}", text) for form, text in texts.items()]
    else:
        page = Path(options.output)
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(
                page.parent, error.strerror, "cannot be made", "give another output=FILE.html"
            ) from error
        places = {form: page if form == "html" else page.with_suffix(f".{form}") for form in texts}
        paths = [_written(places[form], text) for form, text in texts.items()]
    print(f"report of {len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(map(str, paths))}", flush=True)
    return paths[0]


def _written(path: Path, text: str) -> Path:
    atomic.write_text(path, text)
    return path
