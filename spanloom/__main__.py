"""`python -m spanloom`: the command line, also where scripts are not on the PATH."""

from spanloom.cli.main import main

if __name__ == "__main__":
    main()
