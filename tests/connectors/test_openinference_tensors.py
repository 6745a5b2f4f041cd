"""Payloads become requests of the Open Inference Protocol, or one clear line; answers become plain JSON."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.openinference.tensors import (
    KINDS,
    InferPayload,
    PayloadError,
    read_payload,
    request_of,
    result_of,
)
from protocols.proto import inference_pb2 as pb


def request(payload: Any, *, model: str = "", version: str = "") -> pb.ModelInferRequest:
    return request_of(read_payload(payload), model=model, version=version, request_id="job-1.1")


def echo(asked: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """What a server that gives back its inputs answers."""
    answer = pb.ModelInferResponse(model_name=asked.model_name, id=asked.id)
    for tensor in asked.inputs:
        answer.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, contents=tensor.contents
        )
    answer.raw_output_contents.extend(asked.raw_input_contents)
    return answer


def element(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text()
    if datatype.startswith("FP"):
        return st.floats(allow_nan=False, allow_infinity=False, width=32 if datatype == "FP32" else 64)
    bits = int(datatype.lstrip("UINT"))
    low = 0 if datatype.startswith("U") else -(2 ** (bits - 1))
    return st.integers(low, low + 2**bits - 1)


def nested(values: list[Any], shape: list[int]) -> Any:
    """Row-major lists within lists."""
    if len(shape) <= 1:
        return values
    step = math.prod(shape[1:])
    return [nested(values[at : at + step], shape[1:]) for at in range(0, len(values), step)]


@st.composite
def typed_tensors(draw: st.DrawFn) -> dict[str, Any]:
    datatype = draw(st.sampled_from([name for name, kind in KINDS.items() if kind.contents]))
    shape = draw(st.lists(st.integers(1, 3), max_size=3))
    count = math.prod(shape)
    values = draw(st.lists(element(datatype), min_size=count, max_size=count))
    as_lists = draw(st.booleans())
    data = nested(values, shape) if shape and as_lists else values
    return {"name": draw(st.text(max_size=5)), "datatype": datatype, "shape": shape, "data": data}


def flat(data: Any) -> list[Any]:
    return [one for item in data for one in flat(item)] if isinstance(data, list) else [data]


@given(st.lists(typed_tensors(), min_size=1, max_size=3))
def test_typed_tensors_go_there_and_back(tensors: list[dict[str, Any]]) -> None:
    """Whatever is typed comes back as it was sent, through the bytes of the wire, flat and as plain JSON."""
    asked = pb.ModelInferRequest.FromString(request({"model": "m", "inputs": tensors}).SerializeToString())
    result = result_of(pb.ModelInferResponse.FromString(echo(asked).SerializeToString()))
    assert msgspec.json.decode(msgspec.json.encode(result)) == result
    for sent, output in zip(tensors, result["outputs"], strict=True):
        assert (output["name"], output["datatype"], output["shape"]) == (
            sent["name"],
            sent["datatype"],
            sent["shape"],
        )
        assert output["data"] == flat(sent["data"])


@given(
    st.sampled_from([name for name, kind in KINDS.items() if kind.element_bytes]),
    st.lists(st.integers(0, 3), max_size=3),
    st.data(),
)
def test_raw_tensors_go_there_and_back(datatype: str, shape: list[int], data: st.DataObject) -> None:
    """Raw bytes come back as they were sent, of every datatype, those without a typed form included."""
    size = KINDS[datatype].element_bytes * math.prod(shape)
    raw = base64.b64encode(data.draw(st.binary(min_size=size, max_size=size))).decode()
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "raw": raw}
    asked = request({"model": "m", "inputs": [tensor]})
    assert len(asked.raw_input_contents) == 1
    assert result_of(echo(asked))["outputs"] == [tensor]


GOOD = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}
RAW = {"name": "x", "datatype": "INT8", "shape": [2], "raw": base64.b64encode(b"ab").decode()}


def with_input(**changes: Any) -> dict[str, Any]:
    tensor = {**GOOD, **changes}
    return {"model": "m", "inputs": [{name: value for name, value in tensor.items() if value is not None}]}


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (None, "payload: "),
        ([], "payload: "),
        ({"model": "m"}, "inputs"),
        ({"model": "m", "inputs": []}, "inputs is empty"),
        ({"inputs": [GOOD]}, "name a model"),
        ({"model": "m", "inputs": [GOOD], "paramters": {}}, "paramters"),
        ({"model": "m", "inputs": [GOOD], "parameters": {"scale": 0.5}}, "parameters"),
        ({"model": "m", "inputs": [GOOD], "parameters": {"big": 2**63}}, "parameters.big"),
        ({"model": "m", "inputs": [GOOD, RAW]}, "inputs[1]: either all inputs bring raw"),
        (with_input(datatype="FLOAT"), "inputs[0].datatype 'FLOAT' is unknown: known are BOOL"),
        (with_input(datatype="FP16"), "has no typed form"),
        (with_input(shape=[3]), "has 2 values, shape [3] needs 3"),
        (with_input(shape=[-1]), "no extent"),
        (with_input(data=None), "neither data nor raw"),
        (with_input(data=5), "must be a list"),
        (with_input(raw="AAAA"), "both data and raw"),
        (with_input(data=[1, "x"]), "inputs[0].data[1] is 'x'; FP32 takes a number"),
        (with_input(data=[1, True]), "inputs[0].data[1] is True"),
        (with_input(data=[1, 1e39]), "inputs[0].data[1] is 1e+39"),
        (with_input(datatype="INT8", data=[1, 128]), "a whole number -128 to 127"),
        (with_input(datatype="UINT64", data=[1, -1]), "a whole number 0 to"),
        (with_input(datatype="INT32", data=[1, 1.0]), "is 1.0; INT32"),
        (with_input(datatype="BOOL", data=[1, 0]), "true or false"),
        (with_input(datatype="BYTES", data=["a", 1]), "a text"),
        (with_input(data=None, raw="***"), "raw is not base64"),
        (with_input(data=None, raw="AAAA"), "raw has 3 bytes, FP32 of shape [2] needs 8"),
    ],
)
def test_what_cannot_be_sent_is_one_clear_line(payload: Any, says: str) -> None:
    """A payload that is no request is refused before anything is sent, with where, what, and what would be right."""
    with pytest.raises(PayloadError) as caught:
        request(payload)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_nesting_is_refused() -> None:
    """No recursion without a bound."""
    data: Any = [1.0]
    for _level in range(100):
        data = [data]
    with pytest.raises(PayloadError, match="nested deeper"):
        request(with_input(data=data, shape=[1]))


def test_the_workers_model_is_the_default() -> None:
    """A payload's own model and version win; the worker's version never goes with another's model."""
    both = {"model": "own", "version": "1"}
    assert request({"inputs": [GOOD]}, **both).model_name == "own"
    assert request({"inputs": [GOOD]}, **both).model_version == "1"
    named = request({"model": "other", "inputs": [GOOD]}, **both)
    assert (named.model_name, named.model_version, named.id) == ("other", "", "job-1.1")


def test_parameters_and_outputs_travel() -> None:
    """Parameters keep their kinds, wanted outputs their names."""
    payload = InferPayload(
        inputs=read_payload({"inputs": [GOOD]}).inputs,
        outputs=("a", "b"),
        parameters={"flag": True, "count": -3, "text": "x"},
    )
    asked = request_of(payload, model="m", version="", request_id="r")
    assert [output.name for output in asked.outputs] == ["a", "b"]
    assert asked.parameters["flag"].bool_param is True
    assert asked.parameters["count"].int64_param == -3
    assert asked.parameters["text"].string_param == "x"


def test_answers_that_are_not_plain() -> None:
    """Texts that are not UTF-8, numbers that JSON lacks, and parameters without a value all become JSON."""
    answer = pb.ModelInferResponse(model_name="m", model_version="2")
    answer.parameters["p"].bool_param = True
    answer.parameters["none"].SetInParent()
    odd = answer.outputs.add(name="odd", datatype="BYTES", shape=[1])
    odd.contents.bytes_contents.append(b"\xff")
    numbers = answer.outputs.add(name="numbers", datatype="FP64", shape=[2])
    numbers.contents.fp64_contents.extend([math.nan, math.inf])
    result = result_of(answer)
    assert msgspec.json.decode(msgspec.json.encode(result)) == result
    assert result["parameters"] == {"p": True, "none": None}
    assert [one.get("data", one.get("data_b64")) for one in result["outputs"]] == [["/w=="], [None, None]]


def test_raw_contents_for_some_outputs_only() -> None:
    """Such an answer makes no sense and is refused."""
    answer = pb.ModelInferResponse(raw_output_contents=[struct.pack("<f", 1.0)])
    answer.outputs.add(name="a", datatype="FP32", shape=[1])
    answer.outputs.add(name="b", datatype="FP32", shape=[1])
    with pytest.raises(ValueError, match="1 raw contents for 2 outputs"):
        result_of(answer)


@pytest.mark.parametrize("datatype", ["FP8", "FP16"])
def test_nothing_of_an_answer_is_dropped(datatype: str) -> None:
    """A datatype without a typed form we know must come raw; what it holds is not left out in silence."""
    answer = pb.ModelInferResponse()
    answer.outputs.add(name="new", datatype=datatype, shape=[1])
    with pytest.raises(ValueError, match=f"output 'new' of datatype '{datatype}' came without raw contents"):
        result_of(answer)
