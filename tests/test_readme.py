"""The README says what is so: its short commands run, its long ones compose.

`<!-- first -->` and `<!-- test -->` mark the two installing commands, `<!-- run -->` a block that is executed here with
tiny budgets. In a command, RUN stands for a run directory of an earlier one, and a file that is read but not there is
made.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from reference.tiny_runs import tiny

from metarec.config.overrides import check_words
from metarec.config.reading import parse_reading, reads_runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^<!-- (?P<mark>\w+) -->\n)?^```bash\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(*marks: str | None) -> list[str]:
    """The command lines of the blocks with one of these marks; a line ending in a backslash goes on."""
    found = []
    for block in BLOCK.finditer(README):
        if block["mark"] in marks:
            lines = block["body"].replace("\\\n", " ").splitlines()
            found += [line.partition(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return found


def one(mark: str) -> str:
    (command,) = commands(mark)
    return command


def test_the_first_command_installs_and_runs_the_main_job() -> None:
    assert re.fullmatch(r'pip install -c constraints\.txt "\.(\[plot\])?" && metarec train', one("first"))


def test_the_second_command_installs_and_tests() -> None:
    assert re.fullmatch(r'pip install -c constraints\.txt (-e )?"\.\[test\]" && python -m pytest.*', one("test"))


def test_there_are_commands_to_run_and_to_compose() -> None:
    assert commands("run")
    assert any("-m" in line.split() for line in [*commands("run"), *commands(None)])
    assert any(line.startswith("metarec eval ckpt=") for line in commands(None))


@pytest.mark.parametrize("line", [line for line in commands(None) if line.startswith("metarec ")])
def test_a_command_composes(line: str) -> None:
    """`--cfg job` does not go with -m, resume or files that are not there, so the check behind it is asked."""
    _, verb, *words = shlex.split(line)
    if any(word.startswith("-") and word != "-m" for word in words) or any(w.startswith("resume=") for w in words):
        pytest.skip("nothing to compose")
    if reads_runs(verb, words):
        assert parse_reading(verb, words)[0]
        return
    jobs = check_words(verb, [w for w in words if w != "-m"], multirun="-m" in words, rules=False).jobs
    assert jobs


@pytest.mark.parametrize(
    "line", [line for line in commands(None) if re.match(r"metarec (train|prepare) (?!.*(-m|--|resume=))", line)][:1]
)
def test_the_first_command_of_ones_own_log_is_shown_by_cfg_job(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(line), "--cfg", "job"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "path: log.csv" in done.stdout


@pytest.mark.parametrize("line", commands("run"))
def test_a_command_runs(line: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("readme")
    words = shlex.split(line)
    assert words[0] == "metarec"
    if words[1] == "train":
        words += tiny(*words)
    elif any(word.startswith("dataset.world") for word in words):
        words += ["dataset.world.n_users=300"]
    for word in words:
        if word.startswith("dataset.path="):
            write_log(folder / word.partition("=")[2])
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"METAREC_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "outputs" / words[1]).iterdir()
    assert (made / ("sweep.json" if "-m" in words else "manifest.json")).exists()


def write_log(path: Path) -> None:
    """60 users with sessions of three events, three hours apart."""
    rows = [
        f"u{user},i{(user + 3 * n) % 20},{1_600_000_000 + 10_800 * (n // 3) + 60 * n + user}"
        for user in range(60)
        for n in range(60)
    ]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
