"""Connector ``comfyui-http``: stock ComfyUI by polling alone, for servers whose socket cannot be reached.

A job's record is polled, which costs the server next to nothing; now and then the queue is asked too, since an empty
record is the same for a job that runs and for one that the server has forgotten. There is no progress to be had this
way.
"""

from __future__ import annotations

from gateway.connector import ConnectorCapabilities, ConnectorSetup, JobContext, JobResult
from gateway.connectors.comfyui.base import ComfyUIConnector
from gateway.connectors.comfyui.options import ComfyUIOptions, read_options
from gateway.connectors.comfyui.wire import Workflow


class ComfyUIHTTPConnector(ComfyUIConnector[ComfyUIOptions]):
    """Runs jobs at one ComfyUI by polling; its options are ``ComfyUIOptions``.

    Raises (constructor):
        ConfigError: unknown option or impossible value.
    """

    key = "comfyui-http"
    capabilities = ConnectorCapabilities(query=True, cancel=True, reattach=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup, read_options(self.key, setup.options, ComfyUIOptions))

    async def _run(self, job: JobContext, workflow: Workflow) -> JobResult:
        await self._submit(job, workflow)
        return await self._poll(job)

    async def _resume(self, job: JobContext, workflow: Workflow) -> JobResult:
        return await self._poll(job)
