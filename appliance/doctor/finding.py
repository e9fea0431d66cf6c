"""What one check found. The README lists every `Check`."""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Level(Enum):
    OK = "ok"
    WARN = "warn"  # works, but not as well or as safely as it should
    FAIL = "fail"  # agents' traffic stalls or bypasses a lock, or a part cannot work
    UNKNOWN = "unknown"  # could not be judged


class Check(StrEnum):
    """What is looked at, in the order in which it is told."""

    ROOT = "root"
    KERNEL = "kernel"
    FEATURES = "features"
    HEADERS = "headers"
    COMPILER = "compiler"
    BPFFS = "bpffs"
    NFTABLES = "nftables"
    MEMORY = "memory"
    LIMITS = "limits"
    CLOCK = "clock"
    FORWARDING = "forwarding"
    RP_FILTER = "rp-filter"
    REDIRECTS = "redirects"
    SOURCE_ROUTE = "source-route"
    ARP = "arp"
    ROUTER_ADVERTISEMENTS = "router-advertisements"
    LOOPBACK = "loopback"
    INTERFACES = "interfaces"
    OFFLOADS = "offloads"
    RULES = "rules"
    RELAYS = "relays"
    API = "api"
    PORTS = "ports"
    PINS = "pins"
    RING = "ring"
    FILTERS = "filters"
    INTERLOCK = "interlock"
    OTHER_TABLES = "other-tables"
    DATA = "data"
    DISK = "disk"
    JOURNAL = "journal"
    JOURNAL_KEY = "journal-key"
    CA = "ca"
    SECRETS = "secrets"
    PROCESSES = "processes"
    REFUSALS = "refusals"
    STORE = "store"
    ISSUERS = "issuers"


@dataclass(frozen=True, slots=True)
class Finding:
    """`about`: the interface, process, issuer and so on; empty where there is only one. `remedy`: empty when fine."""

    check: Check
    about: str
    level: Level
    found: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        return f"{self.found}; {self.remedy}" if self.remedy else self.found

    def to_json(self) -> dict[str, str]:
        return {
            "check": self.check.value,
            "about": self.about,
            "level": self.level.value,
            "found": self.found,
            "remedy": self.remedy,
        }


def exit_code(levels: set[Level]) -> int:
    """1: something fails; 3: nothing does, but something could not be judged; 0: all is fine, or works."""
    return 1 if Level.FAIL in levels else 3 if Level.UNKNOWN in levels else 0
