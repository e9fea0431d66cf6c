"""WHERE clauses in which every value is a parameter: the SQL text is made of constants of this package only."""

from ipaddress import ip_address, ip_network
from typing import Any

from appliance.errors import MalformedInput


class Conditions:
    """Conditions joined by AND, with the values of their parameters. `prefix` keeps two sets' parameters apart."""

    def __init__(self, prefix: str = "c") -> None:
        self._prefix = prefix
        self._parts: list[str] = []
        self.parameters: dict[str, Any] = {}

    def name(self, value: object, kind: str = "String") -> str:
        """A placeholder of ClickHouse type `kind` for `value`."""
        name = f"{self._prefix}{len(self.parameters)}"
        self.parameters[name] = value
        return f"{{{name}:{kind}}}"

    def add(self, sql: str, **parameters: object) -> None:
        """Add a condition that names `parameters` itself."""
        self._parts.append(sql)
        self.parameters |= parameters

    def equal(self, column: str, value: str) -> None:
        """The column equals the value; no condition if the value is empty."""
        if value:
            self.add(f"{column} = {self.name(value)}")

    def __str__(self) -> str:
        return " AND ".join(f"({part})" for part in self._parts) or "1"


def address_range(text: str) -> tuple[str, str]:
    """First and last address of a single address or a network, in the form of IPv6 (IPv4 mapped)."""
    try:
        if "/" not in text:
            only = _mapped(str(ip_address(text)))
            return only, only
        network = ip_network(text, strict=False)
    except ValueError:
        raise MalformedInput(
            f"{text[:50]!r} is neither an IP address nor a network; write 10.0.0.7, 10.0.0.0/8 or fd00::/8"
        ) from None
    return _mapped(str(network[0])), _mapped(str(network[-1]))


def _mapped(text: str) -> str:
    return text if ":" in text else f"::ffff:{text}"
