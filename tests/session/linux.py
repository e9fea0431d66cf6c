"""What Linux does with segments that arrive out of order, as plainly as it can be said (net/ipv4/tcp_input.c)."""


class Linux:
    """`queue`: what a process can read. `waiting`: nodes of `out_of_order_queue`, (start, bytes), by start."""

    def __init__(self) -> None:
        self.queue = bytearray()
        self.waiting: list[tuple[int, bytes]] = []
        self.nested = False  # a node that grew lies over a later one, which stays in the queue all the same

    def segment(self, start: int, data: bytes) -> None:
        """`tcp_data_queue`."""
        there = len(self.queue)
        if start > there:
            self._wait(start, data)
            return
        self.queue += data[there - start :]
        for first, part in self.waiting:  # tcp_ofo_queue
            if first > len(self.queue):
                break
            self.queue += part[len(self.queue) - first :]
        self.waiting = [(first, part) for first, part in self.waiting if first > len(self.queue)]

    def _wait(self, start: int, data: bytes) -> None:
        """`tcp_data_queue_ofo`."""
        end = start + len(data)
        before = [node for node in self.waiting if node[0] <= start]
        if before:
            first, part = before[-1]
            if end <= first + len(part):
                return  # all of it is there
            if start == first + len(part):  # tcp_ooo_try_coalesce
                self.nested |= any(start <= node[0] < end for node in self.waiting)
                self.waiting[len(before) - 1] = (first, part + data)
                return
        # what begins at or behind the new one and does not reach beyond it goes
        self.waiting = [node for node in self.waiting if not (start <= node[0] and node[0] + len(node[1]) <= end)]
        self.waiting.append((start, data))
        self.waiting.sort(key=lambda node: node[0])
