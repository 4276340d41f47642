"""Where the YAML files lie."""

from __future__ import annotations

from pathlib import Path

import metarec


def conf_dir() -> Path:
    """The shipped `conf/`: inside the package in a wheel, beside it in a checkout (an editable install)."""
    package = Path(metarec.__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
