"""A job's payload as a request of the Open Inference Protocol, and a response as a job's result (pure).

Payload::

    {"model": "resnet", "version": "2", "stream": false, "parameters": {"top_k": 3}, "outputs": ["logits"],
     "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.0]}]}

A tensor brings either ``data`` (numbers, booleans or texts, nested or flat, in row-major order) or ``raw``, its bytes
in base64 as the protocol lays them out (little-endian, texts with a length of four bytes each); all tensors of one
request bring the same. Results have the same form: ``raw`` where the server answered so, ``data`` elsewhere,
``data_b64`` for texts that are not UTF-8. Parameters are booleans, whole numbers and texts: servers of the standard
drop any other kind without a word (MLServer 1.7.1 did).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from protocols.proto import inference_pb2 as pb

#: Nesting of ``data`` beyond this is no tensor.
RANK_MAX = 32


class PayloadError(ValueError):
    """The payload is not a request; the message is one line: where, what, and what would be right."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one datatype is carried: its field among the typed contents ("" where there is none), bytes of an element
    when raw (0 for texts), and what an element may be.
    """

    contents: str
    element_bytes: int
    wanted: str
    fits: Callable[[Any], bool]


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _single(value: Any) -> bool:
    return _real(value) and abs(value) <= 3.4028234663852886e38


def _kinds() -> Iterator[tuple[str, _Kind]]:
    yield "BOOL", _Kind("bool_contents", 1, "true or false", lambda value: type(value) is bool)
    for bits, signed, unsigned in (
        (8, "int_contents", "uint_contents"),
        (16, "int_contents", "uint_contents"),
        (32, "int_contents", "uint_contents"),
        (64, "int64_contents", "uint64_contents"),
    ):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        yield f"INT{bits}", _Kind(signed, bits // 8, f"a whole number {low} to {high}", _whole(low, high))
        high = 2**bits - 1
        yield f"UINT{bits}", _Kind(unsigned, bits // 8, f"a whole number 0 to {high}", _whole(0, high))
    yield "FP16", _Kind("", 2, "", _real)
    yield "BF16", _Kind("", 2, "", _real)
    yield "FP32", _Kind("fp32_contents", 4, "a number that 32 bits hold", _single)
    yield "FP64", _Kind("fp64_contents", 8, "a finite number", _real)
    yield "BYTES", _Kind("bytes_contents", 0, "a text", lambda value: type(value) is str)


KINDS: MappingProxyType[str, _Kind] = MappingProxyType(dict(_kinds()))


class InputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``inputs``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    raw: str | None = None
    parameters: dict[str, bool | int | str] = {}


class InferPayload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job's payload may hold; ``model`` may be left out where the worker's options name one."""

    inputs: tuple[InputTensor, ...]
    model: str = ""
    version: str = ""
    outputs: tuple[str, ...] = ()
    parameters: dict[str, bool | int | str] = {}
    stream: bool = False


def read_payload(payload: Any) -> InferPayload:
    """The payload, its structure checked.

    Raises:
        PayloadError: a member is missing, unknown or of the wrong type.
    """
    try:
        return msgspec.convert(payload, InferPayload)
    except msgspec.ValidationError as error:
        raise PayloadError(f"payload: {error}") from None


def request_of(payload: InferPayload, *, model: str, version: str, request_id: str) -> pb.ModelInferRequest:
    """The request, its tensors checked against their datatypes and shapes.

    Args:
        payload: the job's.
        model, version: the worker's own, for payloads that name none.
        request_id: comes back with the answer.

    Raises:
        PayloadError: nothing may be sent.
    """
    name = payload.model or model
    if not name:
        raise PayloadError("payload: name a model, or give the worker the option 'model'")
    if not payload.inputs:
        raise PayloadError("payload: inputs is empty; a request has at least one tensor")
    request = pb.ModelInferRequest(
        model_name=name,
        model_version=payload.version or ("" if payload.model else version),
        id=request_id,
        parameters=_parameters(payload.parameters, "parameters"),
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in payload.outputs],
    )
    raw = payload.inputs[0].raw is not None
    for number, tensor in enumerate(payload.inputs):
        where = f"inputs[{number}]"
        if (tensor.raw is not None) != raw:
            raise PayloadError(f"payload: {where}: either all inputs bring raw bytes, or none does")
        request.inputs.append(_input(tensor, where))
        if tensor.raw is not None:
            request.raw_input_contents.append(_raw(tensor, where))
    return request


def _input(tensor: InputTensor, where: str) -> pb.ModelInferRequest.InferInputTensor:
    kind = KINDS.get(tensor.datatype)
    if kind is None:
        raise PayloadError(
            f"payload: {where}.datatype {tensor.datatype!r} is unknown: known are {', '.join(KINDS)}"
        )
    if any(not 0 <= extent < 2**63 for extent in tensor.shape):
        raise PayloadError(f"payload: {where}.shape {list(tensor.shape)} holds a number that is no extent")
    message = pb.ModelInferRequest.InferInputTensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tensor.shape,
        parameters=_parameters(tensor.parameters, f"{where}.parameters"),
    )
    if tensor.raw is not None:
        if tensor.data is not None:
            raise PayloadError(f"payload: {where} brings both data and raw; one of them")
        return message
    if tensor.data is None:
        raise PayloadError(f"payload: {where} brings neither data nor raw")
    if not kind.contents:
        raise PayloadError(
            f"payload: {where}: {tensor.datatype} has no typed form in this protocol; give raw"
        )
    values = list(_flat(tensor.data, where))
    wanted = math.prod(tensor.shape)
    if len(values) != wanted:
        raise PayloadError(
            f"payload: {where}.data has {len(values)} values, shape {list(tensor.shape)} needs {wanted}"
        )
    for position, value in enumerate(values):
        if not kind.fits(value):
            raise PayloadError(
                f"payload: {where}.data[{position}] is {value!r:.40}; {tensor.datatype} takes {kind.wanted}"
            )
    if tensor.datatype == "BYTES":
        values = [value.encode() for value in values]
    getattr(message.contents, kind.contents).extend(values)
    return message


def _flat(data: Any, where: str, depth: int = 0) -> Iterator[Any]:
    """The elements of nested lists, in row-major order."""
    if depth > RANK_MAX:
        raise PayloadError(f"payload: {where}.data is nested deeper than {RANK_MAX}")
    if not isinstance(data, list | tuple):
        if depth == 0:
            raise PayloadError(f"payload: {where}.data must be a list")
        yield data
        return
    for item in data:
        yield from _flat(item, where, depth + 1)


def _raw(tensor: InputTensor, where: str) -> bytes:
    try:
        content = base64.b64decode(tensor.raw or "", validate=True)
    except (binascii.Error, ValueError):
        raise PayloadError(f"payload: {where}.raw is not base64") from None
    element_bytes = KINDS[tensor.datatype].element_bytes
    wanted = element_bytes * math.prod(tensor.shape)
    if element_bytes and len(content) != wanted:
        raise PayloadError(
            f"payload: {where}.raw has {len(content)} bytes, {tensor.datatype} of shape "
            f"{list(tensor.shape)} needs {wanted}"
        )
    return content


def _parameters(values: dict[str, bool | int | str], where: str) -> dict[str, pb.InferParameter]:
    return {name: _parameter(value, f"{where}.{name}") for name, value in values.items()}


def _parameter(value: bool | int | str, where: str) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise PayloadError(f"payload: {where} is {value}: a parameter is a whole number of 64 bits")
        return pb.InferParameter(int64_param=value)
    return pb.InferParameter(string_param=value)


def result_of(response: pb.ModelInferResponse) -> dict[str, Any]:
    """A response as a plain JSON value.

    Raises:
        ValueError: raw contents for some of the outputs only, or none where the datatype has no typed form.
    """
    raw: Sequence[bytes] = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise ValueError(f"{len(raw)} raw contents for {len(response.outputs)} outputs")
    outputs = []
    for number, tensor in enumerate(response.outputs):
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if raw:
            output["raw"] = base64.b64encode(raw[number]).decode()
        else:
            output.update(_typed(tensor))
        if tensor.parameters:
            output["parameters"] = _plain(tensor.parameters)
        outputs.append(output)
    result: dict[str, Any] = {"model": response.model_name, "version": response.model_version}
    if response.parameters:
        result["parameters"] = _plain(response.parameters)
    result["outputs"] = outputs
    return result


def _typed(tensor: pb.ModelInferResponse.InferOutputTensor) -> dict[str, Any]:
    kind = KINDS.get(tensor.datatype)
    if kind is None or not kind.contents:
        raise ValueError(f"output {tensor.name!r} of datatype {tensor.datatype!r} came without raw contents")
    values = list(getattr(tensor.contents, kind.contents))
    if tensor.datatype != "BYTES":
        # JSON has no word for them.
        return {
            "data": [None if isinstance(one, float) and not math.isfinite(one) else one for one in values]
        }
    try:
        return {"data": [value.decode() for value in values]}
    except UnicodeDecodeError:
        return {"data_b64": [base64.b64encode(value).decode() for value in values]}


def _plain(parameters: Any) -> dict[str, Any]:
    """Parameters as JSON values; one without a value is None."""
    plain = {}
    for name, parameter in parameters.items():
        chosen = parameter.WhichOneof("parameter_choice")
        plain[name] = None if chosen is None else getattr(parameter, chosen)
    return plain
