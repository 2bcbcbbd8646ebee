"""The one exception a user can cause: the CLI prints it as one line and exits with code 2."""


class FlasharError(ValueError):
    """Bad input. The message is one line: what is wrong, what was got, what was expected, how to fix it."""
