"""An explanation as one HTML page: both texts, coloured, and the heat map of every pair of tokens.

The page loads nothing and runs nothing but its own script, whatever the texts hold: they reach it
as data, are shown as text, and its content security policy names the script by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files

from forvalue_index.explaining import Explanation


def heatmap(explanation: Explanation) -> str:
    """Returns the page of an explanation. Terms are in it as float32."""
    page = (files("forvalue_index") / "assets" / "explain.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
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
    parts = {
        "HASH": digest,
        "TITLE": html.escape(f"Influence of {explanation.key}").encode("utf-8", "replace").decode(),
        "DATA": _for_script(data),
    }
    return re.sub(r"@(HASH|TITLE|DATA)@", lambda match: parts[match[1]], page)


def _for_script(value: object) -> str:
    """Returns JSON in which nothing can end the script element that holds it."""
    text = json.dumps(value)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
