"""Images as files, bytes and pixels: decoding untrusted files, resizing, contact sheets."""
