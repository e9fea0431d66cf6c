"""WebSocket by websockets. Settings: url (ws:// or wss://), ca; compression: whether to offer permessage-deflate."""

import ssl

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.lab.clients import Settings, Told, serve

TEXTS = ("hello Ω", "", "a long text that compresses well; " * 2000)
BINARY = bytes(range(256)) * 300


def by_websockets(settings: Settings) -> Told:
    trust = ssl.create_default_context(cafile=settings["ca"]) if settings["url"].startswith("wss:") else None
    compression = "deflate" if settings["compression"] else None
    told: Told = {"same": []}
    with connect(settings["url"], ssl=trust, compression=compression, proxy=None, open_timeout=15) as socket:
        told["extensions"] = socket.response.headers.get("Sec-WebSocket-Extensions", "") if socket.response else ""
        for sent in (*TEXTS, BINARY, [b"in ", b"three ", b"fragments"]):
            socket.send(sent)
            told["same"].append(socket.recv(timeout=15) == (b"".join(sent) if isinstance(sent, list) else sent))
        told["ponged"] = socket.ping().wait(15)
        socket.send("close 4001 enough of it")
        try:
            socket.recv(timeout=15)
        except ConnectionClosed as closed:
            told["closed"] = [closed.rcvd.code, closed.rcvd.reason] if closed.rcvd else []
    return told


if __name__ == "__main__":
    serve({"websockets": by_websockets})
