"""The root of the errors that a user can mend, and its two most common kinds."""


class BlipError(Exception):
    """What is wrong, in which file, record or option, and what to do. Commands print it without a traceback.

    Every other exception that reaches a command is a defect of the package and is shown with its traceback.
    """


class InputError(BlipError, ValueError):
    """A value, an option or the content of a file that cannot be used."""


class MissingFile(BlipError, FileNotFoundError):
    """A file or folder that does not exist."""
