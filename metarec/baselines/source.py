"""Whether a row is still the one that was tuned: a hash of the code it consists of."""

from __future__ import annotations

import ast
import hashlib
from importlib.util import find_spec
from pathlib import Path

from metarec import baselines


def source_hash(name: str) -> str:
    """SHA-256 of a row's file and of every file of this folder that it imports, directly or through another."""
    texts: dict[str, bytes] = {}
    ahead = [f"{baselines.__name__}.{baselines.NAMES[name]}"]
    while ahead:
        module = ahead.pop()
        if module not in texts and (found := find_spec(module)) and found.origin:
            texts[module] = Path(found.origin).read_bytes()
            ahead += _imports(texts[module])
    return hashlib.sha256(b"\0".join(texts[module] for module in sorted(texts))).hexdigest()


def _imports(text: bytes) -> list[str]:
    """Modules of this folder, and names that are none: `from metarec.baselines import x` may be either."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == baselines.__name__:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return [module for module in found if module.startswith(f"{baselines.__name__}.")]
