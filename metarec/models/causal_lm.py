"""Causal LM: any local language model of transformers, written once for one user or many.

    h = body(E[x_1], ..., E[x_j]);   score(i | prefix) = O[i] . dropout(h_j)

**Items as tokens of their own** (a log): E = O = `items.weight`, a row for every item and one of padding; the table of the
model's own tokens is left out. A row starts random, or as the mean of the token embeddings of the item's title
(`model.titles`, `models.lm_titles`). **Tokens** (a data set that says it is made of them): E and O are the model's own, item
i being token i - 1; the scores are its logits. Which of the two is what the data set says (`models.Catalogue.kind`).

Weights are named as in transformers, matrices [out, in] (`as_transformers` turns them back). Those that modules of
transformers read themselves, norms among them, are one for all tasks: `fixed`. They are learned by the outer loop like all
others and never adapted inside. `models.lm_tree` has the forward pass, `models.lm_files` what is read from the disk.

Source: Radford et al. 2019 (GPT-2); Touvron et al. 2023 (Llama), arXiv:2302.13971, which a model without a directory is;
items as tokens of their own: Hua et al. 2023, arXiv:2305.06569 (independent indexing).
Shapes: T tasks, R sequences a task, L tokens of the longest, S states of the batch (`core.batch`), N pairs, V items, H
width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarec.core import inputs
from metarec.core.attention import differentiated_twice
from metarec.core.batch import Sequences
from metarec.core.ops import embed
from metarec.core.states import dropout, score_items
from metarec.core.weights import Params, Weights
from metarec.errors import ConfigError, DataError
from metarec.models import Catalogue, lm_files, lm_titles
from metarec.models.lm_tree import Bound, Net, require, skeleton
from metarec.models.personal import personal
from metarec.options import Refusal, ranged

ITEMS = "items.weight"
TITLE_TOKENS = 1000  # of the tokenizer made of titles, unless told otherwise
OTHERS = "give a model of another architecture, such as Llama or GPT-2"
STD = 0.02  # of what is drawn, as in GPT-2


@dataclass
class Config:
    """conf/model/causal_lm.yaml"""

    name: str = "causal_lm"
    path: str | None = ranged(None, path=True)
    architecture: str = ranged("llama", choices=["llama"])
    hidden_size: int = ranged(64, min=1)
    n_layers: int = ranged(2, min=1)
    n_heads: int = ranged(4, min=1)
    n_kv_heads: int | None = ranged(None, min=1)  # None = n_heads
    ffn_dim: int | None = ranged(None, min=1)  # None = 4 * hidden_size
    vocab_size: int | None = ranged(None, min=256)  # None = 1000 for titles; with tokens, the tokenizer's
    titles: str | None = ranged(None, path=True)
    title_columns: list[str] = ranged(["item_id", "title"], length=2, filled=True)
    dropout: float = ranged(0.1, min=0, max=1, exclusive=["max"])
    gradient_checkpointing: bool = False
    max_len: int = ranged(50, min=1)

    has: ClassVar[tuple[str, ...]] = ()
    pretrain_lr: ClassVar[float] = 1e-3
    task_type: ClassVar[str] = "CAUSAL_LM"  # in adapter files

    @property
    def pretrained(self) -> bool:
        """Whether the weights come trained, so that a residual may sit on them without pretraining here."""
        return self.path is not None

    def refused(self) -> Iterator[Refusal]:
        """Widths that cannot be divided among heads, or heads among those of keys."""
        if self.path is not None:
            return
        width, rest = divmod(self.hidden_size, self.n_heads)
        if rest or width % 2:
            what = f"is no even multiple of model.n_heads={self.n_heads} (rotary positions turn pairs of numbers)"
            yield "hidden_size", what, f"give a multiple of {2 * self.n_heads}"
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            yield "n_kv_heads", f"does not divide model.n_heads={self.n_heads}", "give a divisor, or leave it out"


def build(config: Config, n_items: int) -> CausalLM:
    """Of items that have no names."""
    return build_of(config, Catalogue(n_items))


def build_of(config: Config, catalogue: Catalogue) -> CausalLM:
    """On items or tokens, as the catalogue says. ConfigError for a directory, file or option that does not fit it."""
    require("transformers", "tokenizers")
    titles = None
    if config.titles is not None:
        if catalogue.kind == "tokens":
            what = "the data set is made of tokens, which have no titles"
            raise ConfigError("model.titles", config.titles, what, "drop it")
        titles = lm_titles.locate(config.titles, catalogue.data_dir)
    path = None if config.path is None else Path(config.path)
    if path is None:
        if catalogue.kind == "tokens" and config.vocab_size is not None and config.vocab_size < catalogue.n_items:
            what = f"the data set's tokenizer has {catalogue.n_items} tokens"
            raise ConfigError("model.vocab_size", config.vocab_size, what, "drop it, or give as many or more")
        n_tokens = config.vocab_size or (catalogue.n_items if catalogue.kind == "tokens" else TITLE_TOKENS)
        made = _llama(config, n_tokens)
    else:
        made = lm_files.read_config(path)
        lm_files.weight_files(path)
    if made.get_text_config() is not made:
        raise ConfigError("model.path", config.path, "a model of more than text", "give a model of text alone")
    net = Net(made, checkpointing=config.gradient_checkpointing)
    if catalogue.kind == "tokens" and net.vocab_size < catalogue.n_items:
        what = f"the model has {net.vocab_size} tokens, the data set's tokenizer {catalogue.n_items}"
        raise ConfigError("model.path", config.path, what, "tokenize the data set with the model's own tokenizer.json")
    longest = getattr(made, "max_position_embeddings", None) or config.max_len
    if longest < config.max_len:
        what = f"the model has {longest} positions"
        raise ConfigError("model.max_len", config.max_len, what, f"give {longest} or less")
    return CausalLM(
        catalogue.n_items, net, catalogue.kind, config.dropout, config.max_len, path, titles, tuple(config.title_columns),
        catalogue,
    )  # fmt: skip


def _llama(config: Config, n_tokens: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=n_tokens, hidden_size=config.hidden_size, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads or config.n_heads,
        intermediate_size=config.ffn_dim or 4 * config.hidden_size, max_position_embeddings=config.max_len,
        tie_word_embeddings=True, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


@dataclass(frozen=True)
class CausalLM:
    n_items: int
    net: Net
    kind: str = "items"  # or tokens
    dropout: float = 0.1  # of what the body reads, and of the states that are scored
    max_len: int = 50
    path: Path | None = None  # where the weights are; None = drawn
    titles: Path | None = None
    title_columns: tuple[str, ...] = ("item_id", "title")
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(0))

    @cached_property
    def _of_body(self) -> dict[str, tuple[int, ...]]:
        apart = {self.net.table, self.net.output, self.net.output_bias}
        return {name: shape for name, shape in self.net.shapes.items() if name not in apart}

    @property
    def _by_tokens(self) -> bool:
        return self.kind == "tokens"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by name; the order is the order of the checkpoint."""
        if self._by_tokens:
            return dict(self.net.shapes)
        return {ITEMS: (self.n_items + 1, self.net.width)} | self._of_body

    def context_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `residual=context` adapts: a shift of the last hidden state."""
        return {"context.shift": (self.net.width,)}

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices that nothing but a linear layer reads, which can forget in an inner step."""
        output = () if not self._by_tokens or self.net.output == self.net.table else (self.net.output,)
        return (*self.net.linear, *output)

    @property
    def head(self) -> tuple[str, ...]:
        """What `score` reads; where it is tied, as that of items is, both body and head."""
        if not self._by_tokens:
            return (ITEMS, "context.shift")
        bias = () if self.net.output_bias is None else (self.net.output_bias,)
        return (self.net.output, *bias, "context.shift")

    @property
    def fixed(self) -> tuple[str, ...]:
        """What modules of transformers read, for all tasks at once: norms, mostly. Learned, but never adapted inside."""
        return self.net.fixed

    @property
    def transposed(self) -> frozenset[str]:
        """Matrices, [out, in] here, that transformers stores [in, out] (Conv1D): adapter files say so."""
        return frozenset(self.net.transposed)

    @property
    def tables(self) -> tuple[str, ...]:
        """What is looked up by row, of items, tokens and positions: no target of LoRA unless it is named."""
        return (self.net.table if self._by_tokens else ITEMS, *self.net.looked_up)

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        """The directory's weights, or N(0, 0.02^2) and norms of one; rows of items by titles, or drawn; row 0 zero."""
        names = [name for name in self.shapes() if name != ITEMS]
        table = torch.empty(0)
        if self.path is None:
            shapes = self.net.shapes
            params = {
                name: _drawn(shapes[name], generator, dtype)
                if len(shapes[name]) > 1
                else torch.ones(shapes[name]).to(dtype)
                for name in names
            }
        else:
            found = self._read()
            params = {name: self._turned(name, found.pop(name)).to(dtype) for name in names}
            self._compare(params | {name: value.to(dtype) for name, value in found.items()})
            table = found.get(self.net.table, table)
        if not self._by_tokens:
            params[ITEMS] = self._rows(table, generator, dtype)
        return {name: params[name] for name in self.shapes()}

    def _rows(self, table: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """The table of items [V + 1, H] as it starts; table [tokens, H], of the directory, or empty where there is none."""
        rows = _drawn((self.n_items, self.net.width), generator, dtype)
        if self.titles is not None:
            by_id = lm_titles.read_titles(self.titles, self.title_columns)
            ids = list(self.catalogue.ids())
            texts = [by_id.get(str(item), "") for item in ids]
            if len(texts) != self.n_items or not any(texts):
                example = f"such as {next(iter(by_id))}" if by_id else "none"
                what = f"no item of the data set (such as {ids[0] if ids else 'none'}) is among its ids ({example})"
                raise DataError(
                    self.titles, self.title_columns[0], what, "name the columns, model.title_columns=[ID,TITLE]"
                )
            if self.path is None:
                tokenizer = lm_titles.trained_tokenizer([text for text in texts if text], self.net.vocab_size)
                table = _drawn((tokenizer.get_vocab_size(), self.net.width), generator, dtype)
            else:
                tokenizer = lm_titles.tokenizer_of(self.path)
            if tokenizer.get_vocab_size() > len(table):
                what = f"its tokenizer has {tokenizer.get_vocab_size()} tokens, its table {len(table)} rows"
                raise ConfigError("model.path", self.path, what, "give the tokenizer that belongs to the model")
            rows, without = lm_titles.rows_of(texts, tokenizer, table.to(dtype), rows)
            self.catalogue.tell(
                f"titles: {self.n_items - without:,} of {self.n_items:,} items have one in {self.titles.name}"
                + (f"; the other {without:,} start as the mean of all" if without else "")
            )
        return torch.cat([rows.new_zeros(1, self.net.width), rows])

    @cached_property
    def fingerprint(self) -> str:
        """Of the files that `init` reads, and of the library: what the start depends on beside the options."""
        import transformers

        files = [] if self.titles is None else [self.titles]
        if self.path is not None:
            found = lm_files.weight_files(self.path)
            files += [self.path / lm_files.CONFIG, *(found if isinstance(found, list) else sorted(set(found.values())))]
            files += [self.path / "tokenizer.json"] if self.titles is not None else []
        return f"{transformers.__version__} {lm_files.fingerprint(files)} {self.catalogue.kind}"

    def encode(self, params: Weights, sequences: Sequences, generator: torch.Generator | None = None) -> Tensor:
        """Hidden states [T + S, H]: of each task before any event (zero), then behind every event.

        A generator switches dropout on (of the embeddings).
        """
        rows, n_tasks = sequences.once(_rows), sequences.n_tasks
        if rows.longest > self.max_len:
            raise ValueError(f"CausalLM: a sequence of {rows.longest} events, but max_len={self.max_len} positions")
        ids = (sequences.items - 1).clamp(min=0) if self._by_tokens else sequences.items
        with inputs.only(sequences.events):
            x = dropout(embed(ids, params[self.tables[0]]), self.dropout, generator)
        if not rows.longest:
            return x.new_zeros(n_tasks, self.net.width)
        x = x.flatten(0, 1).index_select(0, rows.event).view(-1, rows.longest, self.net.width)
        twice = differentiated_twice(params.values())
        with inputs.only(lambda: rows.real(n_tasks)):
            h = self.net(x, Bound(params, n_tasks, eager=twice, whole=x.dtype == torch.float64))
        return torch.cat([h.new_zeros(n_tasks, self.net.width), h.flatten(0, 1).index_select(0, rows.state)])

    def score(
        self, params: Weights, states: Tensor, generator: torch.Generator | None = None, items: Tensor | None = None
    ) -> Tensor:
        """states [T, N, H] -> logits [T, N, V], column i - 1 for item i. A generator switches dropout on.

        items int64 [C], rising without a repeat -> only their columns, [T, N, C]; [T, N] -> one for each pair, [T, N].
        """
        states = personal(dropout(states, self.dropout, generator), params)
        if not self._by_tokens:
            return score_items(states, params[ITEMS], None, items, padded=True)
        bias = None if self.net.output_bias is None else params[self.net.output_bias]
        scores = score_items(states, params[self.net.output], bias, items)
        return (
            scores if items is not None else scores[..., : self.n_items]
        )  # a table may be padded beyond its tokenizer

    def activation_numbers(self, n_tokens: int, longest: int) -> int:
        """How many numbers autograd keeps of one forward pass over `n_tokens` tokens in sequences of `longest`.

            layer   n (6 H + 4 Q + 4 F + heads * longest)      Q: width of all queries; F: inner width
            around  n (4 H + V)                                embeddings, last norm, softmax of the scores

        Padding counts as tokens. The masses of attention are those of the plain products that a pass to be differentiated
        twice takes; the fused kernel keeps none. With checkpointing a layer keeps n H, and one layer at a time is whole.
        """
        c = self.net.config
        heads, width, layers = int(c.num_attention_heads), self.net.width, int(c.num_hidden_layers)
        queries = heads * int(getattr(c, "head_dim", None) or width // heads)
        inner = int(getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * width)
        layer = n_tokens * (6 * width + 4 * queries + 4 * inner + heads * longest)
        around = n_tokens * (4 * width + self.n_items)
        return around + (layers * n_tokens * width + layer if self.net.checkpointing else layers * layer)

    def as_transformers(self, params: Mapping[str, Tensor]) -> Params:
        """Weights [*S] by the names and in the orientation of transformers; those of items, which it has not, left out."""
        return {
            name: self._turned(name, value).contiguous() for name, value in params.items() if name in self.net.shapes
        }

    def _turned(self, name: str, value: Tensor) -> Tensor:
        return value.T if name in self.net.transposed else value

    def _read(self) -> Params:
        """All tensors of the directory, as they are there."""
        assert self.path is not None
        net = self.net
        shapes = {name: shape[::-1] if name in net.transposed else shape for name, shape in net.shapes.items()}
        return lm_files.read_tensors(self.path, shapes, net.whole, net.twins)

    def _compare(self, mine: Params) -> None:
        """ConfigError unless a few tokens go through transformers' own model as they do here, under the same weights.

        An architecture may do more than its modules say, such as scale its logits; then it is not one of these.
        """
        ids, net = torch.arange(min(4, self.net.vocab_size))[None], self.net
        with torch.no_grad():
            theirs = torch.func.functional_call(
                skeleton(net.config), self.as_transformers(mine), kwargs={"input_ids": ids}
            )
            bias = None if net.output_bias is None else mine[net.output_bias]
            x, gap = F.embedding(ids, mine[net.table]), 0.0
            for eager in (True, False):
                try:
                    h = net(x, Bound(mine, 1, eager=eager))
                except (AttributeError, TypeError, ValueError, RuntimeError) as reason:
                    what = f"its modules do more with their weights than to multiply by them ({reason})"
                    raise ConfigError("model.path", self.path, what, OTHERS) from reason
                gap = max(gap, float((F.linear(h, mine[net.output], bias) - theirs.logits).abs().max()))
        if not gap <= 1e-3 * max(1.0, float(theirs.logits.abs().max())):
            what = f"logits by transformers differ from those here by {gap:.2g}: it does more than layers and an output"
            raise ConfigError("model.path", self.path, what, OTHERS)


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of each sequence come from and where its states are found."""

    longest: int  # L
    event: Tensor  # int64 [T * R * L], in [0, T * M); any event of the task behind the last one
    state: Tensor  # int64 [S], in [0, T * R * L)

    def real(self, n_tasks: int) -> Tensor:
        """Which tokens are states, bool [T, R * L]."""
        found = torch.zeros(len(self.event), dtype=torch.bool, device=self.event.device)
        return found.index_fill(0, self.state, True).view(n_tasks, -1)


def _rows(sequences: Sequences) -> _Rows:
    lengths, starts = sequences.lengths, sequences.starts
    longest, events = int(lengths.max()) if lengths.numel() else 0, sequences.items.shape[1]
    at = torch.arange(longest, device=lengths.device)
    inside = starts[..., None] + at.minimum((lengths[..., None] - 1).clamp(min=0))  # [T, R, L]
    task = torch.arange(len(lengths), device=lengths.device)[:, None, None]
    event = task * events + inside.clamp(max=max(events - 1, 0))
    return _Rows(longest, event.flatten(), sequences.row * longest + sequences.step)


def _drawn(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype) * STD
