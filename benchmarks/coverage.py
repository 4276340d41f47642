"""Claim: 95 % intervals of HR@10, NDCG@10 and MRR, and of differences, hold the truth in 94 to 96 % of logs of 300 users.

    python benchmarks/coverage.py                     # 8,000 logs of 300 users, and of 50 and 20; 3 minutes
    python benchmarks/coverage.py --logs 1000 --users 300 --seed-logs 0

A simulated log has users who differ: with ability a ~ N(0, 1) the rank of a target under method m is

    ceil(exp(mu[m] - .9 a - .5 b[m] + e + .7 f[m]))        b of the user, e and f of the target, all N(0, 1)

so targets of a user go together, and methods on a target and on a user do. The user has 1 + Poisson(9 exp(.3 a - .045))
targets: who is easy to predict is also seen more. Truth is no simulation: the law of a rank given a is closed, and a is
integrated out by Gauss-Hermite quadrature. Two methods; of the second, and of its difference to the first:

    hr@10, ndcg@10, mrr, hr@1      mean over targets, the interval of `intervals.cluster_bootstrap`
    macro.<metric>                 mean over users

`expanded`: the same without BCa's correction; `plain`: percentiles, neither corrected nor expanded. Over seeds
(`metrics.seeds`): normal users and seeds whose spread is `ratio` times that of the mean over users; users alone beside
users and seeds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist

import numpy as np
from machine import finish, machine, peak_rss_bytes

from metarec.metrics import METRICS
from metarec.metrics.bootstrap import of_sums
from metarec.metrics.seeds import over_seeds
from metarec.metrics.student import expanded_z

MU = (2.9, 2.7)
ABILITY, OWN, TARGET, BOTH = 0.9, 0.5, 1.0, 0.7
COUNT, SLOPE = 9.0, 0.3
N_ITEMS = 5000  # a rank beyond is the last one: as good as none for every metric here
SHOWN = ("hr@10", "ndcg@10", "mrr", "hr@1")
Array = np.ndarray


def truth(nodes: int = 100) -> dict[str, float]:
    """Every figure's value over all users there could be."""
    ability, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight, targets = weight / weight.sum(), 1 + COUNT * np.exp(SLOPE * ability - SLOPE**2 / 2)
    rank, normal = np.arange(1, N_ITEMS + 1), NormalDist(0, math.sqrt(OWN**2 + TARGET**2 + BOTH**2))
    found: dict[str, list[float]] = {}
    for mu in MU:
        up_to = np.array([[normal.cdf(x) for x in np.log(rank[:-1]) - mu + ABILITY * a] for a in ability])
        share = np.diff(up_to, prepend=0.0, append=1.0)  # of each rank, given the ability
        for name in SHOWN:
            value = share @ METRICS[name](rank, N_ITEMS)
            found.setdefault(name, []).append(float(weight @ (targets * value) / (weight @ targets)))
            found.setdefault(f"macro.{name}", []).append(float(weight @ value))
    return {
        k: v for name, (first, second) in found.items() for k, v in ((name, second), (f"gain {name}", second - first))
    }


def logs(rng: np.random.Generator, n_users: int, n_logs: int) -> tuple[Array, dict[str, Array]]:
    """Targets of each user [U, S] in S logs, and sums over them [U, S] of every value."""
    ability = rng.normal(size=n_users * n_logs)
    count = 1 + rng.poisson(COUNT * np.exp(SLOPE * ability - SLOPE**2 / 2))
    row = np.repeat(np.arange(count.size), count)
    shared = TARGET * rng.normal(size=row.size) - ABILITY * ability[row]
    sums: dict[str, list[Array]] = {}
    for mu in MU:
        own = OWN * rng.normal(size=count.size)[row] + BOTH * rng.normal(size=row.size)
        rank = np.minimum(np.ceil(np.exp(mu + shared + own)), N_ITEMS).astype(np.int64)
        for name in SHOWN:
            total = np.bincount(row, weights=METRICS[name](rank, N_ITEMS), minlength=count.size)
            sums.setdefault(name, []).append(total.reshape(n_users, n_logs))
    out = {
        k: v for name, (first, second) in sums.items() for k, v in ((name, second), (f"gain {name}", second - first))
    }
    return count.reshape(n_users, n_logs).astype(np.float64), out


def coverage(n_users: int, n_logs: int, block: int, n_resamples: int) -> dict[str, dict[str, float]]:
    """figure -> shares of logs whose interval holds the truth, and of those where it lies below or above."""
    wanted = truth()
    hits: dict[str, Array] = {name: np.zeros((3, 2)) for name in wanted}
    done = 0
    while done < n_logs:
        size = min(block, n_logs - done)
        rng = np.random.default_rng([n_users, done])
        count, sums = logs(rng, n_users, size)
        # logs drawn together are columns with counts of their own, user by user the same draws
        for name, table in sums.items():
            metric = name.removeprefix("gain ")
            macro = f"gain macro.{metric}" if name.startswith("gain ") else f"macro.{metric}"
            for figure, of in ((name, (table, count)), (macro, (table / count, np.ones(n_users)))):
                drawn = of_sums(*of, n_resamples=n_resamples, seed=done)
                tail = NormalDist().cdf(-expanded_z(0.95, n_users - 1, 1.0 - 1.0 / n_users))
                ends = (
                    drawn.interval(0.95),
                    np.quantile(drawn.draws, [tail, 1.0 - tail], axis=0),
                    np.quantile(drawn.draws, [0.025, 0.975], axis=0),
                )
                for way, (low, high) in enumerate(ends):
                    hits[figure][way] += [(wanted[figure] < low).sum(), (wanted[figure] > high).sum()]
        done += size
    return {
        name: {
            **{
                way: 1 - missed.sum() / n_logs
                for way, missed in zip(("coverage", "expanded", "plain"), own, strict=True)
            },
            "below": own[0, 0] / n_logs,
            "above": own[0, 1] / n_logs,
        }
        for name, own in hits.items()
    }


def seed_coverage(n_seeds: int, ratio: float, n_logs: int, n_users: int = 300) -> dict[str, float]:
    """Shares of comparisons whose interval holds the truth 0: of the function, and of users alone."""
    spread, hits = math.sqrt(ratio * n_seeds / n_users), np.zeros(2)
    rng = np.random.default_rng([n_seeds, int(100 * ratio)])
    for log in range(n_logs):
        values = rng.normal(size=n_users) + spread * rng.normal(size=(n_seeds, 1)) + rng.normal(size=(n_seeds, n_users))
        found = over_seeds(values, n_resamples=1000, seed=log)
        alone = over_seeds(values.mean(axis=0, keepdims=True), n_resamples=1000, seed=log)
        hits += [found.low <= 0 <= found.high, alone.low <= 0 <= alone.high]
    return {"coverage": hits[0] / n_logs, "users_alone": hits[1] / n_logs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[300, 50, 20])
    parser.add_argument("--logs", type=int, default=8_000)
    parser.add_argument("--block", type=int, default=250, help="logs drawn together; memory grows with it")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed-logs", type=int, default=500, help="comparisons over seeds; 0 = none")
    parser.add_argument("--record", action="store_true", help="append a line to docs/results/performance.md")
    options = parser.parse_args()
    found = {n: coverage(n, options.logs, options.block, options.resamples) for n in options.users}
    error = math.sqrt(0.95 * 0.05 / options.logs)
    true = truth()
    print(
        f"95 % intervals, {options.logs:,} logs each, standard error of a share {100 * error:.2f} %; "
        "in brackets expanded alone, and plain"
    )
    print(f"{'':20s}{'truth':>8s}" + "".join(f"{n:>15,} users" for n in options.users))
    for name in true:
        shares = [
            "{:.1f} ({:.1f}, {:.1f})".format(*(100 * own[name][way] for way in ("coverage", "expanded", "plain")))
            for own in found.values()
        ]
        print(f"{name:20s}{true[name]:8.4f}" + "".join(f"{share:>21s}" for share in shares))
    seeds = {
        f"{n_seeds} seeds, ratio {ratio:g}": seed_coverage(n_seeds, ratio, options.seed_logs)
        for n_seeds in (3, 5) for ratio in (0.0, 1.0, 3.0, 30.0) if options.seed_logs
    }  # fmt: skip
    for name, own in seeds.items():
        print(f"{name}: {100 * own['coverage']:.1f}, users alone {100 * own['users_alone']:.1f}")
    finish(
        {
            "benchmark": "coverage",
            "ratios": {f"{name}, {n} users": own[name]["coverage"] for n, own in found.items() for name in SHOWN[:2]},
            "coverage": {str(n): own for n, own in found.items()},
            "over_seeds": seeds,
            "truth": true,
            "standard_error": error,
            "bytes": {"peak_rss": peak_rss_bytes()},
            "sizes": {"logs": options.logs, "resamples": options.resamples, "seed_logs": options.seed_logs},
            "machine": machine(),
        },
        options.record,
    )


if __name__ == "__main__":
    main()
