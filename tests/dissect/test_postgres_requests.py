"""Which request an answer belongs to."""

from appliance.dissect.postgres_requests import (
    MAX_NAMED_BYTES,
    MAX_NAMES,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Names,
    Request,
    Requests,
    Shape,
    Statement,
    Step,
)


def push(requests: Requests, *steps: Step, weight: int = 1) -> None:
    for number, step in enumerate(steps):
        requests.push(Request(step, number, weight))


def start(request: Request | None) -> int | None:
    return request.start if request is not None else None


def test_answers_come_in_order() -> None:
    requests = Requests()
    push(requests, Step.PARSE, Step.BIND, Step.EXECUTE, Step.SYNC)
    assert [start(requests.done(step)) for step in (Step.PARSE, Step.BIND, Step.EXECUTE)] == [0, 1, 2]
    requests.ready()
    assert requests.head() is None


def test_a_query_lasts_until_ready() -> None:
    requests = Requests()
    push(requests, Step.QUERY, Step.QUERY)
    assert [start(requests.done(Step.QUERY)) for _ in range(3)] == [0, 0, 0]
    requests.ready()
    assert start(requests.done(Step.QUERY)) == 1


def test_an_error_passes_over_everything_up_to_the_sync() -> None:
    requests = Requests()
    push(requests, Step.BIND, Step.EXECUTE, Step.PARSE, Step.SYNC, Step.PARSE)
    assert requests.failed() == 0
    requests.ready()
    assert start(requests.done(Step.PARSE)) == 4


def test_an_error_before_its_sync_came() -> None:
    requests = Requests()
    push(requests, Step.BIND)
    assert requests.failed() == 0
    push(requests, Step.EXECUTE, Step.QUERY)  # the server discards both
    assert requests.head() is None
    push(requests, Step.SYNC, Step.PARSE)
    requests.ready()
    assert start(requests.done(Step.PARSE)) == 1


def test_an_error_at_the_sync_is_about_the_last_request() -> None:
    """Deferred constraints are checked there."""
    requests = Requests()
    push(requests, Step.EXECUTE, Step.SYNC)
    requests.done(Step.EXECUTE)
    assert requests.failed() == 0
    requests.ready()
    assert requests.failed() is None


def test_an_answer_that_does_not_fit_the_oldest_request() -> None:
    requests = Requests()
    push(requests, Step.BIND, Step.DESCRIBE, Step.EXECUTE)
    assert start(requests.done(Step.EXECUTE)) == 2
    assert requests.done(Step.EXECUTE) is None


def test_past_the_maximum_requests_are_counted_and_matching_goes_on_behind_them() -> None:
    requests = Requests()
    for number in range(MAX_PENDING + 10):
        requests.push(Request(Step.QUERY, number, 1))
    for number in range(MAX_PENDING + 10):
        assert start(requests.done(Step.QUERY)) == (number if number < MAX_PENDING else None)
        requests.ready()
    push(requests, Step.QUERY)
    assert start(requests.done(Step.QUERY)) == 0


def test_counting_does_not_end_in_the_middle_of_a_pipeline() -> None:
    requests = Requests()
    requests.push(Request(Step.QUERY, 0, MAX_PENDING_BYTES + 1))
    push(requests, Step.QUERY, Step.PARSE, Step.EXECUTE)
    requests.ready()
    requests.ready()  # of the query that was only counted
    push(requests, Step.SYNC, Step.PARSE)
    assert requests.head() is None
    requests.ready()
    push(requests, Step.PARSE, Step.SYNC)
    assert start(requests.done(Step.PARSE)) is None  # the Parse behind that Sync was counted too
    requests.ready()
    push(requests, Step.PARSE)
    assert start(requests.done(Step.PARSE)) == 0


def test_after_a_loss_matching_begins_with_the_next_ready() -> None:
    requests = Requests()
    push(requests, Step.QUERY)
    requests.lose()
    push(requests, Step.QUERY)
    assert requests.done(Step.QUERY) is None
    requests.ready()
    push(requests, Step.QUERY)
    assert start(requests.done(Step.QUERY)) == 0


def test_names_are_bounded() -> None:
    names: Names[Statement] = Names()
    for number in range(MAX_NAMES + 1):
        names.put(str(number), Statement("", Shape(), 1))
    assert names.get("0") is None
    assert names.get(str(MAX_NAMES)) is not None
    names.put("large", Statement("", Shape(), MAX_NAMED_BYTES - 10))
    assert len(names.items) == 11
    assert names.put("large", None) is not None
    assert names.weight == 10
