"""`python -m tests.lab clean`: remove what killed labs left. `python -m tests.lab up`: a lab to look around in."""

import signal
import sys
import time

from tests.lab import Lab, leftovers


def up() -> None:
    began = time.monotonic()
    with Lab() as lab:
        for kind in lab.kinds:
            lab.need(kind)
        print(f"the lab {lab.prefix} is up after {time.monotonic() - began:.1f} s; Ctrl-C ends it")
        for host in (*lab.agents, lab.gateway, *(service.host for service in lab.services.values())):
            print(
                f"  nsenter --net=/run/netns/{host.netns}   {', '.join(a for nic in host.nics for a in nic.addresses)}"
            )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def main(args: list[str]) -> int:
    if args == ["clean"]:
        for prefix in leftovers.sweep():
            print(f"removed what the lab {prefix} left")
        return 0
    if args == ["up"]:
        up()
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
