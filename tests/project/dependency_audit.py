"""Checks the locked dependencies for known vulnerabilities: `make audit-dependencies`.

    python -m tests.project.dependency_audit path/to/pip-audit [--service osv|pypi] [--offline-passes]

Exit code 1: a vulnerability that was not accepted, or an acceptance that is out of date. Exit code 3: the service did not answer,
or does not know a dependency, so nothing is known of it; with `--offline-passes` that is said and passes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from tests.project.lock import LOCK, ROOT, TOOLS_LOCK, TORCH_LOCK

ACCEPTED = ROOT / "security" / "accepted-vulnerabilities.toml"
FOUND, UNKNOWN = 1, 3


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A vulnerability of a package that is accepted, why, and until which day."""

    id: str
    package: str
    reason: str
    until: date


@dataclass(frozen=True, slots=True)
class Verdict:
    """Problems that fail the audit, and the dependencies of which nothing could be found out."""

    problems: tuple[str, ...]
    unknown: tuple[str, ...]


def read_acceptances(text: str) -> list[Acceptance]:
    """Read the accepted vulnerabilities. Raises: TypeError or ValueError if one lacks a field, or has an empty reason."""
    found = [Acceptance(**each) for each in tomllib.loads(text).get("accepted", [])]
    for each in found:
        if not each.reason.strip() or type(each.until) is not date:
            raise ValueError(f"{each.id} of {each.package}: give a reason, and a day as until = 2027-01-31")
    return found


def judge(
    dependencies: Iterable[Mapping[str, Any]], accepted: Sequence[Acceptance], *, today: date
) -> Verdict:
    """Compare what pip-audit found with what is accepted. dependencies: of its JSON report."""
    problems, unknown, used = [], [], set[Acceptance]()
    for dependency in dependencies:
        name = dependency["name"]
        if "skip_reason" in dependency:
            unknown.append(f"{name}: {dependency['skip_reason']}")
        for vulnerability in dependency.get("vulns", []):
            names = {vulnerability["id"], *vulnerability.get("aliases", [])}
            matching = [each for each in accepted if each.package == name and each.id in names]
            used.update(matching)
            if not matching:
                fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version"
                problems.append(f"{name} {dependency['version']}: {vulnerability['id']}, fixed in {fixed}")
    problems += [
        f"{each.id} of {each.package} was accepted until {each.until}"
        for each in accepted
        if each.until < today
    ]
    if not unknown:
        problems += [
            f"{each.id} of {each.package} is accepted, but not found" for each in accepted if each not in used
        ]
    return Verdict(tuple(problems), tuple(unknown))


def ask(program: str, service: str, lock: Path) -> list[dict[str, Any]] | None:
    """Ask a service about the packages of a lock file by way of pip-audit; None if it did not answer."""
    command = [program, "--requirement", str(lock), "--require-hashes", "--disable-pip", "--format", "json"]
    done = subprocess.run(
        [*command, "--vulnerability-service", service, "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.stdout.write(
            f"{service} did not answer: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}\n"
        )
        return None
    return found


def main(arguments: Sequence[str]) -> int:
    """Audit every lock file; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--service", choices=("osv", "pypi"), default="osv")
    parser.add_argument("--offline-passes", action="store_true")
    chosen = parser.parse_args(arguments)
    reports = [ask(chosen.program, chosen.service, lock) for lock in (LOCK, TORCH_LOCK, TOOLS_LOCK)]
    dependencies = {one["name"]: one for report in reports for one in report or ()}.values()
    verdict = judge(dependencies, read_acceptances(ACCEPTED.read_text()), today=datetime.now(UTC).date())
    sys.stdout.writelines(f"{line}\n" for line in verdict.problems)
    if verdict.problems:
        return FOUND
    if None in reports or verdict.unknown:
        known = len(dependencies) - len(verdict.unknown)
        sys.stdout.write(
            f"NOT AUDITED: {chosen.service} told of {known} dependencies, and of {len(verdict.unknown)} nothing\n"
        )
        return 0 if chosen.offline_passes else UNKNOWN
    sys.stdout.write(f"{len(dependencies)} dependencies without a vulnerability that is not accepted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
