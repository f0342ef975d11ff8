"""One HTML file of what was measured: several models side by side, and pictures of them."""
