"""An index over HTTP, and a page to look at it (extra `serve`). It only reads."""
