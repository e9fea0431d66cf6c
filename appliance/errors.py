"""What can go wrong, as its callers see it.

    VerbatimError
    ├── MalformedInput    bytes, files, queries or settings that break their own format
    ├── Refused           a policy, a permission or a limit says no
    ├── DamagedEvidence   something recorded cannot be read back as it was written
    └── Unavailable       a part that is needed does not answer (it may later)

A message names the thing, the reason and, after a semicolon, the remedy. Messages reach people who must not see
secrets: they never carry captured bytes, tokens or passwords.
"""


class VerbatimError(Exception):
    """Base of all errors that are shown to a person without a traceback."""


class MalformedInput(VerbatimError):
    """Input breaks its own format: a capture file, a query, a setting, a token."""


class Refused(VerbatimError):
    """Policy, permission or a configured limit forbids it."""


class DamagedEvidence(VerbatimError):
    """Recorded bytes fail their integrity check."""


class Unavailable(VerbatimError):
    """A needed part (store, issuer, wire process) does not answer now."""
