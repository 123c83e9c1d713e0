"""The toy tree of the paper: see README.md."""
