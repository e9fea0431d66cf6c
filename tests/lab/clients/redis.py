"""Redis by redis-py. Settings: host, port, username ("": the default one), password, protocol, ca ("": no TLS)."""

from typing import Any

import redis

from tests.lab.clients import Settings, Told, serve

CHANNEL = "news"
WAIT = 5.0  # seconds for a published message


def by_redis(settings: Settings) -> Told:
    tls = {"ssl": True, "ssl_ca_certs": settings["ca"], "ssl_check_hostname": True} if settings["ca"] else {}
    server: Any = redis.Redis(
        host=settings["host"],
        port=settings["port"],
        username=settings["username"] or None,
        password=settings["password"],
        protocol=settings["protocol"],
        decode_responses=True,
        socket_timeout=10,
        **tls,
    )
    told: Told = {"pong": server.ping()}
    server.set("greeting", "hello Ω\r\nworld")
    told["greeting"] = server.get("greeting")
    told["missing"] = server.get("no such key")
    told["set"] = server.hset("customer:2", mapping={"name": "Søren", "tier": "silver"})
    told["hash"] = server.hgetall("customer:2")
    with server.pipeline(transaction=False) as pipeline:  # many commands at once
        told["pipeline"] = pipeline.delete("list").rpush("list", *range(10)).lrange("list", 2, 5).execute()
    with server.pipeline(transaction=True) as transaction:  # MULTI … EXEC
        told["transaction"] = transaction.set("counter", 41).incr("counter").execute()
    try:
        server.lpush("greeting", "x")
    except redis.ResponseError as error:
        told["error"] = str(error)
    with server.pubsub() as listening:
        listening.subscribe(CHANNEL)
        listening.get_message(timeout=WAIT)  # the confirmation
        told["receivers"] = server.publish(CHANNEL, "something happened")
        told["published"] = listening.get_message(timeout=WAIT)["data"]
    server.close()
    return told


if __name__ == "__main__":
    serve({"redis": by_redis})
