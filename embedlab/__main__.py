"""``python -m embedlab``: the command line where the ``embedlab`` script is not on the path."""

from embedlab.cli import main

if __name__ == "__main__":
    main()
