"""One drawing: what happens between a request and a PNG."""
