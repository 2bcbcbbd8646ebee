"""`python -m flashar_cli` is the `flashar` command."""

from flashar_cli.cli.main import main

if __name__ == "__main__":
    main()
