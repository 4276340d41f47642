"""`metarec prepare`: read a log, show the funnel, cache the arrays, export the published tables on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarec import build
from metarec.config.compose import config_to_yaml
from metarec.config.schema import PrepareConfig
from metarec.data.prompts import EMBEDDED
from metarec.report.tables import funnel_table, show
from metarec.runs import atomic, rundir
from metarec.runs.lock import hold


def run_prepare(config: PrepareConfig, run_dir: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Prepare, with the record in `run_dir`. Raises MetarecError, leaving nothing in it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with hold(run_dir), rundir.whole_or_nothing(run_dir):
        rundir.write_run_card(run_dir, config_yaml=config_to_yaml(config), overrides=overrides)
        export = Path(config.export).expanduser() if config.export else None
        prepared = build.data(config, config.dataset, lambda line: print(line, flush=True), export)
        show(funnel_table(prepared.funnel, prepared.counts, title=f"{prepared.name}: {prepared.split_note}"))
        atomic.write_json(
            run_dir / "funnel.json",
            {
                "steps": prepared.funnel,
                "counts": prepared.counts,
                "data": str(prepared.root),
                "fingerprint": prepared.fingerprint,
                "vocabulary_sha256": prepared.vocabulary_sha256,
                "episodes_sha256": {split: prepared.episodes(split).sha256 for split in ("train", "val", "test")},
            },
        )
        rundir.seal(run_dir)
    if prepared.root == EMBEDDED:
        print("embedded tasks, made anew from their seed whenever they are read", flush=True)
        return {"run_dir": str(run_dir), "headline": {}}
    print(f"prepared data in {prepared.root}" + (f"; tables in {export}" if export else ""), flush=True)
    return {"run_dir": str(run_dir), "headline": {}}
