"""What the source of the package may not hold: any way by which a file could run code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import metarec

ROOT = Path(metarec.__file__).parent
CALLS = {  # the last part of what is called -> where it may stand
    "eval": (), "exec": ("parts.py",), "instantiate": (), "extractall": (), "read_pickle": (), "to_pickle": (),
    "__import__": (), "get_class": (), "get_method": (), "get_object": (),
}  # fmt: skip
DOTTED = {  # (module, name) -> where it may stand
    ("torch", "load"): ("runs/legacy.py",), ("yaml", "load"): (), ("yaml", "unsafe_load"): (), ("yaml", "full_load"): (),
    ("os", "system"): (), ("os", "popen"): (), ("joblib", "load"): (), ("tarfile", "open"): (),
    ("json", "loads"): ("strict_json.py",),
}  # fmt: skip
MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve")
METHODS = ("eval",)  # model.eval() of torch is no builtin


def wrong(path: Path, where: str) -> list[str]:
    """Every forbidden name of a file, as file:line: what."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES]
            found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[-1] == "instantiate"]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        of = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else None
        method = isinstance(called, ast.Attribute) and name in METHODS
        if name in CALLS and where not in CALLS[name] and not method:
            found.append(f"{node.lineno}: {name}(")
        if (of, name) in DOTTED and where not in DOTTED[of, name]:
            found.append(f"{node.lineno}: {of}.{name}(")
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and not _is(value, False):
                found.append(f"{node.lineno}: {keyword.arg}=")
            if keyword.arg == "weights_only" and not _is(value, True):
                found.append(f"{node.lineno}: weights_only=")
        if (of, name) == ("torch", "load") and not any(keyword.arg == "weights_only" for keyword in node.keywords):
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if (of, name) == ("np", "load") and any(
            keyword.arg == "allow_pickle" and _is(keyword.value, True) for keyword in node.keywords
        ):
            found.append(f"{node.lineno}: np.load of pickles")
    return [f"{where}:{line}" for line in found]


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_can_run_code() -> None:
    assert [
        line for path in sorted(ROOT.rglob("*.py")) for line in wrong(path, path.relative_to(ROOT).as_posix())
    ] == []


def test_the_one_exec_is_of_the_packages_own_files() -> None:
    """`metarec.parts` runs the dataclasses in the files of its own folders, found by listing them."""
    text = (ROOT / "parts.py").read_text(encoding="utf-8")
    assert text.count("exec(") == 1
    assert "_files(group)" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("eval('1')", "eval("),
        ("exec('1')", "exec("),
        ("from hydra.utils import instantiate", "imports instantiate"),
        ("hydra.utils.instantiate(c)", "instantiate("),
        ("yaml.load(t, Loader=L)", "yaml.load("),
        ("subprocess.run('x', shell=True)", "shell="),
        ("archive.extractall('.')", "extractall("),
        ("np.load(p, allow_pickle=True)", "allow_pickle="),
        ("np.load(p, allow_pickle=given)", "allow_pickle="),
        ("pd.read_pickle(p)", "read_pickle("),
        ("torch.load(p, weights_only=True)", "torch.load("),
        ("os.system('x')", "os.system("),
        ("AutoModel.from_pretrained(p, trust_remote_code=True)", "trust_remote_code="),
    ],
)
def test_a_way_is_seen(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(line)
    assert any(said in found for found in wrong(path, "models/x.py"))


def test_the_importer_states_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    for line, count in (
        ("torch.load(p, weights_only=True)", 0),
        ("torch.load(p)", 1),
        ("torch.load(p, weights_only=x)", 1),
    ):
        path.write_text(line)
        assert len(wrong(path, "runs/legacy.py")) == count
