"""The part of the registry that creates models, and reads, verifies, signs and deletes versions.

Signatures of versions are stored beside the model and verified before files are downloaded. Model cards are Markdown,
rendered from what is recorded of a version.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from toque.registry.access import signing
from toque.registry.errors import AlreadyExists, Damaged, NotFound, Refused, RegistryError
from toque.registry.journal import Entry
from toque.registry.models import decisions, reviews
from toque.registry.models.model_journals import ModelJournals
from toque.registry.models.policy import ModelPolicy
from toque.registry.models.registration import Registration
from toque.registry.models.state import ModelState, step
from toque.registry.models.versions import (
    Approval,
    Dependent,
    ModelVersion,
    SignatureMark,
    TensorSpec,
    serving_tags,
)
from toque.registry.store import Progress, TableSnapshot
from toque.registry.times import as_utc, to_text


class SignedVersions(ModelJournals):
    """The part of the registry that signs versions and verifies signatures."""

    def sign_version(
        self, name: str, version: int, private_key: bytes, *, password: bytes | None = None
    ) -> ModelVersion:
        """Sign a version's files and serving tags with an elliptic-curve key (PEM); 2 writes and 2 reads.

        A version that this key has signed is left as it is, unless that signature was lost or changed.
        Raises: NotFound; InvalidInput for a key that cannot sign.
        """
        public_key = signing.public_of(private_key, password=password)
        found = self._found(name, version)
        try:
            self.verify_signature(name, version, public_key)
        except (Refused, Damaged):
            bundle = signing.sign(binding(name, found), digests(found), private_key, password=password)
            return self.add_signature(name, version, bundle, public_key)
        return found

    def add_signature(self, name: str, version: int, bundle: bytes, public_key: str) -> ModelVersion:
        """Store a signature that was made elsewhere, after verifying it with `public_key` over files and serving tags.

        Raises: NotFound; Refused if it does not verify or is not bound to this version; InvalidInput if it is not a signature, or the key not a key.
        """
        found = decisions.require_version(self.follow(name).refresh(), version)
        signing.check(bundle, digests(found), public_key)
        signing.check_binding(bundle, binding(name, found), required=True)
        mark = {"signer": signing.fingerprint(public_key), "sha256": hashlib.sha256(bundle).hexdigest()}
        try:
            self.store.create(_key(name, version, mark["sha256"]), bundle)
        except AlreadyExists:
            self.signature(name, version, mark["sha256"])  # the stored one must be undamaged

        def decide(state: ModelState) -> decisions.Body | None:
            known = {signature.sha256 for signature in decisions.require_version(state, version).signatures}
            made = {"kind": "signed", "version": version, "bound": True, **mark}
            return None if mark["sha256"] in known else made

        return self._change(name, decide)[1].versions[version]

    def signature(self, name: str, version: int, sha256: str) -> bytes:
        """Read a signature's bundle, as `model_signing verify` takes it. Raises: Damaged if it is gone or changed."""
        key = _key(name, version, sha256)
        bundle = self.store.find(key)
        if bundle is None:
            raise Damaged(f"signature {key} is gone; restore it from a copy, or sign again")
        if hashlib.sha256(bundle).hexdigest() != sha256:
            raise Damaged(f"signature {key} was changed")
        return bundle

    def verify_signature(self, name: str, version: int | str, public_key: str) -> SignatureMark:
        """Verify this key's signature of a version against the recorded digests and serving tags, and return it.

        Raises: NotFound; Refused if the version has no signature of this key, or it does not verify.
        """
        found = self._found(name, version)
        signer = signing.fingerprint(public_key)
        for mark in reversed(found.signatures):
            if mark.signer == signer:
                self._check_mark(name, found, mark, public_key)
                return mark
        raise Refused(f"{name}@{found.version} has no signature of the key {signer[:12]}…")

    def check_signatures(self, name: str) -> list[str]:
        """Check every recorded signature of a model's versions, and list what is wrong with each; [] if nothing is.

        A signature whose key the policy does not name is only compared with its version. One that a change of serving
        tags has outdated is wrong unless the version was signed again since.
        """
        state, problems = self.follow(name).refresh(), []
        keys = {signing.fingerprint(key): key for key in state.policy.signers}
        for version in state.versions.values():
            newest = {mark.signer: mark for mark in version.signatures}
            for mark in version.signatures:
                try:
                    self.signature(name, version.version, mark.sha256)
                    if mark == newest[mark.signer]:
                        self._check_mark(name, version, mark, keys.get(mark.signer))
                except RegistryError as error:
                    problems.append(f"{name}@{version.version}, signature of {mark.signer[:12]}…: {error}")
        return problems

    def _check_mark(
        self, name: str, version: ModelVersion, mark: SignatureMark, public_key: str | None
    ) -> None:
        """Check the stored bundle of a mark; without the key, only what it says. Raises: Refused; Damaged."""
        bundle = self.signature(name, version.version, mark.sha256)
        if public_key is not None:
            signing.check(bundle, digests(version), public_key)
        signing.check_binding(bundle, binding(name, version), required=mark.bound)

    def _require_signed(self, name: str, version: ModelVersion) -> None:
        """Verify that a signer of the model's policy signed the version, if it names any. Raises: Refused."""
        signers = self.follow(name).state.policy.signers
        marks = {mark.signer for mark in version.signatures}
        trusted = [key for key in signers if signing.fingerprint(key) in marks]
        if signers and not trusted:
            raise Refused(
                f"{name}@{version.version} is not signed by one of the {len(signers)} signers its policy names"
            )
        for key in trusted[:1]:
            self.verify_signature(name, version.version, key)

    def _found(self, name: str, version: int | str) -> ModelVersion:
        state = self.follow(name).refresh()
        number = state.aliases.get(version) if isinstance(version, str) else version
        return decisions.require_version(state, number or 0)


def binding(name: str, version: ModelVersion) -> signing.Binding:
    """What a signature of a version is bound to besides its files."""
    return signing.Binding(name, version.version, serving_tags(version.tags))


def digests(version: ModelVersion) -> dict[str, str]:
    """Map paths of a version's files to their SHA-256."""
    return {path: blob.sha256 for path, blob in version.files.items()}


def _key(name: str, version: int, sha256: str) -> str:
    return f"models/{name}/signatures/{version:08d}-{sha256}.json"


class Verified(BaseModel):
    """Counts of what `verify` has read and found undamaged."""

    model_config = ConfigDict(frozen=True)

    entries: int
    blobs: int
    size_bytes: int


class Models(Registration, SignedVersions):
    """Models and versions: create, tag, read, download, verify and delete."""

    def create_model(
        self,
        name: str,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        policy: ModelPolicy | None = None,
        exist_ok: bool = False,
    ) -> ModelState:
        """Create a model; with `exist_ok` an existing one is left as it is.

        Raises: AlreadyExists; InvalidInput for a malformed name or a description that is too long.
        """

        def decide(state: ModelState) -> decisions.Body | None:
            if exist_ok and state.created_at is not None:
                return None
            return decisions.create_model(
                state, description=description, tags=tags or {}, policy=policy or ModelPolicy()
            )

        fold = self.follow(name)
        if fold.next == 0:
            # The name comes first: `list_models` skips a name without a model.
            self.store.put(f"model-names/{name}", b"")
        return self._change(name, decide)[1]

    def delete_model(self, name: str, *, reason: str = "") -> None:
        """Delete a model that never had a version; its journal stays, and its name may be used again.

        Raises: NotFound; Refused if it had a version.
        """
        self._change(name, lambda state: decisions.delete_model(state, reason=reason))

    def get_model(self, name: str) -> ModelState:
        """Get the model's current state. Raises: NotFound."""
        state = self.follow(name).refresh()
        decisions.require_model(state)
        return state

    def set_model_tags(
        self, name: str, tags: Mapping[str, str | None], *, description: str | None = None
    ) -> ModelState:
        """Add or replace tags (None removes one) and, if given, the description. Raises: NotFound; InvalidInput."""
        body: decisions.Body = {"kind": "model-changed", "tags": dict(tags)}
        body |= {} if description is None else {"description": decisions.check_description(description)}

        def decide(state: ModelState) -> decisions.Body:
            decisions.require_model(state)
            return body

        return self._change(name, decide)[1]

    def find_version(self, name: str, version: int | str) -> ModelVersion | None:
        """Find a version by number or alias, or None; deleted ones by number only. 1 read when warm."""
        state = self.follow(name).refresh()
        number = state.aliases.get(version) if isinstance(version, str) else version
        return None if number is None else state.versions.get(number)

    def get_version(self, name: str, version: int | str) -> ModelVersion:
        """Get a version by number or alias. Raises: NotFound."""
        found = self.find_version(name, version)
        if found is None:
            state = self.follow(name).state
            decisions.require_model(state)
            raise NotFound(
                f"{name}@{version} does not exist; versions go to {max(state.versions, default=0)}, "
                f"aliases are {dict(state.aliases)}"
            )
        return found

    def list_versions(self, name: str) -> list[ModelVersion]:
        """List all versions that are not deleted, oldest first. Raises: NotFound if the model does not exist."""
        return [version for version in self.get_model(name).versions.values() if version.deleted_at is None]

    def set_version_tags(self, name: str, version: int, tags: Mapping[str, str | None]) -> ModelVersion:
        """Add or replace tags of a version (None removes one).

        Raises: NotFound; Refused for a tag that changes how the version is served, once it is approved or was live.
        """
        return self._change(name, lambda state: reviews.set_tags(state, version, tags))[1].versions[version]

    def delete_version(self, name: str, version: int, *, reason: str = "") -> ModelVersion:
        """Mark a version as deleted; its number is never used again and its history stays.

        Raises: NotFound; Refused while an alias or traffic points to it.
        """
        return self._change(name, lambda state: decisions.delete_version(state, version, reason=reason))[
            1
        ].versions[version]

    def download(
        self,
        name: str,
        version: int | str,
        to: str | Path,
        *,
        paths: Collection[str] | None = None,
        allow_code: Collection[str] = (),
        on_progress: Progress | None = None,
    ) -> Path:
        """Write a version's files below the folder `to`, every digest checked; returns the folder.

        paths: of the files to write; None: all. allow_code: paths of files that can execute code, to be accepted by name.
        Raises: NotFound; Damaged if a stored byte was changed; Refused for code, for a deleted version, and
            where the policy names signers and the version has no signature of theirs.
        """
        found = self.get_version(name, version)
        if found.deleted_at is not None:
            raise Refused(f"{name}@{found.version} was deleted at {found.deleted_at.isoformat()}")
        unknown = sorted(set(paths or ()) - set(found.files))
        if unknown:
            raise NotFound(f"{name}@{found.version} has no files {unknown}; it has {sorted(found.files)}")
        wanted = {path: blob for path, blob in found.files.items() if paths is None or path in paths}
        refused = sorted(set(found.code_files) & set(wanted) - set(allow_code))
        if refused:
            raise Refused(
                f"{name}@{found.version}: {refused} can execute code; have an approver accept it "
                f"(approve with accept_code={refused}), or in your own program pass allow_code={refused}"
            )
        self._require_signed(name, found)
        folder = Path(to)
        self._blobs(name).download(wanted, folder, on_progress=on_progress)
        return folder

    def history(self, name: str, *, last: int | None = None) -> list[Entry]:
        """List the changes of the model, oldest first, with actor, time and reason; one read each.

        last: how many of the newest; None: all. Raises: NotFound.
        """
        fold, start = self.follow(name), 0
        if last is not None:
            fold.refresh()
            start = max(0, fold.next - last)
        entries = list(fold.journal.entries(start))
        if not entries:
            decisions.require_model(ModelState(name=name))
        return entries

    def card(self, name: str, version: int | str) -> str:
        """Render the model card of a version in Markdown from what is recorded. Raises: NotFound."""
        found = self.get_version(name, version)
        return model_card(self.follow(name).state, found)

    def alias_at(self, name: str, alias: str, at: datetime) -> int | None:
        """Version that `alias` pointed to at a moment, or None. Raises: NotFound; InvalidInput for a naive time."""
        return self.model_at(name, at).aliases.get(alias)

    def model_at(self, name: str, at: datetime) -> ModelState:
        """Rebuild the model's state at a moment. Raises: NotFound; InvalidInput for a naive time."""
        moment = as_utc(at, name="at")
        entries = self.history(name)
        known = max((entry.number for entry in entries if entry.at <= moment), default=-1)
        state = ModelState(name=name)
        for entry in entries[: known + 1]:
            state = step(state, entry)
        return state

    def verify(self, name: str) -> Verified:
        """Verify the model's hash chain, fold it again, and read every blob and signature.

        Raises: Damaged, naming the first damaged object; NotFound.
        """
        count = self.follow(name).verify()
        blobs = self.get_model(name).blobs()
        problems = self.check_signatures(name)
        if problems:
            raise Damaged("; ".join(problems))
        with tempfile.TemporaryDirectory() as scratch:
            size_bytes = self._blobs(name).check(blobs.values(), Path(scratch))
        return Verified(entries=count, blobs=len(blobs), size_bytes=size_bytes)

    def dependents(self, source: TableSnapshot | str) -> list[Dependent]:
        """List every version made from `source`: a table snapshot, a code digest, a run id or a view digest."""
        found: list[Dependent] = []
        for name in self.list_models():
            state = self.follow(name).state
            found.extend(
                _dependent(state, version.version)
                for version in state.versions.values()
                if version.deleted_at is None and version.lineage.depends_on(source)
            )
        return found


def _dependent(state: ModelState, number: int) -> Dependent:
    aliases = tuple(alias for alias, target in state.aliases.items() if target == number)
    traffic = state.traffic
    arms = [arm.name for arm in traffic.arms if arm.version == number] if traffic else []
    return Dependent(model=state.name, version=number, aliases=aliases, arm=arms[0] if arms else None)


def model_card(state: ModelState, version: ModelVersion) -> str:
    """Render the card of `version`, which belongs to the model `state`."""
    uses = ", ".join(state.uses(version.version)) or "nothing points to it"
    head = [
        f"# {version.model}@{version.version}",
        *(text for text in (state.description, version.description) if text),
        (
            f"{version.status}, {uses}. Registered by {version.author} at {to_text(version.created_at)}; "
            f"digest `{version.digest[:16]}`, {version.size_bytes:,} bytes in {len(version.files)} files."
        ),
    ]
    sections = [
        ("Metrics", _table(("metric", "value"), ((n, f"{v:.6g}") for n, v in version.metrics.items()))),
        ("Inputs and outputs", _signature(version)),
        ("Gates, approvals and signatures", _gates_and_approvals(state, version)),
        ("Made from", _lineage(version)),
        ("Tags", _table(("tag", "value"), version.tags.items())),
    ]
    body = [f"## {title}\n\n{text}" for title, text in sections if text]
    return "\n\n".join([*head, *body]) + "\n"


def _signature(version: ModelVersion) -> str:
    if version.signature is None:
        return ""
    specs = [("in", spec) for spec in version.signature.inputs] + [
        ("out", spec) for spec in version.signature.outputs
    ]
    return _table(("", "tensor", "type", "shape", "columns"), ((side, *_spec(spec)) for side, spec in specs))


def _spec(spec: TensorSpec) -> tuple[str, str, str, str]:
    return spec.name, spec.datatype, str(spec.shape), ", ".join(spec.columns or ())


def _gates_and_approvals(state: ModelState, version: ModelVersion) -> str:
    lines = (
        [f"- the model's policy is `{state.policy.digest[:16]}`"]
        if version.gates or version.approvals
        else []
    )
    lines += [
        f"- gate {gate.name}: {'passed' if gate.passed else 'FAILED'}{' (recorded by hand)' if gate.by_hand else ''} "
        f"({gate.actor}, {to_text(gate.at)}, policy `{gate.policy[:16]}`)"
        for gate in version.gates.values()
    ]
    lines += [_review(review) for review in version.approvals]
    lines += [
        f"- signed by key `{mark.signer[:16]}` ({mark.actor}, {to_text(mark.at)})"
        for mark in version.signatures
    ]
    lines += [
        f"- OVERRIDE by {mark.actor} at {to_text(mark.at)}: {mark.reason} (against: {'; '.join(mark.broken)})"
        for mark in version.overrides
    ]
    return "\n".join(lines)


def _review(review: Approval) -> str:
    verdict = "approved" if review.approved else "REJECTED"
    how = " AUTOMATICALLY" if review.automatic else ""
    code = f", code accepted: {', '.join(review.accept_code)}" if review.accept_code else ""
    text = f"- {verdict}{how} by {review.actor} at {to_text(review.at)}, policy `{review.policy[:16]}`{code} {review.comment}"
    return text.rstrip()


def _lineage(version: ModelVersion) -> str:
    lineage = version.lineage
    lines = [
        *([f"- run {lineage.run}"] if lineage.run else []),
        *(f"- table {snapshot}" for snapshot in lineage.datasets),
        *(f"- feature view {view}, definition `{digest[:16]}`" for view, digest in lineage.features.items()),
        *([f"- code `{lineage.code[:16]}`"] if lineage.code else []),
        *([f"- parent version {lineage.parent}"] if lineage.parent else []),
    ]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *lines])
