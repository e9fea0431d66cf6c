"""HTTP by httpx (1.1 and 2) and requests. Settings: url (of the lab's web server), ca, proxy and token ("": none)."""

import hashlib
from typing import Any

import httpx
import requests

from tests.lab.clients import Settings, Told, serve

REPORT = {"report": "weekly", "total": 12.5, "remark": "done ✓"}


def _told(items: Any, echo: Any, download: bytes, version: str) -> Told:
    count, digest = len(items["items"]), hashlib.sha256(download).hexdigest()
    return {"items": count, "echo": echo, "download": digest, "version": version}


def _httpx(settings: Settings, *, http2: bool) -> Told:
    proxy = httpx.Proxy(settings["proxy"], headers=_bearer(settings)) if settings.get("proxy") else None
    trust = httpx.create_ssl_context(verify=settings["ca"], trust_env=False)
    with httpx.Client(http2=http2, verify=trust, proxy=proxy, trust_env=False, timeout=15) as client:
        items = client.get(f"{settings['url']}/api/items")
        echo = client.post(f"{settings['url']}/app/echo", json=REPORT)
        download = client.get(f"{settings['url']}/download.bin")
        return _told(items.json(), echo.json(), download.content, items.http_version)


def _bearer(settings: Settings) -> dict[str, str]:
    return {"Proxy-Authorization": f"Bearer {settings['token']}"} if settings.get("token") else {}


def by_httpx(settings: Settings) -> Told:
    return _httpx(settings, http2=False)


def by_httpx2(settings: Settings) -> Told:
    return _httpx(settings, http2=True)


def by_requests(settings: Settings) -> Told:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = settings["ca"]
        if settings.get("proxy"):
            session.proxies = {"http": settings["proxy"], "https": settings["proxy"]}
        items = session.get(f"{settings['url']}/api/items", timeout=15)
        echo = session.post(f"{settings['url']}/app/echo", json=REPORT, timeout=15)
        download = session.get(f"{settings['url']}/download.bin", timeout=15)
        return _told(items.json(), echo.json(), download.content, f"HTTP/{items.raw.version / 10}")


if __name__ == "__main__":
    serve({"httpx": by_httpx, "httpx-http2": by_httpx2, "requests": by_requests})
