"""A result as one HTML page that loads nothing and runs no script but its own.

The texts of a result are in the page as data and are shown as text. The page's content security
policy allows only the script with the hash that is computed here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files


def fill(asset: str, title: str, data: object) -> str:
    """Returns the page `asset` of this package with a title and JSON values filled in."""
    page = (files("forvalue_index") / "assets" / asset).read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    parts = {
        "HASH": base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
        "TITLE": html.escape(title).encode("utf-8", "replace").decode(),
        "DATA": _for_script(data),
    }
    return re.sub(r"@(HASH|TITLE|DATA)@", lambda match: parts[match[1]], page)


def _for_script(value: object) -> str:
    """Returns JSON that cannot end the script element around it."""
    text = json.dumps(value)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
