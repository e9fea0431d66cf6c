"""The command line: `verbatim VERB`. `verbatim --help` lists the verbs, `verbatim VERB --help` explains one.

Every verb takes `--json`: one JSON object a line on standard output and nothing else. Messages go to standard error.
Exit codes: 0 done; 1 refused (also: it runs already), not found or damaged; 2 wrong usage or malformed input; 3 a
needed part does not answer, or the disk is full or read-only.
"""

import errno
import sys

import typer

from appliance import __version__
from appliance.cli import ca, lease, operations, records, secret, services
from appliance.errors import MalformedInput, Unavailable, VerbatimError
from appliance.replay.text import printable

PATHS = (  # the errors of a path that was named wrongly
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM),
)
REMEDIES = {
    errno.ENOSPC: "make room (df says on which disk)",
    errno.EDQUOT: "make room (df says on which disk)",
    errno.EROFS: "mount it for writing, and see in the kernel's log why it is not",
}

app = typer.Typer(
    name="verbatim",
    help="Records what AI agents say to databases, APIs and shells, before it lets it pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"verbatim {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Exit codes: 0 done; 1 refused, not found or damaged; 2 malformed; 3 a needed part does not answer, disk full."""


for verbs in (services, operations, records):
    verbs.register(app)
for group in (ca, secret, lease):
    app.add_typer(group.app)


def main() -> None:
    """Entry point of the `verbatim` command."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except VerbatimError as error:
        print(printable(f"verbatim: {error}"), file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, MalformedInput) else 3 if isinstance(error, Unavailable) else 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "check the path and who may use it")
        print(printable(f"verbatim: {where}{error.strerror or error}; {remedy}"), file=sys.stderr)  # noqa: T201
        sys.exit(2 if error.errno in PATHS else 3)
    except Exception as error:
        if not _of_netlink(error):
            raise
        print(printable(f"verbatim: the kernel refuses: {error}; see that it is run as root"), file=sys.stderr)  # noqa: T201
        sys.exit(3)


def _of_netlink(error: Exception) -> bool:
    """pyroute2 takes long to load, and only verbs that need it do."""
    loaded = sys.modules.get("pyroute2.netlink.exceptions")
    return loaded is not None and isinstance(error, loaded.NetlinkError)
