"""Commands that judge: audit, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import count, write_json, write_line, write_table

EXIT_BAD = 1


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "audit")(audit)
    command(app, "doctor")(doctor)


def audit(
    common: Common,
    finished: Annotated[
        bool, typer.Option("--finished", help="Every accepted job must have ended by now.")
    ] = False,
) -> int:
    """Check the queue's events against every promise. Exit code 1 when one was broken.

    \b
    Examples:
      gateway audit
      gateway audit --finished --json
    """
    import msgspec

    from gateway.audit import Auditor

    settings = common.settings()
    limits = settings.limits
    with common.client(settings) as client:
        auditor = Auditor(
            truncated=not client.events_complete(),
            retention_s=min(limits.retention_s, limits.dead_retention_s),
        )
        auditor.feed(client.events(follow=False))
    report = auditor.finish() if finished else auditor.report()
    if common.json:
        write_json({"ok": report.ok, **msgspec.to_builtins(report)})
        return 0 if report.ok else EXIT_BAD
    columns = (
        "events",
        "jobs",
        "completed",
        "dead",
        "cancelled",
        "unfinished",
        "recoveries",
        "refused writes",
    )
    row = (
        report.events, report.submitted, report.completed, report.dead, report.cancelled, report.unfinished,
        len(report.recoveries), report.refused,
    )  # fmt: skip
    write_table(columns, [row], title=f"queue {settings.queue}")
    if report.ok:
        write_line("no promise was broken")
        return 0
    rows = [(found.invariant.value, found.job_id, found.cursor, found.message) for found in report.violations]
    write_table(("promise", "job", "event", "violation"), rows)
    write_line(f"{report.violations_total} violation(s)")
    return EXIT_BAD


def doctor(common: Common) -> int:
    """Check configuration, Redis, folders and services. Each finding comes with its remedy.

    \b
    Looks at the data folder and the spool, at the version, role, persistence, eviction
    policy, memory and clock of Redis, at the rights of our user there (nothing is run),
    at the queue, and probes each configured endpoint. Exit code 1 when a finding is bad;
    warnings alone do not fail.
    \b
    Examples:
      gateway doctor --config gateway.toml
      gateway doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    from gateway.cli.doctor import Level, examine

    findings = examine(common)
    bad = [finding for finding in findings if finding.level is Level.BAD]
    if common.json:
        write_json({"ok": not bad, "findings": findings})
        return EXIT_BAD if bad else 0
    rows = [(finding.level.value, finding.check, finding.detail, finding.remedy) for finding in findings]
    write_table(("", "check", "found", "remedy"), rows)
    warnings = sum(finding.level is Level.WARN for finding in findings)
    counts = [
        count(len(bad), "problem") if bad else "no problem",
        *([count(warnings, "warning")] * bool(warnings)),
    ]
    write_line(", ".join(counts) if bad or warnings else "all well")
    return EXIT_BAD if bad else 0
