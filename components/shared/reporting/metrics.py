"""Metrics by shot group, with bootstrap intervals over the test images, or over their subjects where these are known.

Images of one subject (a person or a device) are not independent: intervals over images would be far too narrow.
"""

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.shared.scoring.crossed import t_quantile
from components.shared.scoring.errors import Array, Predictions, Subjects
from components.shared.scoring.shots import GROUPS

RESAMPLES_AT_ONCE = 250


def resamples(n: int, times: int, seed: int, subjects: Subjects | None = None) -> Iterator[Array]:
    """Yields bootstrap weights, how often each of `n` images is drawn: blocks `(<=250, n)`, `times` rows in total.

    Args:
        subjects: `(n,)`, see `Predictions`. Whole subjects are drawn, with all their images.
    """
    rng = np.random.default_rng(seed)
    units = n if subjects is None else int(subjects.max()) + 1
    for start in range(0, times, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, times - start)
        drawn = rng.multinomial(units, np.full(units, 1 / units), size=rows).astype(np.float64)
        yield drawn if subjects is None else drawn[:, subjects]


def interval(samples: ArrayLike, units: int | None = None) -> list[float] | None:
    """Central 95 % interval of bootstrap samples; None if no sample is finite.

    Args:
        units: how many images or subjects were resampled. With few, the percentiles are too narrow; they are moved
            outwards as far as Student's interval is wider than the normal one (Hesterberg 2015, "What teachers should
            know about the bootstrap", American Statistician 69:371-386, section 5.3). None: as they are.
    """
    finite = np.asarray(samples, np.float64)
    finite = finite[np.isfinite(finite)]
    tail = 0.025
    if units is not None:
        tail = NormalDist().cdf(-float(t_quantile(units - 1.0)) * math.sqrt(units / (units - 1)))
    return [float(q) for q in np.quantile(finite, [tail, 1 - tail])] if len(finite) else None


Statistic = Callable[[Array], Array]


def mean_over(values: Array, mask: NDArray[np.bool_]) -> Statistic:
    """Returns a function of weights `(R, N)`: the weighted mean of `values` over the masked images, `(R,)`.

    The mean is NaN where none of the masked images was drawn.
    """

    def statistic(weights: Array) -> Array:
        drawn = weights[:, mask]
        total = drawn.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (drawn @ values[mask]) / total

    return statistic


def moments(predictions: Array, targets: Array) -> Callable[[Array], dict[str, Array]]:
    """Returns a function of weights `(R, N)`: rmse, pearson, ccc and sd_ratio, each `(R,)`, NaN where undefined."""
    centre = targets.mean()
    p, t = predictions - centre, targets - centre
    columns = np.stack([p, t, p * p, t * t, p * t], axis=1)

    def statistic(weights: Array) -> dict[str, Array]:
        mp, mt, pp, tt, pt = ((weights @ columns) / weights.sum(axis=1, keepdims=True)).T
        vp, vt = np.maximum(pp - mp**2, 0.0), np.maximum(tt - mt**2, 0.0)
        # The variance of a constant vector is not exactly 0 but rounding noise, about 1e-16 of its mean square.
        vp, vt = np.where(vp < 1e-12 * pp, 0.0, vp), np.where(vt < 1e-12 * tt, 0.0, vt)
        cov, gap = pt - mp * mt, mp - mt
        lin = vp + vt + gap**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "rmse": np.sqrt(np.maximum(pp + tt - 2 * pt, 0.0)),
                "pearson": np.where(vp * vt > 0, cov / np.sqrt(vp * vt), np.nan),
                "ccc": np.where(lin > 0, 2 * cov / lin, 0.0),
                "sd_ratio": np.where(vt > 0, np.sqrt(vp) / np.sqrt(vt), np.nan),
            }

    return statistic


def median_over(values: Array, mask: NDArray[np.bool_]) -> Statistic:
    """Returns a function of weights `(R, N)`: the weighted median of `values` over the masked images, `(R,)`."""
    chosen = values[mask]
    order = np.argsort(chosen, kind="stable")

    def statistic(weights: Array) -> Array:
        drawn = weights[:, mask][:, order].cumsum(axis=1)
        total = drawn[:, -1:]
        middle = (drawn >= total / 2).argmax(axis=1)
        return np.where(total[:, 0] > 0, chosen[order][middle], np.nan)

    return statistic


def with_intervals(
    figures: Callable[[Array], dict[str, Array]], n: int, times: int, seed: int, subjects: Subjects | None = None
) -> tuple[dict[str, float], dict[str, list[float] | None]]:
    """Values of some statistics of `n` images, and their 95 % bootstrap intervals over the images.

    Args:
        figures: function of weights `(R, n)` that returns each statistic's values `(R,)`.
        subjects: see `resamples`.
    """
    point = {name: float(v[0]) for name, v in figures(np.ones((1, n))).items()}
    blocks = [figures(weights) for weights in resamples(n, times, seed, subjects)]
    return point, {name: interval(np.concatenate([b[name] for b in blocks])) for name in point}


def evaluate(
    predictions: Predictions, times: int = 1000, seed: int = 0, constant: float | None = None
) -> dict[str, object]:
    """Computes every metric of one model, each with its 95 % bootstrap interval over images or subjects.

    Args:
        constant: the best constant answer to the validation images, for `skill`: 1 - MAE / MAE of that constant.

    Returns:
        `{"groups": {group: {"n", "mae", "mae_ci", "gm", "gm_ci"}}, "rmse", "rmse_ci", "pearson", ..., "unparseable",
        "unparseable_ci", "gm_floor", "n"}`, and `subjects`, their number, where they are known. An empty shot group has
        `n` 0 and None for every metric. An undefined metric (Pearson correlation of a constant; skill without a
        constant) is None.

    Raises:
        ValueError: there are no predictions.
    """
    if not len(predictions.targets):
        raise ValueError("no predictions to evaluate")
    errors = predictions.errors
    logs = np.log(np.maximum(errors, predictions.floor))
    statistics: dict[str, Statistic] = {
        "unparseable": mean_over(predictions.unparseable.astype(np.float64), predictions.members("all"))
    }
    for group in GROUPS:
        mask = predictions.members(group)
        if mask.any():
            statistics[f"mae.{group}"] = mean_over(errors, mask)
            statistics[f"gm.{group}"] = mean_over(logs, mask)
    shape = moments(predictions.scored, predictions.targets)
    everything = predictions.members("all")
    reference = None if constant is None else mean_over(np.abs(predictions.targets - constant), everything)

    def figures(weights: Array) -> dict[str, Array]:
        values = {name: statistic(weights) for name, statistic in statistics.items()} | shape(weights)
        if reference is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                values["skill"] = 1 - values["mae.all"] / reference(weights)
        return {name: np.exp(v) if name.startswith("gm.") else v for name, v in values.items()}

    n = len(predictions.targets)
    point, spread = with_intervals(figures, n, times, seed, predictions.subjects)
    groups = {}
    for group in GROUPS:
        size = int(predictions.members(group).sum())
        groups[group] = {"n": size} | {
            key: value
            for metric in ("mae", "gm")
            for key, value in (
                (metric, point.get(f"{metric}.{group}")),
                (f"{metric}_ci", spread.get(f"{metric}.{group}")),
            )
        }
    result: dict[str, object] = {"n": n, "gm_floor": predictions.floor, "groups": groups}
    if predictions.subjects is not None:
        result["subjects"] = int(predictions.subjects.max()) + 1
    for name in ("rmse", "pearson", "ccc", "sd_ratio", "skill", "unparseable"):
        value = point.get(name, np.nan)
        result[name] = value if np.isfinite(value) else None
        result[f"{name}_ci"] = spread.get(name)
    return result


def paired_difference(
    ours: list[Array],
    theirs: list[Array],
    mask: NDArray[np.bool_],
    times: int = 2000,
    seed: int = 0,
    subjects: Subjects | None = None,
) -> dict[str, object]:
    """Mean of `ours - theirs` over the masked images, paired by image and seed.

    Args:
        ours, theirs: one `(N,)` array of absolute errors per seed, for the same seeds and images in the same order.
        mask: `(N,)` selects the images.
        subjects: `(N,)`, see `Predictions`.

    Returns:
        `{"n", "subjects", "seeds", "difference", "ci", "per_seed"}`; a negative difference means that ours is better.
        The interval is a two-level bootstrap over seeds and subjects (images, where subjects are unknown and
        `subjects` is None); with one seed, over subjects only. For one subject `ci` is None, because nothing is known
        of others. For an empty mask, n is 0 and the difference, its interval and per_seed are None.
    """
    n = int(mask.sum())
    if n == 0:
        return {"n": 0, "subjects": None, "seeds": len(ours), "difference": None, "ci": None, "per_seed": None}
    subject = np.arange(n) if subjects is None else np.unique(subjects[mask], return_inverse=True)[1]
    units = int(subject.max()) + 1
    gaps = np.stack([a[mask] - b[mask] for a, b in zip(ours, theirs, strict=True)])
    rng = np.random.default_rng(seed)
    seeds = len(gaps)
    samples = np.empty(times)
    for start in range(0, times, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, times - start)
        images = rng.multinomial(units, np.full(units, 1 / units), size=rows)[:, subject]
        images = images / images.sum(axis=1, keepdims=True)
        picks = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=rows) / seeds
        samples[start : start + rows] = np.einsum("rs,sn,rn->r", picks, gaps, images, optimize=True)
    return {
        "n": n,
        "subjects": None if subjects is None else units,
        "seeds": seeds,
        "difference": float(gaps.mean()),
        "ci": interval(samples, units) if units > 1 else None,
        "per_seed": [float(g.mean()) for g in gaps],
    }
