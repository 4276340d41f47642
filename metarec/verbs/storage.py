"""The trials of a search in Optuna's SQLite storage: drawn, told, taken up again. The one file that imports Optuna.

A kill at any instant leaves whole trials: a new one is written in one transaction with all of its parameters, by one
process, the search itself. What is drawn next is a function of (sampler seed, trials so far), for every draw has a sampler
of its own: a sampler that began anew after a kill would draw its first trials a second time. So a search of one job at a
time that was killed and resumed has the trials of one that never was.

Sources: Akiba et al. 2019, arXiv:1907.10902 (Optuna); TPE: Bergstra et al. 2011, NeurIPS; hyperband: Li et al. 2018,
JMLR 18.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from metarec.config.search import Search
from metarec.config.space import Dimension, grid
from metarec.errors import EnvironmentFault

DRAWS = 20  # before a setting not tried yet is looked up: only a small space, nearly used up, takes so many
STATUS = {
    TrialState.COMPLETE: "ok", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.RUNNING: "running",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One trial as the storage has it. `status`: ok | pruned | failed | running."""

    number: int
    params: dict[str, Any]
    status: str
    value: float | None  # of a pruned one the last that was reported
    notes: dict[str, Any] = field(default_factory=dict)  # directory, seconds, exit_code, error


class Study:
    """The study of a search in the SQLite file `storage`, made where it is not there. Raises EnvironmentFault."""

    def __init__(self, storage: Path, search: Search) -> None:
        self.search, self.options = search, search.options
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            storage.parent.mkdir(parents=True, exist_ok=True)
            self._study = optuna.create_study(
                storage=f"sqlite:///{storage.resolve()}", study_name=self.options.study_name, direction="maximize",
                load_if_exists=True, pruner=self._pruner(),
            )  # fmt: skip
        except Exception as reason:  # Optuna's, SQLAlchemy's and Alembic's have no common base class
            found = str(reason).splitlines()[0]
            what = "not usable as the storage of a search"
            raise EnvironmentFault(storage, found, what, "give another hydra.sweeper.storage=FILE") from reason
        self._distributions = {one.key: _distribution(one) for one in search.space}

    @property
    def notes(self) -> dict[str, Any]:
        """What stands beside the trials: the search's `directory` and what it was asked."""
        return dict(self._study.user_attrs)

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value beside the trials, durably; one of that key is replaced."""
        self._study.set_user_attr(key, value)

    def rows(self) -> list[Row]:
        """All trials in order of drawing, running ones among them."""
        return [_row(trial) for trial in self._trials()]

    def best(self) -> Row | None:
        """The finished trial with the largest value, the earlier of two equal ones."""
        done = [row for row in self.rows() if row.status == "ok" and row.value is not None]
        return max(done, key=lambda row: (row.value, -row.number), default=None)

    def draw(self) -> Row | None:
        """A new running trial with a setting that no other has; None where the search has all of its trials."""
        trials = self._trials()
        if len(trials) >= self.search.n_trials:
            return None
        params = self._unseen(trials)
        if params is None:
            return None
        self._study.add_trial(
            optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions)
        )
        return _row(self._trials()[len(trials)])

    def report(self, number: int, step: int, value: float) -> bool:
        """Store a validation value; whether the trial should go no further."""
        trial = self._live(number)
        if step not in self._trials()[number].intermediate_values:  # else it was told before a kill
            trial.report(value, step)
        return bool(trial.should_prune())

    def tell(self, number: int, status: str, value: float | None, notes: Mapping[str, Any]) -> Row:
        """End a running trial: ok with its value, pruned, or failed."""
        trial = self._live(number)
        for key, note in notes.items():
            trial.set_user_attr(key, note)
        state = next(state for state, name in STATUS.items() if name == status)
        self._study.tell(number, value if state == TrialState.COMPLETE else None, state=state)
        return self.rows()[number]

    def importance(self) -> dict[str, float] | None:
        """Share of each key in what tells good trials from bad ones (PED-ANOVA, Watanabe et al. 2023,
        arXiv:2304.10255); null where fewer than `startup_trials` or 4 ended, or all with one value."""
        done = [row for row in self.rows() if row.status == "ok"]
        if len(self.search.space) < 2 or len(done) < max(4, self.options.startup_trials):
            return None
        if len({row.value for row in done}) < 2:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _live(self, number: int) -> Trial:
        """The handle of a running trial, whichever process began it."""
        return Trial(self._study, self._trials()[number]._trial_id)

    def _unseen(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        seen = {_key(trial.params) for trial in trials}
        if self.options.sampler != "grid":
            shadow = optuna.create_study(  # in memory: asking leaves half-made trials, which a kill must not find
                study_name=self.options.study_name, direction="maximize", pruner=self._pruner()
            )
            shadow.add_trials(trials)
            for attempt in range(DRAWS):
                shadow.sampler = self._sampler(len(trials), attempt)
                drawn = shadow.ask(self._distributions).params
                params = {one.key: one.nearest(drawn[one.key]) for one in self.search.space}
                if _key(params) not in seen:
                    return params
        if any(one.values is None for one in self.search.space):
            raise AssertionError("a continuum gave no new setting")  # twenty equal floats in a row
        return next((params for params in grid(self.search.space) if _key(params) not in seen), None)

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        key = hashlib.sha256(f"{self.options.seed} {number} {attempt}".encode()).digest()
        seed = int.from_bytes(key[:4], "little")
        if self.options.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of constant_liar, before Optuna 5
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self.options.startup_trials, constant_liar=True
            )

    def _pruner(self) -> optuna.pruners.BasePruner:
        """Steps are outer steps, of a search over seeds the number of seeds done."""
        config, seeds = self.search.config, self.options.seeds
        if self.options.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=self.options.startup_trials)
        if self.options.pruner == "hyperband":
            first = 1 if seeds or config.algorithm.name == "supervised" else config.train.eval_every
            return optuna.pruners.HyperbandPruner(min_resource=first)
        return optuna.pruners.NopPruner()


def _distribution(one: Dimension) -> BaseDistribution:
    if one.kind == "choice":
        return CategoricalDistribution(tuple(one.values or ()))
    if one.kind == "int":
        return IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return FloatDistribution(one.low, one.high, log=one.log, step=one.step)


def _row(trial: FrozenTrial) -> Row:
    return Row(trial.number, dict(trial.params), STATUS[trial.state], trial.value, dict(trial.user_attrs))


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
