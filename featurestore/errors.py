"""What can go wrong at the prep station; a subclass only where a caller would act differently."""
# ruff: noqa: N818 - the names say what happened, as in registry.errors


class FeatureStoreError(Exception):
    """Any refusal of the feature store."""


class InvalidDefinition(FeatureStoreError, ValueError):
    """A definition contradicts itself or another one; change the definition."""


class IncompatibleChange(FeatureStoreError, ValueError):
    """Applying the change would make stored rows unreadable or wrong; use a new view name."""


class UnknownDefinition(FeatureStoreError, LookupError):
    """No entity, view, service or feature of this name has been applied."""


class InvalidRows(FeatureStoreError, ValueError):
    """Rows handed in do not fit the view; the message names view, column and value."""


class UnexpectedRows(InvalidRows):
    """Well-formed rows that are not as the view's expectations say; keep them aside and ask who made them."""


class OnlineStoreUnavailable(FeatureStoreError, ConnectionError):
    """Redis did not answer or is not configured; nothing was half-written that a rerun would not mend."""


class UnreadableRow(FeatureStoreError, ValueError):
    """A stored online row has a layout that no applied version of the view explains."""
