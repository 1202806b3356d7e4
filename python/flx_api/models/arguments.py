"""The arguments of a command as its struct, or every field that is at fault: one judgement for daemon and gateway."""

from __future__ import annotations

from typing import Any

import msgspec

from flx_api.errors import FieldError, ValidationFailed
from flx_api.models import strict_json


def arguments(kind: type[msgspec.Struct], raw: bytes) -> Any:  # noqa: ANN401 - an instance of `kind`
    """The typed arguments of a command.

    Raises:
        InvalidRequest: not strict JSON.
        ValidationFailed: with every field at fault, as `args.<path>`.
    """
    value = strict_json.parse(raw)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        errors = _field_errors(kind, value) or [_field_error("args", str(error))]
        detail = "; ".join(f"{found.field}: {found.reason}" for found in errors[:3])
        raise ValidationFailed(detail, errors=errors) from None


def _field_errors(kind: type[msgspec.Struct], value: Any) -> list[FieldError]:  # noqa: ANN401 - any JSON value
    """What is wrong, field by field: msgspec itself stops at the first."""
    if not isinstance(value, dict):
        return [FieldError("args", "must be an object")]
    errors = []
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, field in fields.items():
        if name not in value:
            if field.required:
                errors.append(FieldError(f"args.{name}", "is required", "missing"))
            continue
        try:
            msgspec.convert(value[name], field.type)
        except msgspec.ValidationError as error:
            errors.append(_field_error(f"args.{name}", str(error)))
    if kind.__struct_config__.forbid_unknown_fields:
        # The name is the client's own input: it is told only when it is one that a person could have meant.
        errors.extend(
            FieldError(f"args.{name}" if name.isidentifier() and len(name) <= 64 else "args", "is not known", "unknown")  # noqa: PLR2004
            for name in list(value)[:32]
            if name not in fields
        )
    return errors


def _field_error(place: str, message: str) -> FieldError:
    """The sentence of msgspec as ours: "Expected `int`, got `str` - at `$[0].x`" becomes place[0].x and a reason."""
    reason, _, path = message.partition(" - at `")
    reason = reason.replace("`", "'")
    return FieldError(place + path.rstrip("`").removeprefix("$"), reason[:1].lower() + reason[1:])
