"""What the experiments share: the command line, expected figures, and a file of finished runs."""
