"""gRPC by grpcio: a call of each kind, and one that fails. Settings: target (host:port), ca ("": no TLS)."""

from pathlib import Path

import grpc

from tests.lab.clients import Settings, Told, serve

SERVICE = "/lab.Shop"
SECONDS = 15.0
LONG = b"x" * 300_000  # more than one flow-control window


def by_grpcio(settings: Settings) -> Told:
    if settings["ca"]:
        trust = grpc.ssl_channel_credentials(Path(settings["ca"]).read_bytes())
        channel = grpc.secure_channel(settings["target"], trust)
    else:
        channel = grpc.insecure_channel(settings["target"])
    with channel:
        find = channel.unary_unary(f"{SERVICE}/Find")
        answer, call = find.with_call(b"abacus", timeout=SECONDS, metadata=[("x-agent", "lab")])
        told: Told = {"find": answer.decode(), "trailers": dict(call.trailing_metadata())}
        told["long"] = find(LONG, timeout=SECONDS) == LONG.upper()
        told["list"] = [item.decode() for item in channel.unary_stream(f"{SERVICE}/List")(b"3", timeout=SECONDS)]
        parts = iter([b"one", b"two", b"three"])
        told["gather"] = channel.stream_unary(f"{SERVICE}/Gather")(parts, timeout=SECONDS).decode()
        said = iter([b"hello", b"bye"])
        told["chat"] = [reply.decode() for reply in channel.stream_stream(f"{SERVICE}/Chat")(said, timeout=SECONDS)]
        try:
            find(b"missing", timeout=SECONDS)
        except grpc.RpcError as error:
            told["error"] = [error.code().name, error.details()]
    return told


if __name__ == "__main__":
    serve({"grpcio": by_grpcio})
