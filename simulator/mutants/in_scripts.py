"""Mutants of the Lua operations."""

from __future__ import annotations

from gateway.limits import Limit
from simulator.mutants.model import Edit, Favour, Judge, Mutant, edits
from simulator.plan import FaultKind, LinkLevels

_CROWDED = "tenants and levels only meet where jobs wait"
_LIMITED = Favour(
    only=frozenset(),
    limits={"service simulation": Limit(running_max=2), "tenant *": Limit(running_max=1)},
    crowd=(50,),
    why="a plain swarm seldom has as many jobs at once as a limit that lets it end",
)
_LOSSY = LinkLevels(lost_request=0.01, lost_reply=0.03, reset=0.01)

SCRIPT_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="claim-not-replayable",
        breaks="A claim whose reply was lost is answered with other jobs when it is asked again.",
        promise="A lost reply loses nothing: no lease may lapse because nobody was ever told of it.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(Edit("claim", "memory and memory[1] == request_id", "false")),
        favour=Favour(
            only=frozenset({FaultKind.REDIS_RESTART, FaultKind.KILL}),
            links=_LOSSY,
            why="judged only where no request is late or duplicated, which a plain swarm often leaves in",
        ),
    ),
    Mutant(
        name="epoch-is-attempt",
        breaks="The epoch is the number of the attempt, so an uncharged new lease gets the old number.",
        promise="Epochs strictly increase.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(
            Edit(
                "claim",
                "int(math.max(tonumber(record[EPOCH]) + 1, now_us))",
                "int(tonumber(record[ATTEMPTS]) + 1)",
            )
        ),
    ),
    Mutant(
        name="claim-loses-avoided-job",
        breaks="A job that a worker shall leave to others is taken from the queue and not put back.",
        promise="Nothing accepted is lost: the job waits for ever in no queue.",
        judges=frozenset({Judge.LIVENESS}),
        put_in=edits(Edit("claim", "for i = 1, #avoided, 3 do", "for i = 1, 0 do")),
    ),
    Mutant(
        name="settle-without-epoch",
        breaks="A settlement is taken whatever its epoch is.",
        promise="Only the newest lease settles: a paused owner's late result must bounce.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(
            Edit("settle", "record[EPOCH] ~= ARGV[at + 1] or record[SETTLED_EPOCH]", "record[SETTLED_EPOCH]")
        ),
    ),
    Mutant(
        name="terminal-does-not-absorb",
        breaks="A settlement under the job's epoch is taken however the job stands, and as often as it comes.",
        promise="At most one accepted completion, and no way out of a terminal state.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(
            Edit("settle", " or record[SETTLED_EPOCH] == ARGV[at + 1] then", " then"),
            Edit("settle", "return record[STATE] == 'running' or (", "return true or ("),
        ),
    ),
    Mutant(
        name="completion-leaves-lease",
        breaks="A settled job's lease stays, so a sweep takes the job for abandoned.",
        promise="No transition out of a terminal state.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(Edit("settle", "redis.call('ZREM', leases_key, unpack(let_go))", "")),
    ),
    Mutant(
        name="release-charges-attempt",
        breaks="Giving a job back uncharged counts as an attempt.",
        promise="Only failures charge: interrupted jobs must not die of shutdowns.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(
            Edit(
                "settle",
                "  record[YIELDS] = int(tonumber(record[YIELDS]) + 1)\n",
                "  record[YIELDS] = int(tonumber(record[YIELDS]) + 1)\n"
                "  record[ATTEMPTS] = int(tonumber(record[ATTEMPTS]) + 1)\n",
            )
        ),
    ),
    Mutant(
        name="renew-resurrects",
        breaks="A renewal under the last epoch makes a lease for a job that was already settled or recovered.",
        promise="A renewal never brings a lease back: the sweep then revives an ended job.",
        judges=frozenset({Judge.AUDITOR, Judge.BELIEFS}),
        put_in=edits(Edit("renew", "record[STATE] == 'running' and ", "")),
    ),
    Mutant(
        name="progress-unfenced",
        breaks="Progress and chunks are taken from whoever sends them.",
        promise="Nobody but the owner writes into a job's stream: a late chunk would corrupt the successor's.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(
            Edit("progress", " or record[STATE] ~= 'running' or record[EPOCH] ~= ARGV[at + 1]", ""),
        ),
        favour=Favour(
            only=frozenset({FaultKind.DUPLICATE, FaultKind.SERVICE_FAULTS, FaultKind.KILL}),
            links=LinkLevels(duplicate=0.3),
            why="a note must arrive again while its job is in the next owner's hands",
        ),
    ),
    Mutant(
        name="sweep-ignores-live-leases",
        breaks="The sweep recovers every leased job, not only those whose lease is over.",
        promise="At most one live owner per job.",
        judges=frozenset({Judge.BELIEFS}),
        put_in=edits(Edit("sweep", "'(' .. int(now_ms)", "'+inf'")),
    ),
    Mutant(
        name="sweep-without-recovery-count",
        breaks="Recovered leases are not counted, so a job that kills its owners is handed out for ever.",
        promise="Leases that lapse without progress are counted until the job is a poison pill.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(
            Edit("sweep", "  record[RECOVERIES] = int(tonumber(record[RECOVERIES]) + 1)\n", ""),
        ),
    ),
    Mutant(
        name="cancel-frees-slot-early",
        breaks="Cancelling a running job ends it and its lease at once, while its owner still works on it.",
        promise="A running job is cancelled by its owner: until then its slot is not free.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(
            Edit(
                "cancel",
                "  elseif record[STATE] == 'running' then\n",
                "  elseif record[STATE] == 'running' then\n"
                "    redis.call('ZREM', string.gsub(jobs_key, 'jobs$', 'leases'), id)\n"
                "    finish(id, record, 'cancelled', retention_ms)\n"
                "    reply[i] = 'cancelled'\n"
                "    events[#events + 1] = { 'cancelled', id, record[EPOCH], '', '' }\n"
                "  elseif record[STATE] == 'nothing' then\n",
            )
        ),
    ),
    Mutant(
        name="submit-not-idempotent",
        breaks="Submitting a job again makes it anew.",
        promise="The same job id is the same job, also when its acknowledgement was lost.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(
            Edit("submit", "known[i] or records[id]", "records[id]"),
            Edit("submit", "if earlier then", "if false then"),
        ),
    ),
    Mutant(
        name="limit-not-checked",
        breaks="A claim does not look at how many jobs of a service or tenant run already.",
        promise="No limit is ever exceeded, whoever claims.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(
            Edit(
                "claim",
                "budget.running = tonumber(running) - tonumber(active[i] or 0)",
                "budget.running = UNBOUNDED",
            )
        ),
        favour=_LIMITED,
    ),
    Mutant(
        name="limit-not-released",
        breaks="A settled job goes on counting towards the limits of its service and tenant.",
        promise="What the store counts is what runs; else a limit is used up for ever.",
        judges=frozenset({Judge.PROMISES, Judge.LIVENESS}),
        put_in=edits(Edit("settle", "      count_running(record, -1)\n", "")),
        favour=_LIMITED,
    ),
    Mutant(
        name="lapsed-lease-counts-on",
        breaks="A job whose lease lapsed goes on counting towards the limits of its service and tenant.",
        promise="What the store counts is what runs, also after a crash.",
        judges=frozenset({Judge.PROMISES, Judge.LIVENESS}),
        put_in=edits(Edit("sweep", "    count_running(record, -1)\n", "")),
        favour=Favour(only=frozenset({FaultKind.KILL}), why="leases lapse where their owners are killed"),
    ),
    Mutant(
        name="rate-not-metered",
        breaks="A start does not move the meter of its rate.",
        promise="Never more starts than a burst and the rate allow.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(
            Edit("claim", "int(budget.meter + budget.started * budget.interval)", "int(budget.meter)")
        ),
        favour=Favour(
            only=frozenset(),
            limits={"service simulation": Limit(rate=1, rate_s=2.0)},
            crowd=(50,),
            why="few jobs come faster than a rate that lets a run end",
        ),
    ),
    Mutant(
        name="no-turns",
        breaks="Among tenants the job that came first goes first.",
        promise="Tenants take turns: nobody has two while another waits for its first.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(Edit("claim", "turn_of(group.best) or 0", "0 or 0")),
        favour=Favour(only=frozenset(), gateways=1, crowd=(50,), job_leases=0.3, why=_CROWDED),
    ),
    Mutant(
        name="priority-does-not-age",
        breaks="Waiting never makes up for priority.",
        promise="A job waits only behind those that come within its levels' worth of waiting.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(Edit("submit", "tick + i + rank * aging", "tick + i + rank * 2 ^ 38")),
        favour=Favour(
            only=frozenset(), gateways=1, crowd=(10, 10, 90), aging_s=0.001, job_leases=0.3, why=_CROWDED
        ),
    ),
)
