"""A WebSocket server that sends back what it gets, on ports 80 and 443 (TLS). See `websocket_app.py`."""

from pathlib import Path
from typing import ClassVar

from tests.lab.net import PYTHON
from tests.lab.services.base import Opening, Service


class WebSocket(Service):
    name: ClassVar[str] = "ws"
    number: ClassVar[int] = 41
    openings: ClassVar = (Opening("tcp", 80), Opening("tcp", 443))

    def start(self) -> None:
        command: list[str | Path] = [
            PYTHON,
            "-m",
            "tests.lab.services.websocket_app",
            *self.certificate(),
            *self.addresses,
        ]
        self.processes.append(self.host.popen(command))

    def ready(self) -> bool:
        return self.listening(80, 443)
