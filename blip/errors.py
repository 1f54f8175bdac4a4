"""The root of the errors that are meant for the person at the keyboard."""


class BlipError(Exception):
    """What is wrong, in which file, record or option, and what to do. Commands print it without a traceback."""
