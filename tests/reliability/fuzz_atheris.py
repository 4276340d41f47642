"""The same readers under atheris, which looks for inputs by coverage: for a long night, and not needed by any test.

    pip install 'metarec[fuzz]'
    PYTHONPATH=tests python tests/reliability/fuzz_atheris.py csv -max_total_time=3600    or another kind of FULL

A good input of each kind is written to a temporary directory as the first of the corpus. What raises anything but one line
of metarec's own is kept by atheris as crash-<digest>.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fuzz the kind that is named first."""
    import atheris

    kind, *options = sys.argv[1:] or ["csv"]
    with atheris.instrument_imports(include=["metarec"]):
        from reliability.fuzz_readers import ORIGINALS, read

        from metarec.errors import MetarecError

    folder = Path(tempfile.mkdtemp(prefix="metarec-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(ORIGINALS[kind])

    def one(data: bytes) -> None:
        try:
            read(kind, folder / f"x.{'json' if kind == 'manifest' else kind}", data)
        except MetarecError as error:
            line = str(error)
            if "\n" in line or " -- " not in line:
                raise AssertionError(f"not one line: {line!r}") from error

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
