"""A connector for a printing press: hand a page over, then ask until it is printed."""

import trio

from gateway.connector import ConnectorCapabilities, JobResult, ServicePhase, ServiceStatus
from gateway.connectors.faults import job_fault
from gateway.connectors.http_base import HTTPConnector
from gateway.errors import FaultClass, JobFault
from protocols.errors import ProtocolError

PHASES = {"queued": ServicePhase.RUNNING}  # where the press has words of its own
NOTHING = {"kind": "service_error", "message": "the press has no page to show"}


class PressHTTPConnector(HTTPConnector):
    """Runs jobs at one press."""

    key, service = "press-http", "press"
    capabilities = ConnectorCapabilities(query=True, cancel=True, reattach=True, dedupe=True)
    health_path = "/ready"

    async def run(self, job):
        path, page = f"/pages/{job.reference}", job.spec.payload
        try:
            await self.http.request_json("PUT", path, json=page, headers=job.headers)
        except ProtocolError as error:
            if not error.outcome_unknown:  # refused: nothing was accepted
                raise job_fault(error) from error
        return await self.resume(job)  # accepted, or perhaps: the press knows

    async def resume(self, job):
        status = await self.query(job.reference)
        while status.phase is ServicePhase.RUNNING:
            await trio.sleep(0.1)
            status = await self.query(job.reference)
        if status.result is None:
            raise status.fault or JobFault(FaultClass.SERVICE_ERROR, f"the page is {status.phase}")
        return status.result

    async def query(self, reference):
        told = await self.ask("GET", f"/pages/{reference}") or {"state": "unknown"}
        phase = PHASES.get(told["state"]) or ServicePhase(told["state"])
        if phase is ServicePhase.COMPLETED and told["result"] is not None:
            return ServiceStatus(phase, JobResult(told["result"], told["instance"]))
        if phase in (ServicePhase.COMPLETED, ServicePhase.FAILED):
            why = told["error"] or NOTHING  # a success without a page is none
            fault = JobFault(FaultClass(why["kind"]), why["message"], retry_after_s=why.get("retry_after_s"))
            return ServiceStatus(ServicePhase.FAILED, fault=fault)
        return ServiceStatus(phase)

    async def cancel(self, reference):
        await self.ask("DELETE", f"/pages/{reference}")
