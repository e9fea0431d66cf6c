"""A gRPC server on ports 443 (TLS) and 50051 (clear text). See `grpc_app.py`."""

from pathlib import Path
from typing import ClassVar

from tests.lab.net import PYTHON
from tests.lab.services.base import Opening, Service

PORT = 443
CLEAR_PORT = 50051


class Grpc(Service):
    name: ClassVar[str] = "grpc"
    number: ClassVar[int] = 42
    openings: ClassVar = (Opening("tcp", PORT), Opening("tcp", CLEAR_PORT))

    port: ClassVar[int] = PORT
    clear_port: ClassVar[int] = CLEAR_PORT

    def start(self) -> None:
        ports = [str(PORT), str(CLEAR_PORT)]
        command: list[str | Path] = [
            PYTHON,
            "-m",
            "tests.lab.services.grpc_app",
            *self.certificate(),
            *ports,
            *self.addresses,
        ]
        self.processes.append(self.host.popen(command))

    def ready(self) -> bool:
        return self.listening(PORT, CLEAR_PORT)
