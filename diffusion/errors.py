"""What a command reports without a traceback."""


class UserError(ValueError):
    """A mistake of the caller: the message is one line that says what is wrong and what to do."""


class Stopped(Exception):
    """Training was stopped by a signal, after its state was saved; or before it began, and the message says so."""


class Abandoned(Exception):
    """Another process of the run has ended without a word, and without it there is no going on; the message says so."""


class Helped(Exception):
    """This process has done its share of what several do together; the first one does the rest."""


class GateFailed(Exception):
    """The task did its work, and found what it was told not to let pass; the message is one line that says what."""
