"""The table of errors and its way over the wire."""

from __future__ import annotations

import grpclib.const
import msgspec
import pytest

from flx_api import errors


@pytest.mark.parametrize("code", sorted(errors.CODES))
def test_every_code_survives_the_wire(code: str) -> None:
    """An error decoded from its body has the same code, detail, fields and class family."""
    spec = errors.CODES[code]
    body = errors.ErrorBody(code, "a sentence", (errors.FieldError("args.name", "is odd"),), 1.5, ("near",))
    error = errors.FlxError.from_body(msgspec.json.decode(msgspec.json.encode(body), type=errors.ErrorBody))
    assert body == error.body
    assert spec == error.spec
    assert "a sentence" == str(error)


def test_classes_carry_a_code_of_their_own_status() -> None:
    """The default code of each class decodes to that class or one above it."""
    for kind in errors.FlxError.__subclasses__():
        error = errors.FlxError.from_body(errors.ErrorBody(kind.default_code, ""))
        assert isinstance(error, kind), kind


def test_unknown_code_of_a_newer_daemon_is_internal() -> None:
    """A code that this version does not know is told as internal, with its detail."""
    error = errors.FlxError.from_body(errors.ErrorBody("from_the_future", "something new"))
    assert ("internal", "something new") == (error.code, error.detail)


def test_rejected_token_tells_the_client_nothing() -> None:
    """The reason of a refused token is an attribute, never part of what crosses the wire."""
    error = errors.TokenRejected("signature_mismatch")
    assert "signature_mismatch" == error.reason
    assert b"signature" not in msgspec.json.encode(error.body)


def test_a_startup_error_is_one_line_whatever_it_quotes() -> None:
    """Values from outside may hold line ends."""
    assert "FLX_X: is no a b c" == str(errors.StartupError("FLX_X: is no a\nb\u2028c\r\n"))


@pytest.mark.parametrize("code", sorted(errors.CODES))
def test_statuses_are_sane(code: str) -> None:
    """HTTP statuses are errors, gRPC statuses exist, and a client's fault is not ours."""
    spec = errors.CODES[code]
    assert 400 <= spec.http <= 599
    assert 1 <= spec.grpc <= 16
    assert spec.source in {"client", "gateway", "daemon"}
    assert spec.source != "client" or spec.http < 500


def test_every_status_of_grpc_has_a_name_and_a_code() -> None:
    """The table is grpclib's own list without OK, and a code's status leads back to a code of that status."""
    assert {status.value: status.name for status in grpclib.const.Status if status.value} == {
        number: status.name for number, status in errors.STATUSES.items()
    }
    used = {spec.grpc for spec in errors.CODES.values()}
    for number, status in errors.STATUSES.items():
        error = errors.FlxError.from_status(number)
        assert error.code == status.code
        assert number not in used or error.spec.grpc == number
    assert errors.FlxError.from_status(99).code == "internal"
