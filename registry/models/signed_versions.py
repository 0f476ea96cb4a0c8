"""Cryptographic signatures of versions: stored beside the model and verified before files are downloaded."""

from __future__ import annotations

import hashlib

from toque.registry.access import signing
from toque.registry.errors import AlreadyExists, Damaged, Refused, RegistryError
from toque.registry.models import decisions
from toque.registry.models.model_journals import ModelJournals
from toque.registry.models.serving_tags import serving_tags
from toque.registry.models.state import ModelState
from toque.registry.models.versions import ModelVersion, SignatureMark


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
            known = {each.sha256 for each in decisions.require_version(state, version).signatures}
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
