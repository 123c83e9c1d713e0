"""The toy tree of the paper with a pre-trained language model: see README.md."""
