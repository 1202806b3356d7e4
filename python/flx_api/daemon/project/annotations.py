"""What jobs of meltano.yml say to us: `annotations: {flx: {...}}`. Meltano loads annotations and looks at none.

Rules:
- The fields are those of a pipeline that the API makes, with the same bounds.
- Other vendors' annotations are not looked at. Ours, when they cannot be read, are a problem of that job alone.
"""

from __future__ import annotations

import msgspec

from flx_api.models.pipeline import USUAL_ENDS, Backoff, Retries, RetryOns, RetryPolicy


class _Annotation(msgspec.Struct, forbid_unknown_fields=True):
    """The fields that we know."""

    retries: Retries = 0
    retry_backoff_s: Backoff = 10
    retry_on: RetryOns = USUAL_ENDS


def retry_of(annotations: object) -> tuple[RetryPolicy, str | None]:
    """What becomes of a job's failed attempts, and what is wrong with what it says about that."""
    own = annotations.get("flx") if isinstance(annotations, dict) else None
    if own is None:
        return RetryPolicy(), None
    try:
        found = msgspec.convert(own, _Annotation)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).replace("`", "'").partition(" - at '$")
        return RetryPolicy(), f"annotations.flx{path.rstrip(chr(39))}: {reason[:1].lower()}{reason[1:]}"
    return RetryPolicy(found.retries, found.retry_backoff_s, found.retry_on), None
