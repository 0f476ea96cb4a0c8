"""Errors of the feature store: a subclass for each way a caller would act differently."""
# ruff: noqa: N818 - the names say what happened, as in toque.registry.errors


class FeatureStoreError(Exception):
    """Base of every error that the feature store raises on purpose."""


class InvalidDefinition(FeatureStoreError, ValueError):
    """A definition contradicts itself or another one; change the definition."""


class IncompatibleChange(FeatureStoreError, ValueError):
    """Applying the change would make stored rows unreadable or wrong; use a new view name."""


class UnknownDefinition(FeatureStoreError, LookupError):
    """No entity, view, service or feature of this name has been applied."""


class InvalidRows(FeatureStoreError, ValueError):
    """Rows handed in do not fit the view; the message names view, column and value."""


class UnexpectedRows(InvalidRows):
    """Well-formed rows do not meet the view's expectations; keep them aside and check their source."""


class UnreadableSource(FeatureStoreError, ValueError):
    """A batch source, or a file of it, cannot be read as declared; what was loaded before stays."""


class MessagesLost(UnreadableSource):
    """A log no longer has the messages that follow a consumer's place; a replay from a later time goes on after the gap."""


class ConsumerFenced(FeatureStoreError):
    """Another consumer has committed events of a stream's partition; read on from where the table is."""


class StreamRewritten(FeatureStoreError):
    """A stream's stored events were rewritten, by an erasure or a replay, or its log has other partitions; begin anew."""


class OnlineStoreUnavailable(FeatureStoreError, ConnectionError):
    """Redis did not answer or is not configured; a rerun completes any partial write."""


class UnreadableRow(FeatureStoreError, ValueError):
    """A stored online row has a layout that no applied version of the view explains."""
