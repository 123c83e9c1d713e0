"""What the experiments share: the command line, expected figures, finished runs, trainer settings."""
