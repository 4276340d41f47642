"""Hostile words and YAML files as a table: what is typed or lies under --config-dir, none of which may run code.

MARK stands for the path of a marker file that a success would make. `words` are typed behind the verb; `files` are written
below the directory of --config-dir, where there are any. All are refused with exit code 2 and one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAKE = "{_target_: os.mkdir, path: MARK}"
GLOBAL = "# @package _global_\n"


@dataclass(frozen=True)
class Words:
    """A command line, `metarec VERB WORDS...`, with files of its own."""

    name: str
    words: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    verb: str = "train"
    parts: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)


def experiment(name: str, text: str, *parts: str) -> Words:
    """A file experiment/e.yaml, chosen by experiment=e."""
    return Words(name, ("experiment=e",), {"experiment/e.yaml": text.replace("GLOBAL\n", GLOBAL)}, parts=parts)


TYPED = [
    Words("a callback", (f"+hydra.callbacks.x={MAKE}",)),
    Words("a callback, key by key", ("+hydra.callbacks.x._target_=os.mkdir", "+hydra.callbacks.x.path=MARK")),
    Words("a callback by force", (f"++hydra.callbacks.x={MAKE}",)),
    Words("a callback in a sweep", ("-m", f"+hydra.callbacks.x={MAKE}", "seed=1,2")),
    Words("the launcher's target", ("hydra.launcher._target_=os.mkdir", "+hydra.launcher.path=MARK")),
    Words("the launcher's target, in a sweep", ("-m", "hydra.launcher._target_=os.mkdir", "seed=1,2")),
    Words("the launcher as a whole", ("-m", f"hydra.launcher={MAKE}", "seed=1,2")),
    Words("the sweeper's target", ("-m", "hydra.sweeper._target_=subprocess.run", "seed=1,2")),
    Words("the sweeper as a whole", ("-m", f"hydra.sweeper={MAKE}", "seed=1,2")),
    Words("a target inside of a launcher's list", ("-m", f"+hydra.launcher.x=[{MAKE}]", "seed=1,2")),
    Words("_partial_", ("+hydra.launcher._partial_=true",)),
    Words("env_set", ("+hydra.job.env_set.LD_PRELOAD=/tmp/x.so",)),
    Words("env_set as a whole", ("hydra.job.env_set={PYTHONSTARTUP: MARK}",)),
    Words("env_copy", ("hydra.job.env_copy=[AWS_SECRET_ACCESS_KEY]",)),
    Words("a logging handler", ("+hydra.job_logging.handlers.x={'()': os.mkdir, path: MARK}",)),
    Words("hydra's own logging", ("+hydra.hydra_logging.handlers.x={class: logging.FileHandler, filename: MARK}",)),
    Words("a package to search", ("hydra.searchpath=[pkg://antigravity]",)),
    Words("a package to search, among directories", ("hydra.searchpath=[.,pkg://this]",)),
    Words("a foreign scheme to search", ("hydra.searchpath=[http://example.invalid/conf]",)),
    Words("a search path that is no list", ("hydra.searchpath=pkg://antigravity",)),
    Words("an output directory of Hydra's", ("hydra.output_subdir=../../x",)),
    Words("where a run goes", ("hydra.run.dir=MARK",)),
    Words("where a sweep goes", ("-m", "hydra.sweep.dir=MARK", "seed=1,2")),
    Words("where jobs go", ("-m", "hydra.sweep.subdir=../../../../x", "seed=1,2")),
    Words("a launcher's choice with a path", ("-m", "hydra/launcher=../../evil", "seed=1,2")),
    Words("a launcher's choice in a package", ("-m", "hydra/launcher@hydra.callbacks.x=basic", "seed=1,2")),
    Words("a group placed in Hydra's node", ("+optimizer@hydra.launcher=sgd",)),
    Words("a model that names a class", ("model=os.system",)),
    Words("a model by a path", ("model=../../../tmp/evil",)),
    Words("an algorithm by a module", ("algorithm=metarec.cli",)),
    Words("a list with a module in it", ("residual=memory+os.path",)),
    Words("_target_ in a part", ("+model._target_=os.mkdir", "+model.path=MARK")),
    Words("_target_ at the top", (f"+x={MAKE}",)),
    Words("_target_ by force", ("++optimizer._target_=os.mkdir",)),
    Words("a name set behind the group", ("model.name=os.system",)),
    Words("an experiment outside", ("experiment=../../../../etc/passwd",)),
    Words("a resolver that nobody registered", ("data_dir=${python:os.getcwd}",)),
    Words("eval in an interpolation", ("data_dir=${eval:__import__('os').mkdir('MARK')}",)),
    Words("Hydra's rerun, which unpickles", ("--experimental-rerun", "MARK")),
    Words("another primary configuration", ("--config-name", "evil")),
    Words("another configuration path", ("--config-path", "/tmp")),
]
FILES = [
    Words("a file in place of the defaults", files={"dataset_defaults.yaml": f"{GLOBAL}hydra: {{callbacks: {{x: {MAKE}}}}}"}),
    Words("that one by a search path", ("hydra.searchpath=[CONF]",),
          {"../other/dataset_defaults.yaml": f"hydra: {{callbacks: {{x: {MAKE}}}}}"}),
    Words("a directory hydra/", files={"hydra/launcher/basic.yaml": f"{GLOBAL}x: {MAKE}"}),
    Words("a primary configuration of metarec's name", files={"train.yaml": f"hydra: {{callbacks: {{x: {MAKE}}}}}"}),
    experiment("a callback", f"GLOBAL\nhydra: {{callbacks: {{x: {MAKE}}}}}"),
    experiment("a callback through a package header", f"# @package hydra.callbacks\nx: {MAKE}"),
    experiment("a header with spaces", f"   #   @package   hydra.callbacks\nx: {MAKE}"),
    experiment("env_set", "GLOBAL\nhydra: {job: {env_set: {LD_PRELOAD: /tmp/x.so}}}"),
    experiment("a launcher's target", "GLOBAL\nhydra: {launcher: {_target_: os.mkdir, path: MARK}}"),
    experiment("a sweeper's target", "GLOBAL\nhydra: {sweeper: {_target_: subprocess.run, args: [touch, MARK]}}"),
    experiment("a logging handler", "GLOBAL\nhydra: {job_logging: {handlers: {x: {'()': os.mkdir, path: MARK}}}}"),
    experiment("a search path", "GLOBAL\nhydra: {searchpath: ['pkg://antigravity']}"),
    experiment("another mode", "GLOBAL\nhydra: {mode: MULTIRUN}"),
    experiment("another launcher", "GLOBAL\ndefaults: [{override /hydra/launcher: joblib}]"),
    experiment("a launcher in a package", "GLOBAL\ndefaults: [{'/hydra/launcher@hydra.callbacks.x': basic}]"),
    experiment("defaults that lead out", "GLOBAL\ndefaults: ['../../../../../tmp/evil']"),
    experiment("defaults at the root", "GLOBAL\ndefaults: [/etc/passwd]"),
    experiment("defaults of a package", "GLOBAL\ndefaults: ['pkg://antigravity/x']"),
    experiment("defaults of a file", "GLOBAL\ndefaults: [{override /model: '../../evil'}]"),
    experiment("defaults of no group", "GLOBAL\ndefaults: [{/os: system}]"),
    experiment("defaults that are looked up", "GLOBAL\ndefaults: [{override /model: '${oc.env:HOME}'}]"),
    experiment("_target_ at the top", "GLOBAL\n_target_: os.mkdir\npath: MARK"),
    experiment("_target_ in a part", f"GLOBAL\nmodel: {MAKE}"),
    experiment("_target_ deep in a list", f"GLOBAL\ntrain: {{x: [[{{y: {MAKE}}}]]}}"),
    experiment("_args_", "GLOBAL\noptimizer: {_args_: [MARK]}"),
    experiment("a class as a name", "GLOBAL\nmodel: {name: os.system}"),
    experiment("a module as an objective", "GLOBAL\nobjective: {name: metarec.cli}"),
    experiment("python/object/apply", "GLOBAL\nseed: !!python/object/apply:os.mkdir [MARK]"),
    experiment("python/object/new", "GLOBAL\nseed: !!python/object/new:os.system [touch MARK]"),
    experiment("python/name", "GLOBAL\nseed: !!python/name:os.system"),
    experiment("python/module", "GLOBAL\nseed: !!python/module:antigravity"),
    experiment("python/tuple", "GLOBAL\nseed: !!python/tuple [1, 2]"),
    experiment("a tag of one's own", "GLOBAL\nseed: !Evil {a: 1}"),
    experiment("binary", "GLOBAL\nseed: !!binary aGVsbG8="),
    experiment("a secret of the environment", "GLOBAL\noutput_dir: ${oc.env:AWS_SECRET_ACCESS_KEY,x}"),
    experiment("a secret by a name looked up", "GLOBAL\noutput_dir: ${oc.env:${reported}}"),
    experiment("a secret as a default", "GLOBAL\ndata_dir: ${oc.env:METAREC_X,${oc.env:HOME}}"),
    experiment("oc.decode", "GLOBAL\noutput_dir: ${oc.decode:${oc.env:HOME}}"),
    experiment("oc.create", "GLOBAL\noutput_dir: ${oc.create:{_target_: os.mkdir}}"),
    experiment("Hydra's resolver", "GLOBAL\noutput_dir: ${hydra:runtime.cwd}"),
    experiment("the Python version", "GLOBAL\noutput_dir: ${python_version:micro}"),
    experiment("a resolver of one's own", "GLOBAL\noutput_dir: ${eval:__import__('os').mkdir('MARK')}"),
    experiment("a resolver by a name looked up", "GLOBAL\noutput_dir: ${${reported}:x}"),
    experiment("the slug of metarec's own", "GLOBAL\noutput_dir: ${metarec_slug:x}"),
    experiment("a key that is looked up", "GLOBAL\n'${oc.env:HOME}': 1"),
    experiment("a billion laughs", "GLOBAL\n" + "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)), "with its aliases written out"),
    experiment("an alias of itself", "GLOBAL\na: &a [*a]", "inside of what it stands for"),
    experiment("a merge of itself", "GLOBAL\na: &a\n  <<: *a"),
    experiment("brackets without end", "GLOBAL\na: " + "[" * 5000, "YAML"),
    experiment("dashes without end", "GLOBAL\na:\n " + "- " * 5000 + "x", "YAML"),
    experiment("two hundred levels", "GLOBAL\na: " + "[" * 200 + "]" * 200, "deep"),
    experiment("half a megabyte", "GLOBAL\n" + "".join(f"k{n}: 1\n" for n in range(60_000)), "has at most"),
    experiment("a list as a key", "GLOBAL\n? [a, b]\n: 1"),
    experiment("bytes that are no text", "GLOBAL\nseed: \udcff"),
    experiment("several documents", "GLOBAL\nseed: 1\n---\nhydra: {mode: MULTIRUN}"),
    Words("a link out of the directory", ("optimizer=mine",), links={"optimizer/mine.yaml": "OUTSIDE/secret.yaml"}),
    Words("a link to a device", ("optimizer=mine",), links={"optimizer/mine.yaml": "/dev/zero"}),
    Words("a directory that is a link", ("optimizer=secret",), links={"optimizer": "OUTSIDE"}),
    Words("hidden by metarec's own", ("optimizer=adam",), {"optimizer/adam.yaml": f"x: {MAKE}"}),
    Words("a part's file that names a class", ("optimizer=mine",), {"optimizer/mine.yaml": "name: os.system"}),
    Words("a part's file with a target", ("optimizer=mine",), {"optimizer/mine.yaml": f"name: sgd\nlr: {MAKE}"}),
    Words("a data set of a FIFO's name", ("dataset=mine",), {"dataset/mine.yaml": "name: mine\npath: ${oc.env:HOME}/x"},
          verb="prepare"),
]  # fmt: skip
ALL = [*TYPED, *FILES]
