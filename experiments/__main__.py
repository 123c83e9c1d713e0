"""`python -m experiments`: list the experiments; with a NAME, run one again."""

import sys

from experiments.common import command

if __name__ == "__main__":
    sys.exit(command.main())
