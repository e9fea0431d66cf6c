"""OpenSSH's server with an account of its own: `worker`, who logs in by password, by key, or by a certificate.

The account exists in the server's own mount namespace only, where files of the lab lie over /etc/passwd and the like,
and where nothing is written to the machine's records of log-ins.
"""

import secrets
from pathlib import Path
from typing import ClassVar

from tests.lab.net import Host
from tests.lab.services.base import Opening, Service

USER = "worker"
USER_ID = 64022
# $1: folder with passwd, group and shadow; the rest is the program. sshd wants its empty folder /run/sshd.
DRESS = """
for name in passwd group shadow; do mount --bind "$1/$name" "/etc/$name" || exit 1; done
mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && mount -t tmpfs tmpfs /var/log && shift && exec "$@"
"""


class Ssh(Service):
    name: ClassVar[str] = "ssh"
    number: ClassVar[int] = 22
    openings: ClassVar = (Opening("tcp", 22),)

    user: ClassVar[str] = USER
    password: str
    key: Path  # private key that logs `user` in
    authority: Path  # private key whose certificates log `user` in
    host_key: str  # public key of the server, as in known_hosts

    @property
    def home(self) -> Path:
        """The account's home folder."""
        return self.folder / "home"

    def start(self) -> None:
        self.password = secrets.token_urlsafe(18)
        self.site.secrets.add(self.password)
        host_key, self.key, self.authority = (self._key(name) for name in ("host", "user", "authority"))
        self.host_key = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        self._account()
        config = self.folder / "sshd_config"
        v4, v6 = self.addresses
        config.write_text(
            "\n".join(
                [
                    f"ListenAddress {v4}",
                    f"ListenAddress {v6}",
                    f"HostKey {host_key}",
                    f"AuthorizedKeysFile {self.key}.pub",
                    f"TrustedUserCAKeys {self.authority}.pub",
                    "PidFile none",
                    "UsePAM no",
                    "UseDNS no",
                    "StrictModes no",  # the lab's folder is below /tmp
                    "PermitRootLogin no",
                    f"AllowUsers {USER}",
                    "PasswordAuthentication yes",
                    "KbdInteractiveAuthentication no",
                    "PrintMotd no",
                    "PrintLastLog no",
                    "MaxStartups 100",
                    "AcceptEnv LANG LC_*",
                    "Subsystem sftp internal-sftp",
                ]
            )
            + "\n"
        )
        server: list[str | Path] = ["/usr/sbin/sshd", "-D", "-e", "-f", config]
        self.processes.append(self.host.popen(["sh", "-c", DRESS, "sh", self.folder, *server]))

    def ready(self) -> bool:
        return self.listening(22)

    def sign(self, public: Path, *options: str) -> Path:
        """A certificate of the authority for a public key file: `ssh-keygen -s`, valid for the user `worker`."""
        valid = ["-I", "lab", "-n", USER, "-V", "-5m:+1d", *options]
        self.host.run(["ssh-keygen", "-q", "-s", self.authority, *valid, public])
        return public.with_name(public.name.removesuffix(".pub") + "-cert.pub")

    def client(self, host: Host, host_key: str = "") -> list[str]:
        """Options for ssh, scp and sftp on `host` that know this server by its key, or by `host_key`."""
        known = host.home / "known_hosts"
        known.write_text("".join(f"{name} {host_key or self.host_key}\n" for name in (self.fqdn, *self.addresses)))
        return ["-F", "none", "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"]

    def by_key(self) -> list[str]:
        """More options: log in by the user's key, and in no other way."""
        return ["-i", str(self.key), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]

    @staticmethod
    def by_password(host: Host, password: str) -> dict[str, str]:
        """Environment by which ssh, scp and sftp log in with a password that nobody has to type."""
        program = host.home / "askpass"
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$LAB_SSH_PASSWORD"\n')
        program.chmod(0o755)
        return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force", "LAB_SSH_PASSWORD": password}

    def _key(self, name: str) -> Path:
        path = self.folder / f"{name}_key"
        self.host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path])
        return path

    def _account(self) -> None:
        """The files that lie over the machine's own."""
        self.home.mkdir()
        self.host.run(["chown", f"{USER_ID}:{USER_ID}", self.home])
        hashed = self.host.run(["openssl", "passwd", "-6", "-stdin"], input=self.password).output.strip()
        own = {
            "passwd": f"{USER}:x:{USER_ID}:{USER_ID}:Verbatim lab:{self.home}:/bin/bash",
            "group": f"{USER}:x:{USER_ID}:",
            "shadow": f"{USER}:{hashed}:19000:0:99999:7:::",
        }
        for name, line in own.items():
            file = self.folder / name
            file.touch(0o600 if name == "shadow" else 0o644)
            machines = "" if name == "shadow" else Path("/etc", name).read_text().rstrip("\n") + "\n"
            file.write_text(f"{machines}{line}\n")
