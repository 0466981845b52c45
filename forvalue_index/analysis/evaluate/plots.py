"""Tables of methods as bar charts: a panel for each figure, a bar for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forvalue_index.data.upload import Destination, suffix_of
from forvalue_index.data.writers import complete
from forvalue_index.errors import DependencyError, InputError

if TYPE_CHECKING:
    from forvalue_index.analysis.evaluate.metrics import Figure

OURS, OTHERS = "#2a6f97", "#adb5bd"
INFLUENCE = ("stored", "exact", "audit", "balanced", "kfac", "raw", "value")


def require_plots(place: Destination) -> None:
    """Checks that a chart can be written to a file or URL.

    Raises:
        DependencyError: the library is not installed.
        InputError: the name does not end in .png.
    """
    if suffix_of(place).lower() != ".png":
        raise InputError(f"--plot {place}: the plot is a PNG file, so its name must end in .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DependencyError(
            'a plot needs the package matplotlib: pip install "forvalue-index[eval]"'
        ) from None


def bars(path: Path, methods: Mapping[str, Any], columns: Mapping[str, str], title: str) -> None:
    """Writes a bar chart of methods: their means, with the standard error where there is one.

    Args:
        path: of the PNG file.
        methods: name -> what holds a `Figure` under each name in `columns`.
        columns: name of a figure -> its heading.
        title: of the chart.

    Raises:
        DependencyError: the library is not installed.
        InputError: the name does not end in .png.
        StorageError: the file cannot be written.
    """
    require_plots(path)
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(2.5 + 3 * len(columns), 1.2 + 0.28 * len(methods)), dpi=150)
    picture.set_layout_engine("constrained")
    panels = picture.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, (name, heading) in zip(panels, columns.items(), strict=True):
        _panel(panel, list(methods), [getattr(found, name) for found in methods.values()])
        panel.set_xlabel(heading)
    picture.suptitle(title, fontsize="medium")
    with complete(path) as file:
        picture.savefig(file, format="png")


def _panel(panel: Any, names: Sequence[str], figures: Sequence[Figure]) -> None:
    """Draws one figure of all methods, the first at the top."""
    means = [figure.mean or 0.0 for figure in figures]
    errors = [figure.se or 0.0 for figure in figures]
    colors = [OURS if name.startswith(INFLUENCE) else OTHERS for name in names]
    panel.barh(names, means, xerr=errors, color=colors, error_kw={"linewidth": 0.8})
    panel.invert_yaxis()
    panel.grid(axis="x", linewidth=0.4)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
