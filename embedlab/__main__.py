"""Entry point of ``python -m embedlab``, which sets the environment that torch reads when it is imported."""

import os
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the program's name. The default takes them from ``sys.argv``.
    """
    # By default the OpenMP threads of torch spin while they wait. On a machine with other work (a data worker, another
    # run), the spinning threads take the cores away from the working ones: up to five times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from embedlab.cli.commands import main as run

    run(arguments)


if __name__ == "__main__":
    main()
