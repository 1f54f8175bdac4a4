"""Figures of matplotlib that notebooks show, with and without `%matplotlib inline`."""

import io
from typing import Any


def shown(figure: Any) -> Any:
    """The same figure, which a notebook displays; elsewhere its `savefig` writes it to a file."""
    figure._repr_png_ = lambda: _png(figure)
    return figure


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return data.getvalue()
