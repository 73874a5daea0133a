"""Settings that several packages share, each declared once. Nothing here imports torch, so that `--help` is quick."""
