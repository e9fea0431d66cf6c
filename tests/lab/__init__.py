"""A lab of agents, a gateway and real servers in network namespaces of this machine, for demo and end-to-end tests.

    with Lab() as lab:
        lab.agent(1).run(["curl", "-sS", "http://web.lab.test/"])

Needs root, and the programs that `make setup` installs. `python -m tests.lab clean` removes what killed runs left.
"""

from tests.lab.lab import Lab

__all__ = ["Lab"]
