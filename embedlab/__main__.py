"""Where the process begins: what has to be set before torch is imported is set here."""

import os
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    # By default the threads of torch's OpenMP spin while they wait, and on a machine that has anything else to do
    # (a data worker, another run) spin the cores away from those who work: up to five times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from embedlab.cli.commands import main as run

    run(arguments)


if __name__ == "__main__":
    main()
