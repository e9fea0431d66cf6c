"""An API of language models on ports 443 (TLS, HTTP/2 by ALPN) and 80, in two vendors' formats: see `llm_app.py`."""

import secrets
from pathlib import Path
from typing import ClassVar

from tests.lab.net import PYTHON
from tests.lab.services.base import Opening, Service


class Llm(Service):
    name: ClassVar[str] = "llm"
    number: ClassVar[int] = 40
    aliases: ClassVar = ("model",)  # where agents show a token of their own
    openings: ClassVar = (Opening("tcp", 80), Opening("tcp", 443))

    key: str  # what clients must show

    def start(self) -> None:
        self.key = f"sk-lab-{secrets.token_urlsafe(24)}"
        self.site.secrets.add(self.key)
        certificate, key = self.certificate()
        v4, v6 = self.addresses
        listen = [f"--bind={v4}:443", f"--bind=[{v6}]:443", f"--insecure-bind={v4}:80", f"--insecure-bind=[{v6}]:80"]
        tls = [f"--certfile={certificate}", f"--keyfile={key}"]
        command: list[str | Path] = [PYTHON, "-m", "hypercorn", *listen, *tls, "tests.lab.services.llm_app:application"]
        self.processes.append(self.host.popen(command, env={"LAB_LLM_KEY": self.key}))

    def ready(self) -> bool:
        return self.listening(80, 443)
