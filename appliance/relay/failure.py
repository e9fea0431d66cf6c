"""Why a flow ends before its time."""


class Failure(Exception):
    """`reason`: a kebab-case word for findings and counters. `text`: what happened, without bytes of a peer."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
