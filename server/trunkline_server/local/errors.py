"""What can go wrong with the local servers, each with a remedy in its text."""


class LocalStackError(Exception):
    """A local server could not be found, started or stopped; the text says what to do."""


class DirectoryBusy(LocalStackError):
    """Another live process runs a server in this directory."""
