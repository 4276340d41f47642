"""What a dataset is: the options of the `dataset` group, as plain dataclasses without any library.

They are the schema that the command line checks against, and what `metarec.data.prepare.prepare` takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DELIMITERS = {"tab": "\t", "\\t": "\t"}  # a shell and Hydra leave "\t" as two characters


@dataclass
class Columns:
    """Names of the columns in the user's file, or paths to fields inside it; None = the log has no such column."""

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    session: str | None = None  # a ready-made session id
    order: str | None = None  # breaks ties in time when ties=order
    split: str | None = None  # a published split: train, val (valid, validation) or test, alike in all rows of a user


@dataclass
class Sessions:
    by: str = (
        "auto"  # auto | gap | user | column; auto: column if mapped, else gap with a clock, else one sequence per user
    )
    gap_minutes: float = 30.0  # > 0
    min_events: int = 2  # >= 2: a session of one event has no pair
    drop_repeats: bool = True  # the same item twice in a row is one event
    order: str = "real"  # real | shuffled: the items of each session in another order, a control (metarec.data.shuffle)
    shuffle_seed: int = 20260107  # of order=shuffled; in [0, 2^32)


@dataclass
class Core:
    """Optional k-core, repeated until nothing changes; 0 = off."""

    min_user_events: int = 0
    min_item_events: int = 0


@dataclass
class Split:
    # auto | user_time | user_disjoint | leave_one_out | column; auto: column if mapped, else user_time with a clock, else
    # user_disjoint
    by: str = "auto"
    # users: train, validation, test; of by=column only the second is read, and only where the column has no validation:
    # it is then the share of the training users that validate instead
    fractions: list[float] = field(default_factory=lambda: [0.7, 0.1, 0.2])
    time_quantiles: list[float] = field(default_factory=lambda: [0.7, 0.8])  # of all event times: T1, T2 (user_time)
    seed: int = 20260107  # of numpy.random.RandomState, which shuffles the sorted user ids


@dataclass
class EpisodeShape:
    n_support: int = 5  # K
    n_query: int = 10  # Q
    stride: int = 1  # between the windows of a training user


@dataclass
class WorldSpec:
    """The embedded world (dataset=synthetic): a log whose Bayes optimum is known exactly."""

    kind: str = "preference"  # preference | transition
    n_users: int = 6000
    n_items: int = 200
    n_types: int = 8
    n_topics: int = 20  # preference only
    concentration: float = 0.12  # Dirichlet of a type's topic preference (preference only)
    min_sessions: int = 8
    max_sessions: int = 12
    min_events: int = 2
    max_events: int = 4
    noise: float | None = None  # share of popularity noise; None = .1 in preference, .2 in transition
    seed: int = 7


@dataclass
class ImageSpec:
    """N-way K-shot episodes of images (source=omniglot)."""

    n_way: int = 5  # >= 2 classes of an episode
    n_shot: int = 1  # >= 1 support images of a class
    n_query: int = 15  # >= 1 query images of a class
    rotations: bool = True  # a training character turned by 90, 180, 270 degrees is another class
    n_val: int = 200  # >= 1 fixed validation episodes
    n_test: int = 600  # >= 1 fixed test episodes
    seed: int = 20260107  # of the fixed episodes


@dataclass
class PromptSpec:
    """Text tasks (source=prompts): examples {prompt, response} of domains; a domain is one family of tasks."""

    n_support: int = 4  # >= 1 examples that are adapted on
    n_query: int = 4  # >= 1 examples that are judged, others of the same domain
    n_episodes: int = 8  # >= 1 fixed episodes of every validation and test domain
    tokenizer: str = "bytes"  # bytes | bpe:N | PATH of a tokenizer.json or its directory
    max_tokens: int = 48  # >= 4 tokens of an example, all told; a longer prompt loses its beginning
    order: str = "random"  # random | easy_then_hard | rising: the domains of an outer step
    pretrain: str = "all"  # all | easy: the training domains that are pretrained on
    splits: list[float] = field(default_factory=lambda: [0.6, 0.2, 0.2])  # of the domains: train, validation, test
    seed: int = 20260107  # of the split, the fixed episodes and the embedded tasks
    # the embedded tasks (path: null)
    n_examples: int = 64  # >= 2 of every domain
    n_letters: int = 10  # 2 to 26, from a on
    easy_length: list[int] = field(default_factory=lambda: [3, 4])  # characters of a prompt: fewest, most
    hard_length: list[int] = field(default_factory=lambda: [5, 7])


@dataclass
class CharacterSpec:
    """Running text by characters (source=characters): documents cut into blocks, every character a target once."""

    length: int = 50  # >= 1 characters of a block, at most model.max_len
    min_count: int = 1  # >= 1; a character that training has less often is unknown, an id of its own
    n_support: int = 4  # >= 1 blocks of a document that are adapted on
    n_query: int = 4  # >= 1 blocks that are judged, others of the same document
    n_episodes: int = 4  # >= 1 fixed episodes of every validation and test document
    seed: int = 20260107  # of the fixed episodes


@dataclass
class DatasetSpec:
    name: str = "events"
    source: str = "log"  # log | synthetic | episode_tables | omniglot | prompts | characters
    path: str | None = None  # file or directory; relative paths of named datasets are looked up in data_dir
    in_data_dir: bool = False  # True for named datasets: `path` lies in data_dir
    format: str = "auto"  # auto, or a key of metarec.data.formats.FORMATS
    delimiter: str = ","  # between columns, where the format has one: a character, or a word of DELIMITERS
    columns: Columns = field(default_factory=Columns)
    time_unit: str = "auto"  # auto | s | ms | us | ns | iso | order (a position, no clock)
    ties: str = "item"  # item | row | order: the total order among events of one user at one time
    duplicates: str = "error"  # error | drop | keep: rows that repeat (user, time, item)
    vocabulary: str = "training"  # training | all: of published tables whose catalogue was the whole log
    history: str = "sessions"  # sessions | user: what a prefix reaches back to (metarec.data.history)
    sessions: Sessions = field(default_factory=Sessions)
    core: Core = field(default_factory=Core)
    split: Split = field(default_factory=Split)
    episodes: EpisodeShape = field(default_factory=EpisodeShape)
    world: WorldSpec = field(default_factory=WorldSpec)  # read when source=synthetic
    images: ImageSpec = field(default_factory=ImageSpec)  # read when source=omniglot
    prompts: PromptSpec = field(default_factory=PromptSpec)  # read when source=prompts
    characters: CharacterSpec = field(default_factory=CharacterSpec)  # read when source=characters
    memory_limit: str = "1500MB"  # of the preparation engine; beyond it, it works on disk


def split_column(spec: DatasetSpec) -> str | None:
    """The column that splits the users; None where another rule does, and then the column is not read."""
    return spec.columns.split if spec.source == "log" and spec.split.by in ("auto", "column") else None
