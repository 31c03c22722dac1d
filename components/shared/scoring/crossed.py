"""Paired differences of several training seeds on the same images, with intervals for new seeds and new images.

Seeds and images are crossed: the model of every seed answers every image. The difference of seed s on image i is
modelled as mean + a_s + b_i + e_si with independent random effects. A bootstrap over three seeds covers the mean far
less often than it says, and an interval over the seeds' means alone takes the test images as given.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.shared.scoring.errors import Array, Subjects


def crossed_difference(
    ours: Sequence[Array], theirs: Sequence[Array], mask: NDArray[np.bool_], subjects: Subjects | None = None
) -> dict[str, object]:
    """Mean of `ours - theirs` over the masked images, paired by image and seed, with its 95 % interval.

    >>> ours, theirs = [np.array([1.0, 2.0]), np.array([2.0, 2.0])], [np.array([2.0, 4.0]), np.array([2.0, 6.0])]
    >>> crossed_difference(ours, theirs, np.array([True, True]))["difference"]
    -1.75

    Args:
        ours, theirs: one `(N,)` array of absolute errors per seed, for the same seeds and images in the same order.
        mask: `(N,)` selects the images.
        subjects: `(N,)` numbers of the persons or devices in the images, which are then what is drawn anew: images of
            one subject are not independent. None: every image counts as a subject of its own.

    Returns:
        `{"n", "seeds", "difference", "ci", "df", "per_seed"}`; a negative difference means that ours is better. `df`
        is the degrees of freedom of the interval. With one seed, the interval is for new images and the same seed. For
        one image or subject, `ci` and `df` are None, because nothing is known of others. For an empty mask, n is 0
        and the other figures are None.

    Raises:
        ValueError: `ours` and `theirs` have different numbers of seeds.
    """
    n = int(mask.sum())
    if n == 0:
        return {"n": 0, "seeds": len(ours), "difference": None, "ci": None, "df": None, "per_seed": None}
    gaps = np.stack([a[mask] - b[mask] for a, b in zip(ours, theirs, strict=True)])
    mean = float(gaps.mean())
    result: dict[str, object] = {"n": n, "seeds": len(gaps), "difference": mean, "ci": None, "df": None}
    units = gaps if subjects is None else by_subject(gaps, subjects[mask])
    if units.shape[1] > 1:
        half, df = half_width(units)
        result |= {"ci": [mean - float(half), mean + float(half)], "df": float(df)}
    return result | {"per_seed": [float(g.mean()) for g in gaps]}


def by_subject(gaps: Array, subjects: Subjects) -> Array:
    """The share of each subject in the mean over the images, times the number of subjects: the mean is the same.

    >>> by_subject(np.array([[1.0, 2.0, 6.0]]), np.array([7, 7, 9])).tolist()
    [[2.0, 4.0]]

    Args:
        gaps: `(S, n)`.
        subjects: `(n,)`.

    Returns:
        `(S, m)` for m subjects.
    """
    _, place = np.unique(subjects, return_inverse=True)
    sums = np.stack([np.bincount(place, row) for row in gaps])
    return np.asarray(sums * sums.shape[1] / gaps.shape[1], np.float64)


def half_width(gaps: Array) -> tuple[Array, Array]:
    """Half the width of the 95 % interval of the mean of each table, and its degrees of freedom.

    With one seed, it is Student's interval over the images. With more, the variance of the mean, var(a)/S + var(b)/n +
    var(e)/(S n), is estimated by (MS_seeds + MS_images - MS_interaction)/(S n); a negative estimate of var(a) or var(b)
    counts as 0. The degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110-114) for the same sum, in
    which each mean square with v degrees of freedom counts 1 + 4/v times: seeds that differ little by chance would
    otherwise both shorten the interval and raise its degrees of freedom, and three seeds would cover 92 %, not 95 %.
    With it, three or more seeds cover at least 93.5 % from three images on (94.5 % from 40 on), two seeds 92 %.

    Args:
        gaps: `(..., S, n)` differences of S seeds on n images, n > 1.

    Returns:
        Two arrays `(...)`.
    """
    seeds, n = gaps.shape[-2:]
    if seeds == 1:
        df = np.full(gaps.shape[:-2], n - 1.0)
        return t_quantile(df) * np.sqrt(gaps[..., 0, :].var(axis=-1, ddof=1) / n), df
    by_seed, by_image, rest = mean_squares(gaps)
    variance = np.maximum(by_seed + by_image - rest, np.maximum(by_seed, by_image)) / (seeds * n)
    a, b = by_seed * (1 + 4 / (seeds - 1)), by_image * (1 + 4 / (n - 1))
    spread = a**2 / (seeds - 1) + b**2 / (n - 1) + rest**2 / ((seeds - 1) * (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(spread > 0, np.maximum(a + b - rest, 0.0) ** 2 / spread, 0.0)
    df = np.maximum(df, min(seeds, n) - 1.0)  # a sum of mean squares never has fewer than the least of its terms
    return t_quantile(df) * np.sqrt(variance), df


def mean_squares(gaps: Array) -> tuple[Array, Array, Array]:
    """Mean squares of seeds, of images and of their interaction, each `(...)`.

    Their expectations are n var(a) + var(e), S var(b) + var(e) and var(e).

    Args:
        gaps: `(..., S, n)`, at least two seeds and two images.
    """
    seeds, n = gaps.shape[-2:]
    by_seed, by_image = gaps.mean(axis=-1, keepdims=True), gaps.mean(axis=-2, keepdims=True)
    rest = gaps - by_seed - by_image + gaps.mean(axis=(-2, -1), keepdims=True)
    return (
        n * by_seed[..., 0].var(axis=-1, ddof=1),
        seeds * by_image[..., 0, :].var(axis=-1, ddof=1),
        (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (n - 1)),
    )


def t_quantile(df: ArrayLike, coverage: float = 0.95) -> Array:
    """The t within which Student's distribution has probability `coverage`: 1.96 for many degrees of freedom.

    P(|T| < t) is the integral of cos(x)^(df - 1) from 0 to atan(t / sqrt(df)), divided by B(df / 2, 1 / 2) / 2. It is
    concave in its upper end, so Newton's method from the normal distribution's t, which is smaller, never overshoots.

    Args:
        df: degrees of freedom, at least 1; need not be whole.
    """
    v = np.minimum(np.asarray(df, np.float64), 1e6)[..., None]  # the rest differs from the limit by less than 1e-5
    logs = np.vectorize(math.lgamma, otypes=[np.float64])
    scale = 2 / math.sqrt(math.pi) * np.exp(logs((v + 1) / 2) - logs(v / 2))
    nodes, weights = np.polynomial.legendre.leggauss(32)
    angle = np.arctan(NormalDist().inv_cdf((1 + coverage) / 2) / np.sqrt(v))
    for _ in range(10):
        inside = scale * angle / 2 * (np.cos(angle * (nodes + 1) / 2) ** (v - 1) @ weights)[..., None]
        angle = angle + (coverage - inside) / (scale * np.cos(angle) ** (v - 1))
    return np.asarray((np.sqrt(v) * np.tan(angle))[..., 0], np.float64)
