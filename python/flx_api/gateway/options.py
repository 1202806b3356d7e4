"""Command options and arguments that come as query parameters or headers.

Rules:
- A name that is not known, or given twice, is refused: what is ignored today would mean something tomorrow.
- `Idempotency-Key` and the parameter say the same thing; saying it twice differently is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec

from flx_api.errors import FieldError, InvalidRequest, ValidationFailed
from flx_api.models import strict_json
from flx_api.models.envelope import CommandOptions

if TYPE_CHECKING:
    from collections.abc import Collection

    from flx_api.gateway.exchange import Exchange

Options = TypeVar("Options", bound=CommandOptions)
Struct = TypeVar("Struct", bound=msgspec.Struct)

OPTION_NAMES: Final = frozenset(field.encode_name for field in msgspec.structs.fields(CommandOptions))
_WHERE: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_MAX_FIELDS: Final = 64


def query(exchange: Exchange) -> dict[str, str]:
    """The query parameters, each once.

    Raises:
        ValidationFailed: one is given twice, or they cannot be read.
    """
    raw = exchange.scope.get("query_string", b"")
    if not raw:
        return {}
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        detail = "The query parameters cannot be read"
        raise ValidationFailed(detail) from None
    for name, value in pairs:
        if name in values:
            detail = "A query parameter is given twice"
            raise ValidationFailed(detail)
        values[name] = value
    return values


def no_query(exchange: Exchange) -> None:
    """For an endpoint that has everything in its body.

    Raises:
        ValidationFailed: there are query parameters.
    """
    if query(exchange):
        detail = f"The options of {exchange.route.template} are in its body"
        raise ValidationFailed(detail)


def decoded(exchange: Exchange, decoder: msgspec.json.Decoder[Struct]) -> Struct:
    """The body as a struct.

    Raises:
        InvalidRequest: it is no strict JSON.
        ValidationFailed: it is not of this struct; with the field at fault.
    """
    if not exchange.body:
        raise InvalidRequest(code="invalid_json")
    strict_json.check(exchange.body)
    try:
        return decoder.decode(exchange.body)
    except msgspec.ValidationError as error:
        raise validation_failed(error) from None


def options_of(exchange: Exchange, values: dict[str, str]) -> CommandOptions:
    """The options of these query parameters and the Idempotency-Key header.

    Raises:
        ValidationFailed: a parameter is unknown or has no acceptable value.
        InvalidRequest: the key is not printable ASCII of at most 255 characters, or there are two.
    """
    key = exchange.headers.get(b"idempotency-key")
    if not values and key is None:
        return CommandOptions()
    known(values, OPTION_NAMES)
    return with_key(convert(values, CommandOptions), key)


def with_key(options: Options, key: bytes | None) -> Options:
    """The options with the key of the header."""
    if key is None:
        return options
    if not _KEY.fullmatch(key):
        detail = "Idempotency-Key is at most 255 printable ASCII characters without a blank"
        raise InvalidRequest(detail)
    text = key.decode("ascii")
    if options.idempotency_key not in {None, text}:
        detail = "Idempotency-Key and idempotency_key differ"
        raise InvalidRequest(detail)
    return msgspec.structs.replace(options, idempotency_key=text)


def known(values: Collection[str], names: Collection[str]) -> None:
    """Let only these names pass.

    Raises:
        ValidationFailed: there is another one; it is not repeated, since it is input.
    """
    if any(name not in names for name in values):
        detail = f"Only these parameters are known here: {', '.join(sorted(names)) or 'none'}"
        raise ValidationFailed(detail)


def convert(values: dict[str, Any], kind: type[Struct]) -> Struct:
    """Text values as a struct.

    Raises:
        ValidationFailed: with the field at fault.
    """
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise validation_failed(error) from None


def validation_failed(error: msgspec.ValidationError) -> ValidationFailed:
    """A complaint of msgspec as ours: which field, and a sentence that repeats no input."""
    text = str(error)
    found = _WHERE.search(text)
    reason = text[: found.start()] if found else text
    if reason.startswith(("Object contains unknown field", "Invalid enum value")):
        reason = "An unknown field was given" if reason.startswith("Object") else "Not one of the known values"
    return ValidationFailed(errors=(FieldError(found[1] if found else "", reason),))
