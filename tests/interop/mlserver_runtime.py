"""A model for MLServer, in MLServer's own environment: what a request's parameters ask for, and a journal of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mlserver import MLModel, types  # type: ignore[import-not-found,unused-ignore]
from mlserver.errors import InferenceError  # type: ignore[import-not-found,unused-ignore]

JOURNAL = Path("journal.txt")


class Runtime(MLModel):  # type: ignore[misc,no-any-unimported,unused-ignore]
    """Echoes its inputs; ``sleep_s``, ``fail`` and ``pieces`` are parameters of the request."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: Any) -> Any:
        wish = _parameters(payload)
        _note("began", payload)
        try:
            await asyncio.sleep(float(wish.get("sleep_s", 0)))
        except asyncio.CancelledError:
            _note("cancelled", payload)
            raise
        _fail(wish)
        _note("ended", payload)
        return self._echo(payload)

    async def predict_stream(self, payloads: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for payload in payloads:
            wish = _parameters(payload)
            _note("began", payload)
            try:
                for _piece in range(int(wish.get("pieces", 3))):
                    await asyncio.sleep(float(wish.get("sleep_s", 0)))
                    yield self._echo(payload)
            except (asyncio.CancelledError, GeneratorExit):
                _note("cancelled", payload)
                raise
            _fail(wish)
            _note("ended", payload)

    def _echo(self, payload: Any) -> Any:
        outputs = [
            types.ResponseOutput(name=one.name, datatype=one.datatype, shape=one.shape, data=one.data)
            for one in payload.inputs
        ]
        return types.InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)


def _parameters(payload: Any) -> dict[str, Any]:
    return {} if payload.parameters is None else payload.parameters.model_dump()


def _fail(wish: dict[str, Any]) -> None:
    if wish.get("fail") == "input":
        raise InferenceError("bad input, as asked")
    if wish.get("fail") == "crash":
        raise RuntimeError("crashed, as asked")


def _note(what: str, payload: Any) -> None:
    with JOURNAL.open("a") as journal:
        journal.write(f"{what} {payload.id}\n")
