"""Stages are the differences of stamps; those that were not reached are left out."""

from forwardpass_server.observe.timeline import Timeline


def test_stages_follow_each_other() -> None:
    timeline = Timeline(1_000)
    timeline.decoded_ns = 1_010
    timeline.queued_ns = 1_030
    timeline.taken_ns = 1_060
    timeline.run_start_ns = 1_100
    timeline.run_end_ns = 1_150
    timeline.encoded_ns = 1_210
    assert timeline.stages_ns() == {"decode": 10, "check": 20, "queue": 30, "stack": 40, "run": 50, "encode": 60}


def test_what_was_not_reached_is_left_out() -> None:
    timeline = Timeline(1_000)
    timeline.decoded_ns = 1_010
    assert timeline.stages_ns() == {"decode": 10}
    assert Timeline().stages_ns() == {}
