"""Where work was left: what the store keeps of it, and when two of them name the same work."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.recovery import Reference

references = st.builds(
    Reference,
    st.sampled_from(["simulation-http", "comfyui-websocket"]),
    st.sampled_from(["http://127.0.0.1:8188", "https://gpu-1.example/base", "grpc://[::1]:50051"]),
    st.text(min_size=1),
    st.text(),
)


@given(reference=references)
def test_a_reference_survives_the_store(reference: Reference) -> None:
    """Whatever a service calls a job and whatever id the registry has for the service, both come back as they were."""
    assert Reference.read(reference.stored()) == reference


@given(one=references, other=references)
def test_work_is_named_by_its_service_not_by_where_that_was(one: Reference, other: Reference) -> None:
    """A service with an id is the same wherever it is; one without is the same at the same address only."""
    moved = replace(one, endpoint="http://10.0.0.9:1")
    assert one.same_work(one)
    assert one.same_work(moved) == bool(one.service_id)
    assert one.same_work(replace(one, service_id=""))
    assert not one.same_work(None)
    assert not one.same_work(replace(one, name=one.name + "."))
    assert one.same_work(other) == other.same_work(one)


def test_what_was_stored_before_is_still_read() -> None:
    """References without an id, of a version that knew none, are read as they were written; nothing is none."""
    stored = "comfyui-http http://127.0.0.1:8188 job 1.1"
    assert Reference.read(stored) == Reference("comfyui-http", "http://127.0.0.1:8188", "job 1.1")
    assert Reference.read("") is None
