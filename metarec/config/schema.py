"""What can be configured: one dataclass for every alternative of every group, and one for every verb.

A field holds its default and, beside it, the values allowed (`ranged`). `SCHEMAS` finds the dataclass of a group's
alternative by the group and the `name` the alternative carries; the only other way from a string to a class is the name
of a model's file (`metarec.models.own`).
`metarec.data.spec.DatasetSpec` is the schema of the group `dataset`; its ranges stand in `metarec.config.check`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from metarec.data.spec import DatasetSpec

MONITORS = ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr")
# sets of published figures (metarec.report.reported)
REPORTED = ("mars", "s3rec_beauty", "s3rec_sports", "s3rec_yelp", "s3rec_lastfm", "ml1m_loo", "diginetica")
SEED_MAX = 2**32 - 1  # the largest that every generator in use takes


def ranged(
    default: Any,
    *,
    min: float | None = None,
    max: float | None = None,
    exclusive: Iterable[str] = (),
    choices: Iterable[Any] | None = None,
    length: int | None = None,
    path: bool = False,
    filled: bool = False,
) -> Any:
    """A field with its allowed values: `min`/`max` (left out themselves where `exclusive` names them), or `choices`.

    For a list the limits hold for every element; it may not be empty, and has `length` elements where one is given.
    `path` marks a file or directory: never empty, and a leading ~ is the home directory; `filled`, text that is not empty.
    """
    limits = {
        "min": min,
        "max": max,
        "exclusive": frozenset(exclusive),
        "choices": None if choices is None else tuple(choices),
        "length": length,
        "path": path or None,
        "filled": filled or None,
    }
    metadata = {key: value for key, value in limits.items() if value is not None}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# model


@dataclass
class Gru4RecConfig:
    name: str = "gru4rec"
    embedding_dim: int = ranged(64, min=1)
    hidden_dim: int = ranged(128, min=1)
    n_layers: int = ranged(1, min=1)
    dropout: float = ranged(0.3, min=0, max=1, exclusive=["max"])
    embedding_dropout: float = ranged(0.2, min=0, max=1, exclusive=["max"])
    tie: bool = False
    max_len: int = ranged(50, min=1)


@dataclass
class SASRecConfig:
    name: str = "sasrec"
    dim: int = ranged(64, min=1)
    n_layers: int = ranged(2, min=1)
    n_heads: int = ranged(2, min=1)
    ffn_dim: int | None = ranged(None, min=1)  # None = dim
    dropout: float = ranged(0.2, min=0, max=1, exclusive=["max"])
    tie: bool = True
    n_prefix: int = ranged(2, min=1)  # prefix tokens that residual=context adapts
    max_len: int = ranged(50, min=1)


@dataclass
class Conv4Config:
    name: str = "conv4"
    filters: int = ranged(64, min=1)
    pool: str = ranged("max", choices=["max", "stride"])
    max_len: int = ranged(1, min=1, max=1)  # images have no prefix


class OwnModelConfig(Protocol):
    """`Config` of a model that is a file of its own in metarec/models: any dataclass with these (docs/new_model.md)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    max_len: int


# algorithm


@dataclass
class InnerConfig:
    """The inner loop of every algorithm."""

    lr: float | None = ranged(None, min=0)  # None = the control's for whole weights, 3.0 for contexts
    steps: int | None = ranged(None, min=0)  # None = the control's for whole weights, 1 for contexts
    clip: float = ranged(0.0, min=0)
    adapt: list[str] | None = None
    support_weights: str = ranged("uniform", choices=["uniform", "recency", "reliability"])
    recency: float = ranged(0.5, min=0)


@dataclass
class LearnedInnerConfig(InnerConfig):
    """The inner loop of the algorithms whose meta-gradient runs through it."""

    rates: str = ranged("fixed", choices=["fixed", "tensor", "tensor_step", "element", "element_step"])
    rates_lr: float = ranged(0.03, min=0, exclusive=["min"])
    prox: float = ranged(0.0, min=0)
    recompute: bool = False


@dataclass
class FomamlConfig:
    name: str = "fomaml"
    inner: LearnedInnerConfig = field(default_factory=LearnedInnerConfig)
    multi_step: str = ranged("last", choices=["last", "uniform", "annealed"])
    multi_step_until: float = ranged(0.15, min=0, max=1)


@dataclass
class MamlConfig:
    name: str = "maml"
    inner: LearnedInnerConfig = field(default_factory=LearnedInnerConfig)
    order: str = ranged("second", choices=["first", "second", "annealed"])
    switch: float = ranged(0.5, min=0, max=1)
    multi_step: str = ranged("last", choices=["last", "uniform", "annealed"])
    multi_step_until: float = ranged(0.15, min=0, max=1)


@dataclass
class AnilConfig:
    name: str = "anil"
    inner: LearnedInnerConfig = field(default_factory=LearnedInnerConfig)
    order: str = ranged("second", choices=["first", "second"])
    head: list[str] | None = None


@dataclass
class MetaSgdInner(InnerConfig):
    rates: str = ranged("element", choices=["element", "element_step"])
    rates_lr: float = ranged(0.03, min=0, exclusive=["min"])
    prox: float = ranged(0.0, min=0)
    recompute: bool = False


@dataclass
class MetaSgdConfig:
    name: str = "meta_sgd"
    inner: MetaSgdInner = field(default_factory=MetaSgdInner)
    order: str = ranged("second", choices=["first", "second"])


@dataclass
class MamlPpInner(InnerConfig):
    rates_lr: float = ranged(0.03, min=0, exclusive=["min"])
    prox: float = ranged(0.0, min=0)
    recompute: bool = False


@dataclass
class MamlPpConfig:
    name: str = "maml_pp"
    inner: MamlPpInner = field(default_factory=MamlPpInner)
    msl: bool = True
    lslr: bool = True
    da: bool = True
    bnrs: bool | None = None  # None = where the model has batch norm
    bnwb: bool | None = None  # None = where the model has norms
    ca: bool = True
    switch: float = ranged(0.5, min=0, max=1)
    msl_until: float = ranged(0.15, min=0, max=1)


@dataclass
class ReptileConfig:
    name: str = "reptile"
    inner: InnerConfig = field(default_factory=InnerConfig)


@dataclass
class ImamlConfig:
    name: str = "imaml"
    inner: InnerConfig = field(default_factory=InnerConfig)
    lam: float = ranged(1.0, min=0, exclusive=["min"])
    cg_steps: int = ranged(5, min=1)


@dataclass
class SupervisedConfig:
    name: str = "supervised"


# residual


@dataclass
class ResidualOnConfig:
    name: str = "on"
    alpha: float = 1.0  # != 0, a rule in metarec.config.rules
    l2: float = ranged(0.0, min=0)
    init_scale: float = ranged(0.0, min=0)


@dataclass
class ResidualOffConfig:
    name: str = "off"


@dataclass
class ResidualContextConfig:
    name: str = "context"
    train_weights: bool = True


# hardware, objective


@dataclass
class HardwareConfig:
    device: str = ranged("auto", choices=["auto", "cpu", "cuda", "mps"])
    precision: str = ranged("float32", choices=["float32", "float64", "bfloat16"])
    threads: int = ranged(0, min=0)
    deterministic: bool = True
    compile: bool = False


@dataclass
class CrossEntropyConfig:
    name: str = "cross_entropy"
    label_smoothing: float = ranged(0.0, min=0, max=1, exclusive=["max"])


@dataclass
class ChunkedCrossEntropyConfig:
    name: str = "chunked_cross_entropy"
    chunk: int = ranged(8192, min=1)
    label_smoothing: float = ranged(0.0, min=0, max=1, exclusive=["max"])


@dataclass
class SampledSoftmaxConfig:
    name: str = "sampled_softmax"
    n_samples: int | None = ranged(None, min=1)  # None = 1024, at most a quarter of the items


@dataclass
class BprMaxConfig:
    name: str = "bpr_max"
    n_samples: int | None = ranged(None, min=1)  # None = 2048, at most a quarter of the items
    alpha: float = ranged(0.75, min=0)
    reg: float = ranged(1.0, min=0)


@dataclass
class BceConfig:
    name: str = "bce"
    n_negatives: int | None = ranged(None, min=1)  # None = 256, at most a quarter of the items


@dataclass
class GbceConfig:
    name: str = "gbce"
    n_negatives: int | None = ranged(None, min=1)  # None = 256, at most a quarter of the items
    t: float = ranged(0.75, min=0, max=1)


# optimizer (of the outer loop)


@dataclass
class AdamConfig:
    name: str = "adam"
    lr: float | None = ranged(
        None, min=0, exclusive=["min"]
    )  # None = 5e-4 for contexts, 1e-3 for images, 3e-4 for weights
    betas: list[float] = ranged([0.9, 0.999], min=0, max=1, exclusive=["max"], length=2)
    eps: float = ranged(1e-8, min=0, exclusive=["min"])
    weight_decay: float = ranged(0.0, min=0)
    clip_norm: float = ranged(10.0, min=0)


@dataclass
class AdamWConfig:
    name: str = "adamw"
    lr: float | None = ranged(None, min=0, exclusive=["min"])  # None = 5e-4 with contexts, else 3e-4
    betas: list[float] = ranged([0.9, 0.999], min=0, max=1, exclusive=["max"], length=2)
    eps: float = ranged(1e-8, min=0, exclusive=["min"])
    weight_decay: float = ranged(0.01, min=0)
    clip_norm: float = ranged(10.0, min=0)


@dataclass
class SgdConfig:
    name: str = "sgd"
    lr: float = ranged(0.1, min=0, exclusive=["min"])
    momentum: float = ranged(0.0, min=0, max=1, exclusive=["max"])
    weight_decay: float = ranged(0.0, min=0)
    clip_norm: float = ranged(10.0, min=0)


# schedule (of the outer step size)


@dataclass
class ConstantConfig:
    name: str = "constant"
    warmup_steps: int = ranged(0, min=0)


@dataclass
class CosineConfig:
    name: str = "cosine"
    warmup_steps: int = ranged(0, min=0)
    final_factor: float = ranged(0.0, min=0, max=1)


@dataclass
class LinearConfig:
    name: str = "linear"
    warmup_steps: int = ranged(0, min=0)
    final_factor: float = ranged(0.0, min=0, max=1)


# evaluation, logger


@dataclass
class ControlGrid:
    lrs: list[float] = ranged([0.003, 0.01, 0.03, 0.1, 0.3, 1.0], min=0, exclusive=["min"])
    steps: list[int] = ranged([1, 3, 5, 10], min=1)
    users: int = ranged(512, min=1)  # of the validation split, evenly spaced


WITHOUT_TRAINING = (
    "random", "popularity", "recent_popularity", "repeat_last", "frequent_prefix", "frequent_support", "markov",
    "session_knn", "v_sknn", "ease", "pair_knn", "leaky_popularity",
)  # fmt: skip
ROWS = (*WITHOUT_TRAINING, "in_context", "in_context_user", "head_only", "scratch")  # of the panel
PANELS = {
    "quick": ("popularity", "frequent_support", "in_context"),
    "full": tuple(name for name in ROWS if name not in ("pair_knn", "leaky_popularity")),  # only there to be reproduced
    "none": (),
}


@dataclass
class EvaluationConfig:
    name: str = ranged("standard", choices=["standard", "k_curve", "full"])
    split: str = ranged("test", choices=["test", "val"])  # of a training run's end; `metarec eval` has a key of its own
    panel: list[str] | str = "quick"  # of PANELS, or rows; pretrained and control are always there
    candidates: str = ranged("all", choices=["all", "unseen"])
    ks: list[int] | None = ranged(None, min=0)
    grid: bool = False
    latency: bool = False
    monitor: str = ranged("ndcg@10", choices=MONITORS)
    bootstrap: int = ranged(2000, min=1)
    confidence: float = ranged(0.95, min=0, max=1, exclusive=["min", "max"])
    ties: str = ranged("conservative", choices=["conservative", "first", "last"])
    task_chunk: int = ranged(32, min=1)
    test_steps: int | None = ranged(None, min=0)
    control: ControlGrid = field(default_factory=ControlGrid)


@dataclass
class FilesConfig:
    """What every logger has; the other ones tell a tracker as well."""

    name: str = "files"
    console: str = ranged("auto", choices=["auto", "plain", "quiet"])
    plots: bool = True
    every: int = ranged(10, min=1)


@dataclass
class TensorBoardConfig(FilesConfig):
    name: str = "tensorboard"


@dataclass
class MlflowConfig(FilesConfig):
    name: str = "mlflow"
    store: str | None = ranged(None, path=True)  # None = OUTPUT_DIR/mlflow.db
    experiment: str = ranged("metarec", filled=True)


@dataclass
class WandbConfig(FilesConfig):
    name: str = "wandb"
    project: str = ranged("metarec", filled=True)
    online: bool = False


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
    sampler: str = ranged("user", choices=["user", "window"])
    dropout: float | None = ranged(None, min=0, max=1, exclusive=["max"])  # None = 0.3 with contexts, else 0


@dataclass
class PretrainSection:
    epochs: int = ranged(15, min=1)
    min_steps: int = ranged(2500, min=0)  # a small log is read more often than `epochs`
    batch_size: int = ranged(1024, min=1)
    lr: float = ranged(3e-3, min=0, exclusive=["min"])
    weight_decay: float = ranged(0.0, min=0)
    clip_norm: float = ranged(5.0, min=0)
    patience: int = ranged(3, min=0)
    eval_every_epochs: int = ranged(1, min=1)


ModelConfig = Gru4RecConfig | SASRecConfig | Conv4Config | OwnModelConfig
MetaConfig = (
    FomamlConfig | MamlConfig | AnilConfig | MetaSgdConfig | MamlPpConfig | ReptileConfig | ImamlConfig
)  # what has an inner loop
AlgorithmConfig = MetaConfig | SupervisedConfig
ResidualConfig = ResidualOnConfig | ResidualOffConfig | ResidualContextConfig
ObjectiveConfig = (
    CrossEntropyConfig | ChunkedCrossEntropyConfig | SampledSoftmaxConfig | BprMaxConfig | BceConfig | GbceConfig
)

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
    model: ModelConfig = field(default_factory=Gru4RecConfig)
    algorithm: AlgorithmConfig = field(default_factory=MetaSgdConfig)
    residual: ResidualConfig = field(default_factory=ResidualContextConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)
    optimizer: AdamConfig | AdamWConfig | SgdConfig = field(default_factory=AdamConfig)
    schedule: ConstantConfig | CosineConfig | LinearConfig = field(default_factory=ConstantConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=FilesConfig)
    train: TrainSection = field(default_factory=TrainSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)


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
class PrepareConfig:
    """`metarec prepare`."""

    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    export: str | None = ranged(None, path=True)
    dataset: DatasetSpec = field(default_factory=DatasetSpec)


ALGORITHMS = ("maml", "fomaml", "maml_pp", "anil", "meta_sgd", "reptile", "imaml")


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

    algorithms: list[str] = ranged(["maml", "fomaml", "maml_pp", "anil", "reptile", "meta_sgd"], choices=ALGORITHMS)
    seeds: list[int] = ranged([1], min=0, max=SEED_MAX)
    datasets: list[str] | None = None  # None: the one chosen by dataset=
    models: list[str] | None = None
    residuals: list[str] | None = ranged(None, choices=["off", "on", "context"])
    parallel: int = ranged(1, min=1)
    tune: TuneSection = field(default_factory=TuneSection)
    inner: CompareInner = field(default_factory=CompareInner)
    warm_start: str = ranged("auto", path=True)  # auto | none | PATH
    data_dir: str | None = ranged(None, path=True)
    cache_dir: str = ranged("~/.cache/metarec", path=True)
    output_dir: str = ranged("outputs", path=True)
    resume: str | None = ranged(None, path=True)
    dataset: DatasetSpec = field(default_factory=DatasetSpec)
    model: ModelConfig = field(default_factory=Gru4RecConfig)
    residual: ResidualConfig = field(default_factory=ResidualOffConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    objective: ObjectiveConfig = field(default_factory=CrossEntropyConfig)
    optimizer: AdamConfig | AdamWConfig | SgdConfig = field(default_factory=AdamConfig)
    schedule: ConstantConfig | CosineConfig | LinearConfig = field(default_factory=ConstantConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=FilesConfig)
    train: TrainSection = field(default_factory=TrainSection)
    pretrain: PretrainSection = field(default_factory=PretrainSection)


Config = TrainConfig | EvalConfig | PrepareConfig | CompareConfig
VERBS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "compare": CompareConfig,
}

# Group and the name its YAML carries -> dataclass. None: one schema for every alternative, whatever it is called.
SCHEMAS: dict[tuple[str, str | None], type] = {
    ("dataset", None): DatasetSpec,
    ("model", "gru4rec"): Gru4RecConfig,
    ("model", "sasrec"): SASRecConfig,
    ("model", "conv4"): Conv4Config,
    ("algorithm", "fomaml"): FomamlConfig,
    ("algorithm", "maml"): MamlConfig,
    ("algorithm", "anil"): AnilConfig,
    ("algorithm", "meta_sgd"): MetaSgdConfig,
    ("algorithm", "maml_pp"): MamlPpConfig,
    ("algorithm", "reptile"): ReptileConfig,
    ("algorithm", "imaml"): ImamlConfig,
    ("algorithm", "supervised"): SupervisedConfig,
    ("residual", "on"): ResidualOnConfig,
    ("residual", "off"): ResidualOffConfig,
    ("residual", "context"): ResidualContextConfig,
    ("hardware", None): HardwareConfig,
    ("objective", "cross_entropy"): CrossEntropyConfig,
    ("objective", "chunked_cross_entropy"): ChunkedCrossEntropyConfig,
    ("objective", "sampled_softmax"): SampledSoftmaxConfig,
    ("objective", "bpr_max"): BprMaxConfig,
    ("objective", "bce"): BceConfig,
    ("objective", "gbce"): GbceConfig,
    ("optimizer", "adam"): AdamConfig,
    ("optimizer", "adamw"): AdamWConfig,
    ("optimizer", "sgd"): SgdConfig,
    ("schedule", "constant"): ConstantConfig,
    ("schedule", "cosine"): CosineConfig,
    ("schedule", "linear"): LinearConfig,
    ("evaluation", None): EvaluationConfig,
    ("logger", "files"): FilesConfig,
    ("logger", "tensorboard"): TensorBoardConfig,
    ("logger", "mlflow"): MlflowConfig,
    ("logger", "wandb"): WandbConfig,
}
GROUPS = tuple(dict.fromkeys(group for group, _ in SCHEMAS))  # `experiment` has no node of its own
