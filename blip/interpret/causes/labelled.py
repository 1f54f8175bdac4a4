"""An array with named dimensions and a name for each place along them: select, sum, print, draw and write it."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from blip.errors import InputError
from blip.files import whole_file, write_whole
from blip.interpret.pictures import needs_matplotlib

LARGEST_PICTURE = 40  # inches a side


@dataclass(frozen=True)
class Labelled:
    """An array whose dimensions, and the places along each, have names.

    Args:
        values: the numbers; NaN where there is none.
        dims: a name for each dimension.
        coords: by dimension, the labels of its places, all different.
        name: what the numbers are.
        unit: of the numbers.
        notes: what was measured beside them.

    Raises:
        InputError: labels and values do not fit together.

    Example:
        >>> import numpy as np
        >>> effects = blip.Labelled(np.eye(2), ("layer", "head"), {"layer": ["0", "1"], "head": ["0", "1"]})
        >>> effects.select(layer="1").values.tolist()
        [0.0, 1.0]
        >>> effects.top(1)
        [({'layer': '0', 'head': '0'}, 1.0)]
        >>> effects.to_csv("effects.csv")
    """

    values: np.ndarray
    dims: tuple[str, ...]
    coords: Mapping[str, Sequence[str]]
    name: str = "value"
    unit: str = ""
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(len(self.coords[dim]) if dim in self.coords else -1 for dim in self.dims)
        if shape != self.values.shape:
            raise InputError(f"values of shape {self.values.shape} have labels for {shape}")
        if repeated := [dim for dim in self.dims if len(set(self.coords[dim])) < len(self.coords[dim])]:
            raise InputError(f"a label occurs twice along {repeated[0]}: {list(self.coords[repeated[0]])}")

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(self.coords[dim])} {dim}" for dim in self.dims)
        lines = [f"{self._title()}: {sizes}", *(f"{key}: {value:.4g}" for key, value in self.notes.items())]
        largest = ("  " + " ".join([*labels.values(), f"{value:+.4g}"]) for labels, value in self.top(5))
        return "\n".join([*lines, "largest:", *largest])

    def select(self, **labels: str | Sequence[str]) -> "Labelled":
        """The part at one label of a dimension, which goes away, or at several labels, where it stays.

        Raises:
            InputError: there is no such dimension or label; the message lists what there is.
        """
        values, dims, coords = self.values, list(self.dims), dict(self.coords)
        for dim, wanted in labels.items():
            axis, known = self._axis(dim, dims), list(coords[dim])
            several = [wanted] if isinstance(wanted, str) else list(wanted)
            if unknown := [label for label in several if label not in known]:
                raise InputError(f"{dim} has no {unknown[0]!r}; it has {', '.join(known)}")
            values = values.take([known.index(label) for label in several], axis=axis)
            coords[dim] = several
            if isinstance(wanted, str):
                values = values.squeeze(axis)
                dims.remove(dim)
                del coords[dim]
        return replace(self, values=values, dims=tuple(dims), coords=coords)

    def sum(self, dim: str) -> "Labelled":
        """Added up along a dimension; NaN counts as 0."""
        axis = self._axis(dim, self.dims)
        coords = {name: labels for name, labels in self.coords.items() if name != dim}
        dims = tuple(name for name in self.dims if name != dim)
        return replace(self, values=np.nansum(self.values, axis=axis), dims=dims, coords=coords)

    def top(self, n: int) -> list[tuple[dict[str, str], float]]:
        """The n largest numbers by size without sign, each with its labels."""
        flat = self.values.ravel()
        order = np.argsort(-np.nan_to_num(np.abs(flat), nan=-1.0), kind="stable")
        return [(self.labels_at(int(i)), float(flat[i])) for i in order[:n] if not np.isnan(flat[i])]

    def labels_at(self, place: int) -> dict[str, str]:
        """The label along each dimension of a place in the flattened array."""
        places = np.unravel_index(place, self.values.shape)
        return {dim: self.coords[dim][int(i)] for dim, i in zip(self.dims, places, strict=True)}

    def to_csv(self, path: str | Path) -> None:
        """A line for each number, with its labels; none for NaN."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*self.dims, self.name.replace(" ", "_")])
        for place, value in enumerate(self.values.ravel()):
            if not np.isnan(value):
                rows.writerow([*self.labels_at(place).values(), repr(float(value))])
        write_whole(path, text.getvalue())

    def picture(self, path: str | Path) -> None:
        """A heat map as PNG, the first dimension down and the second across; red adds, blue takes away, grey is NaN.

        Raises:
            InputError: there are more than two dimensions: select or sum first.
            PictureError: matplotlib is not installed.
        """
        if not 1 <= len(self.dims) <= 2:
            raise InputError(
                f"a picture has one or two dimensions, not {len(self.dims)} ({', '.join(self.dims)}): select or sum"
            )
        needs_matplotlib()
        from matplotlib.figure import Figure

        values = self.values if len(self.dims) == 2 else self.values[:, None]
        rows = self.coords[self.dims[0]]
        columns = self.coords[self.dims[1]] if len(self.dims) == 2 else [""]
        width = min(LARGEST_PICTURE, 2.5 + 0.09 * max(map(len, rows)) + 0.32 * len(columns))
        height = min(LARGEST_PICTURE, 1.5 + 0.08 * max(map(len, columns)) + 0.22 * len(rows))
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        finite = np.abs(values[~np.isnan(values)])
        limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
        shown = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axes.set_facecolor("0.8")
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
        axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=90 if max(map(len, columns)) > 2 else 0)
        axes.set_ylabel(self.dims[0])
        axes.set_xlabel(self.dims[1] if len(self.dims) == 2 else "")
        axes.set_title(self._title(), fontsize=9)
        figure.colorbar(shown)
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=100)

    def _title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def _axis(self, dim: str, dims: Sequence[str]) -> int:
        if dim not in dims:
            raise InputError(f"there is no dimension {dim!r}; there are {', '.join(dims)}")
        return list(dims).index(dim)
