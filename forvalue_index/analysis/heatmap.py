"""An explanation as one HTML page: both texts in colour, and a heat map of their tokens."""

from __future__ import annotations

import base64

from forvalue_index.analysis.page import fill
from forvalue_index.records import Explanation


def heatmap(explanation: Explanation) -> str:
    """Returns the page of an explanation, with its terms as float32."""
    rows, columns = explanation.terms.shape
    data = {
        "key": explanation.key,
        "score": explanation.score,
        "query": [token[:2] for token in explanation.query.shown()],
        "sample": [token[:2] for token in explanation.sample.shown()],
        "rows": rows,
        "columns": columns,
        "terms": base64.b64encode(explanation.terms.astype("<f4").tobytes()).decode(),
    }
    return fill("explain.html", f"Influence of {explanation.key}", data)
