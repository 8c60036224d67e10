"""``python -m runnel`` is the command ``runnel``."""

from runnel.cli import main

if __name__ == "__main__":
    main()
