"""Cases of the rules about `objective.surprise`, for config/test_rules.py."""

from __future__ import annotations

ON = "objective.surprise.fast=0.05"
CASES = [
    (
        "surprise_unused",
        "objective.surprise.scale=raw",
        "does nothing: no level has a weight",
        f"{ON} objective.surprise.scale=raw",
    ),
    (
        "surprise_unused",
        f"{ON} objective.surprise.target=zero objective.surprise.scale=raw",
        "objective.surprise.scale: raw: does nothing: with objective.surprise.target=zero no gradient is taken",
        f"{ON} objective.surprise.target=zero objective.surprise.every=2",
    ),
    (
        "surprise_unused",
        f"{ON} objective.surprise.scale=normalised objective.surprise.clip=2",
        "no target is longer than one",
        f"{ON} objective.surprise.scale=normalised objective.surprise.clip=0.5",
    ),
    (
        "surprise_of_levels",
        "objective.surprise.medium=0.01",
        "objective.surprise.medium: 0.01: model=gru4rec has no such level, only fast",
        "model=nested objective.surprise.medium=0.01",
    ),
    (
        "surprise_of_no_loop",
        f"{ON} objective.surprise.where=outer algorithm=supervised",
        "algorithm=supervised has no outer loop",
        f"{ON} objective.surprise.where=pretrain algorithm=supervised",
    ),
    (
        "surprise_of_no_loop",
        f"{ON} objective.surprise.where=pretrain warm_start=none residual=off algorithm=maml",
        "with warm_start=none nothing is pretrained",
        f"{ON} objective.surprise.where=both warm_start=none residual=off algorithm=maml",
    ),
    (
        "surprise_of_no_loop",
        f"{ON} objective.surprise.where=outer residual=head algorithm=maml",
        "trains the head alone, and no state depends on it",
        f"{ON} objective.surprise.where=outer residual=bias algorithm=maml",
    ),
    (
        "surprise_of_own_gradients",
        f"{ON} objective.surprise.second_order=true algorithm=reptile residual=off",
        "takes each task's own gradient of the loss, which would not be whole",
        f"{ON} objective.surprise.second_order=true algorithm=fomaml residual=off",
    ),
]
