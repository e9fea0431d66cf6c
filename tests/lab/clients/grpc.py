"""gRPC by grpcio: a call of each kind, and one that fails. Settings: target (host:port), ca ("": no TLS)."""

from pathlib import Path

import grpc

from tests.lab.clients import Settings, Told, serve
from tests.lab.services.grpc_app import pack, unpack

SERVICE = "/lab.Shop"
SECONDS = 15.0
LONG = "x" * 300_000  # more than one flow-control window


def by_grpcio(settings: Settings) -> Told:
    if settings["ca"]:
        trust = grpc.ssl_channel_credentials(Path(settings["ca"]).read_bytes())
        channel = grpc.secure_channel(settings["target"], trust)
    else:
        channel = grpc.insecure_channel(settings["target"])
    with channel:
        find = channel.unary_unary(f"{SERVICE}/Find", pack, unpack)
        answer, call = find.with_call("abacus", timeout=SECONDS, metadata=[("x-agent", "lab")])
        told: Told = {"find": answer, "trailers": dict(call.trailing_metadata())}
        told["long"] = find(LONG, timeout=SECONDS) == LONG.upper()
        told["list"] = list(channel.unary_stream(f"{SERVICE}/List", pack, unpack)("3", timeout=SECONDS))
        parts = iter(["one", "two", "three"])
        told["gather"] = channel.stream_unary(f"{SERVICE}/Gather", pack, unpack)(parts, timeout=SECONDS)
        said = iter(["hello", "bye"])
        told["chat"] = list(channel.stream_stream(f"{SERVICE}/Chat", pack, unpack)(said, timeout=SECONDS))
        try:
            find("missing", timeout=SECONDS)
        except grpc.RpcError as error:
            told["error"] = [error.code().name, error.details()]
    return told


if __name__ == "__main__":
    serve({"grpcio": by_grpcio})
