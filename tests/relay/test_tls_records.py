"""Where records of TLS end, in any pieces."""

import pytest

from appliance.relay.tls_records import Records

RECORDS = [bytes((23, 3, 3)) + size.to_bytes(2) + bytes(size) for size in (1, 0, 40, 3)]
ENDS = [sum(map(len, RECORDS[:count])) for count in range(len(RECORDS) + 1)]
SAID = b"".join(RECORDS)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7, 46, len(SAID)])
def test_a_stream_is_within_a_record_unless_one_ends_there(step: int) -> None:
    for length in range(len(SAID) + 1):
        records = Records()
        for at in range(0, length, step):
            records.feed(memoryview(SAID)[at : min(at + step, length)])
        assert records.within is (length not in ENDS), length
