"""What a command reports without a traceback."""


class UserError(ValueError):
    """A mistake of the caller: the message is one line that says what is wrong and what to do."""


class Stopped(Exception):
    """Training was stopped by a signal, after its state was saved; or before it began, and the message says so."""


class GateFailed(Exception):
    """The task did its work, and found what it was told not to let pass; the message is one line that says what."""
