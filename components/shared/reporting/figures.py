"""Style and saving of figures; the same data gives the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#333a44"
DPI = 144
STYLE: Any = {
    "backend": "Agg",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@contextmanager
def style() -> Iterator[None]:
    """Context in which figures are drawn and saved in the project's style; the user's matplotlibrc is ignored."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def save(figure: "Figure", path: Path) -> None:
    """Writes a PNG without date and library version."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None}, bbox_inches="tight")
