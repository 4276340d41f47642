"""What can be configured: one dataclass for every verb, its sections, and the alternatives of groups that are no parts.

A field holds its default and, beside it, the values allowed (`ranged`). The dataclass of a group's alternative is found by
the group and the `name` the alternative carries: in `SCHEMAS`, or in the file of that name (`metarec.parts`).
`metarec.data.spec.DatasetSpec` is the schema of the group `dataset`; its ranges stand in `metarec.config.check`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

from metarec import parts
from metarec.config.schema_logger import FilesConfig as FilesConfig
from metarec.config.schema_logger import MlflowConfig as MlflowConfig
from metarec.config.schema_logger import TensorBoardConfig as TensorBoardConfig
from metarec.config.schema_logger import WandbConfig as WandbConfig
from metarec.data.spec import DatasetSpec
from metarec.metrics import METRICS
from metarec.options import Inner, ranged
from metarec.schedules import ConstantConfig, CosineConfig, LinearConfig, WarmCosineConfig

# sets of published figures (metarec.report.reported)
REPORTED = (
    "mars", "s3rec_beauty", "s3rec_sports", "s3rec_yelp", "s3rec_lastfm", "ml1m_loo", "nested_wikitext2", "diginetica",
)  # fmt: skip
SEED_MAX = 2**32 - 1  # the largest that every generator in use takes


# parts: models, algorithms, residuals, objectives and optimizers hold their options themselves (`metarec.parts`)


class Part(Protocol):
    """`Config` of any part: a dataclass with a name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str


class ModelConfig(Part, Protocol):
    max_len: int


class MetaConfig(Part, Protocol):
    """Of what has an inner loop."""

    inner: Inner


class OptimizerConfig(Part, Protocol):
    lr: float | None
    clip_norm: float
    slots: int  # numbers kept for every number trained
    adaptive: bool  # the size of a step does not follow that of the gradient


@dataclass
class SupervisedConfig:
    name: str = "supervised"


# hardware


@dataclass
class HardwareConfig:
    device: str = ranged("auto", choices=["auto", "cpu", "cuda", "mps"])
    precision: str = ranged("float32", choices=["float32", "float64", "bfloat16"])
    threads: int = ranged(0, min=0, max=1024)
    deterministic: bool = True
    compile: bool = False


# guard (of both loops)


@dataclass
class GuardConfig:
    name: str = "standard"
    on_nonfinite: str = ranged("stop", choices=["stop", "skip", "rollback"])
    on_spike: str = ranged("warn", choices=["off", "warn", "stop", "skip", "rollback"])
    window: int = ranged(50, min=2)
    sigma: float = ranged(6.0, min=0, exclusive=["min"])
    warmup_steps: int = ranged(50, min=2)
    keep_every: int = ranged(20, min=1)
    max_rollbacks: int = ranged(3, min=1)
    max_skips: int = ranged(10, min=1)


@dataclass
class NoGuardConfig:
    name: str = "off"


# evaluation


@dataclass
class ControlGrid:
    lrs: list[float] = ranged([0.003, 0.01, 0.03, 0.1, 0.3, 1.0], min=0, exclusive=["min"])
    steps: list[int] = ranged([1, 3, 5, 10], min=1)
    users: int = ranged(512, min=1)  # of the validation split, evenly spaced


PANELS = ("quick", "full", "none")  # `metarec.verbs.panel.rows_of` says of which rows
OF_A_MODEL = ("in_context", "in_context_user", "head_only", "scratch")  # rows beside those of `metarec.baselines.NAMES`


@dataclass
class EvaluationConfig:
    name: str = ranged("standard", choices=["standard", "k_curve", "full"])
    split: str = ranged("test", choices=["test", "val"])  # of a training run's end; `metarec eval` has a key of its own
    panel: list[str] | str = "quick"  # of PANELS, or rows; pretrained and control are always there
    candidates: str = ranged("all", choices=["all", "unseen"])
    ks: list[int] | None = ranged(None, min=0)
    grid: bool = False
    latency: bool = False
    divergence: bool = False
    monitor: str = ranged("ndcg@10", choices=METRICS)
    bootstrap: int = ranged(2000, min=1, max=10**6)
    confidence: float = ranged(0.95, min=0, max=1, exclusive=["min", "max"])
    ties: str = ranged("conservative", choices=["conservative", "first", "last"])
    task_chunk: int = ranged(32, min=1)
    test_steps: int | None = ranged(None, min=0)
    control: ControlGrid = field(default_factory=ControlGrid)


# plain sections of `metarec train`


@dataclass
class TrainSection:
    steps: int = ranged(1000, min=1)
    minutes: float | None = ranged(None, min=0, exclusive=["min"])  # then `steps` follows from the speed
    meta_batch_size: int = ranged(32, min=1)
    task_chunk: int = ranged(0, min=0)
    eval_every: int = ranged(100, min=1)
    checkpoint_every: int = ranged(500, min=1)
    patience: int = ranged(5, min=0)
    min_gain: float = ranged(0.0, min=0)
    sampler: str = ranged("user", choices=["user", "window"])
    dropout: float | None = ranged(None, min=0, max=1, exclusive=["max"])  # None = 0.3 with contexts, else 0


@dataclass
class PretrainSection:
    epochs: int = ranged(15, min=1)
    min_steps: int = ranged(2500, min=0)  # a small log is read more often than `epochs`
    steps: int | None = ranged(None, min=1)  # in place of `epochs` and `min_steps`
    batch_size: int = ranged(1024, min=1)
    optimizer: str = ranged("adam", choices=["adam", "run"])
    lr: float | None = ranged(None, min=0, exclusive=["min"])  # None = the model's own
    weight_decay: float = ranged(0.0, min=0)
    clip_norm: float = ranged(5.0, min=0)
    patience: int = ranged(3, min=0)
    eval_every_epochs: int = ranged(1, min=1)
    eval_every: int | None = ranged(None, min=1)  # steps, in place of `eval_every_epochs`
    hold_out: float = ranged(0.0, min=0, max=1, exclusive=["max"])
    monitor: str = ranged("metric", choices=["metric", "perplexity"])


AlgorithmConfig = MetaConfig | SupervisedConfig
ScheduleConfig = ConstantConfig | CosineConfig | WarmCosineConfig | LinearConfig
AnyGuardConfig = GuardConfig | NoGuardConfig
LoggerConfig = FilesConfig | TensorBoardConfig | MlflowConfig | WandbConfig

# one dataclass for every verb


@dataclass
class TrainConfig:
    """`metarec train`."""

    seed: int = ranged(1, min=0, max=SEED_MAX)
    warm_start: str = ranged("auto", path=True)  # auto | none | PATH
    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    resume: str | None = ranged(None, path=True)
    reported: str | None = ranged(None, choices=REPORTED)
    dataset: DatasetSpec = field(default_factory=DatasetSpec)
    model: ModelConfig = field(default_factory=partial(parts.default, "model", "gru4rec"))
    algorithm: AlgorithmConfig = field(default_factory=partial(parts.default, "algorithm", "meta_sgd"))
    residual: Part = field(default_factory=partial(parts.default, "residual", "context"))
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    objective: Part = field(default_factory=partial(parts.default, "objective", "cross_entropy"))
    optimizer: OptimizerConfig = field(default_factory=partial(parts.default, "optimizer", "adam"))
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    guard: AnyGuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=FilesConfig)
    train: TrainSection = field(default_factory=TrainSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)


@dataclass
class TeachersConfig(TrainConfig):
    """`metarec teachers`: the keys of `metarec train`, and where to."""

    algorithm: AlgorithmConfig = field(default_factory=partial(parts.default, "algorithm", "generator"))
    residual: Part = field(default_factory=partial(parts.default, "residual", "lora"))
    to: str | None = ranged(None, path=True)  # None = the directory of this command, in OUTPUT_DIR


@dataclass
class EvalConfig:
    """`metarec eval`: null means "as the run was trained"."""

    ckpt: str | None = ranged(None, path=True)  # required, a rule in metarec.config.rules
    split: str = ranged("test", choices=["test", "val"])
    n_support: int | None = ranged(None, min=0)
    steps: int | None = ranged(None, min=0)
    lr: float | None = ranged(None, min=0)
    users: list[str] | str | None = None  # user ids, or a text file with one id a line
    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    dataset_path: str | None = ranged(None, path=True)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class ExportConfig:
    """`metarec export`; what chooses and adapts users is that of `metarec eval`."""

    ckpt: str | None = ranged(None, path=True)  # required, a rule in metarec.config.rules
    to: str | None = ranged(None, path=True)  # None = the directory of this command, in OUTPUT_DIR
    merge: bool = False
    users: list[str] | str | None = None
    split: str = ranged("test", choices=["test", "val"])
    n_support: int | None = ranged(None, min=0)
    steps: int | None = ranged(None, min=0)
    lr: float | None = ranged(None, min=0)
    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    dataset_path: str | None = ranged(None, path=True)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class PrepareConfig:
    """`metarec prepare`."""

    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    export: str | None = ranged(None, path=True)
    dataset: DatasetSpec = field(default_factory=DatasetSpec)


@dataclass
class CompareInner:
    """What all algorithms of a comparison have in common, in place of what their own files say."""

    lr: float | None = ranged(None, min=0)
    steps: int | None = ranged(None, min=0)


@dataclass
class TuneSection:
    """What every cell of a comparison tries on validation, with its first seed; null = nothing is tuned."""

    outer_lrs: list[float] | None = ranged(None, min=0, exclusive=["min"])
    inner_lrs: list[float] | None = ranged(None, min=0, exclusive=["min"])


@dataclass
class CompareConfig:
    """`metarec compare`: `metarec train` for every data set, model, residual, algorithm and seed, with one budget."""

    algorithms: list[str] = ranged(
        ["maml", "fomaml", "maml_pp", "anil", "reptile", "meta_sgd"], choices=parts.names("algorithm")
    )
    seeds: list[int] = ranged([1], min=0, max=SEED_MAX)
    datasets: list[str] | None = None  # None: the one chosen by dataset=
    models: list[str] | None = None
    residuals: list[str] | None = ranged(None, choices=parts.Listable("residual"))
    variants: dict[str, str] | None = None  # name -> words of `metarec train`, in place of `residuals`
    contrasts: list[list[str]] | None = None  # pairs of variants: the first against the second
    metric: str = ranged("monitor", choices=["monitor", "perplexity"])  # of the table of contrasts
    reported: str | None = ranged(None, choices=REPORTED)
    parallel: int = ranged(1, min=1, max=1024)
    tune: TuneSection = field(default_factory=TuneSection)
    inner: CompareInner = field(default_factory=CompareInner)
    warm_start: str = ranged("auto", path=True)  # auto | none | PATH
    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    resume: str | None = ranged(None, path=True)
    dataset: DatasetSpec = field(default_factory=DatasetSpec)
    model: ModelConfig = field(default_factory=partial(parts.default, "model", "gru4rec"))
    residual: Part = field(default_factory=partial(parts.default, "residual", "off"))
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    objective: Part = field(default_factory=partial(parts.default, "objective", "cross_entropy"))
    optimizer: OptimizerConfig = field(default_factory=partial(parts.default, "optimizer", "adam"))
    schedule: ScheduleConfig = field(default_factory=ConstantConfig)
    guard: AnyGuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=FilesConfig)
    train: TrainSection = field(default_factory=TrainSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)


Config = TrainConfig | EvalConfig | ExportConfig | PrepareConfig | CompareConfig
VERBS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "teachers": TeachersConfig,
}

# Group and the name its YAML carries -> dataclass, where it is no part with a file of its own (`metarec.parts`).
# None: one schema for every alternative, whatever it is called.
SCHEMAS: dict[tuple[str, str | None], type] = {
    ("dataset", None): DatasetSpec,
    ("algorithm", "supervised"): SupervisedConfig,
    ("hardware", None): HardwareConfig,
    ("schedule", "constant"): ConstantConfig,
    ("schedule", "cosine"): CosineConfig,
    ("schedule", "warm_cosine"): WarmCosineConfig,
    ("schedule", "linear"): LinearConfig,
    ("guard", "standard"): GuardConfig,
    ("guard", "off"): NoGuardConfig,
    ("evaluation", None): EvaluationConfig,
    ("logger", "files"): FilesConfig,
    ("logger", "tensorboard"): TensorBoardConfig,
    ("logger", "mlflow"): MlflowConfig,
    ("logger", "wandb"): WandbConfig,
}
GROUPS = (
    "dataset", "model", "algorithm", "residual", "hardware", "objective", "optimizer", "schedule", "guard", "evaluation",
    "logger",
)  # fmt: skip  # `experiment` has no node of its own
