"""Drives `hostile_words`: each command line under the audit hook, in a directory of its own."""

from __future__ import annotations

import os
from pathlib import Path

from reliability.hostile_hook import watched
from reliability.hostile_words import Words
from reliability.inputs_drive import faults

SECRET = "a-secret-of-the-environment"


def wrong_with(case: Words, folder: Path, *, apart: bool = False) -> list[str]:
    """What is wrong with how a hostile command line ends; none where it is refused in one line and nothing ran."""
    mark, conf, outside = folder / "MARK", folder / "conf", folder / "outside"
    for place in (conf, outside, folder / "other", folder / "work"):
        place.mkdir()
    (outside / "secret.yaml").write_text("name: sgd\nlr: 0.5\n")

    def filled(text: str) -> str:
        return text.replace("MARK", str(mark)).replace("OUTSIDE", str(outside)).replace("CONF", str(folder / "other"))

    for name, text in case.files.items():
        path = Path(os.path.normpath(conf / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(filled(text).encode("utf-8", "surrogateescape"))
    for name, target in case.links.items():
        path = conf / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(filled(target))
    own = [] if not (case.files or case.links) or "CONF" in "".join(case.words) else ["--config-dir", str(conf)]
    words = [case.verb, *own, *map(filled, case.words)]
    before = dict(os.environ)
    os.environ["AWS_SECRET_ACCESS_KEY"] = SECRET
    try:
        with watched(folder / "work") as ran:
            wrong = faults(words, folder / "work", 2, case.parts, apart=apart, lines=0)
    finally:
        changed = {key for key in {*before, *os.environ} if os.environ.get(key) != before.get(key)}
        os.environ.clear()
        os.environ.update(before)
    wrong += [f"ran: {what}" for what in ran if not apart]
    if mark.exists():
        wrong.append("the marker file is there")
    if changed - {"AWS_SECRET_ACCESS_KEY"}:
        wrong.append(f"environment changed: {sorted(changed)}")
    return wrong
