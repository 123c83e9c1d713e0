"""What the experiments share: the command line, expected figures, a file of finished runs, trainer settings."""
