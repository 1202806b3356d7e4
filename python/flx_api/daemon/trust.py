"""Whom a connection is believed to be.

Strategy: what comes over the Unix socket is a gateway (or the socket's owner): whoever can open it may name the
principal of a frame. Over TCP a gateway shows the shared token, or a certificate that was signed for gateways; any
other client shows its own JWT, whose claims are the principal, whatever its frames say. A client with none of these may
only use public commands of `Execute`.

Rules:
- A JWT counts before a certificate: whoever shows both is the one the JWT names.
- Only a gateway says where a command comes from; any other caller is where its connection is.
- A secret is compared in constant time. A wrong shared token is refused, never passed on as "no token".
- A token is verified when its stream opens; its end and its revocation are looked at with each command.
- A key is revoked by the `kid` of the key that verified the token; what the token's header names proves nothing.
"""

from __future__ import annotations

import hmac
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from flx_api.daemon.journal import DEFAULT_TENANT
from flx_api.daemon.principal import Principal
from flx_api.errors import TokenRejected, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flx_api._core import Revocations
    from flx_api.proto.flx.v1.daemon_pb2 import Principal as PrincipalMessage

GATEWAY_TOKEN = "x-flx-gateway-token"  # noqa: S105 - the name of the metadata
_BEARER = "bearer "


class Caller(Protocol):
    """The other side of a call."""

    def principal(self, named: PrincipalMessage | None) -> Principal | None:
        """Who asks, given whom the message names (None: it names nobody).

        Raises:
            TokenRejected: the caller's own token has ended or was revoked.
        """
        ...

    @property
    def tenant(self) -> str | None:
        """The one tenant this caller may see; None: all of them."""
        ...

    @property
    def address(self) -> str | None:
        """Where it is, empty where nobody can say; None: its commands come from where their frames say."""
        ...


class Peer(Protocol):
    """The other side of a connection, as grpclib knows it."""

    def cert(self) -> dict[str, Any] | None:
        """Its certificate, verified; empty or None when it has shown none."""
        ...

    def addr(self) -> Any:  # noqa: ANN401 - of TCP host and port, and more for IPv6
        """Its address, as the transport has it."""
        ...


class Gateway:
    """Trusted: the message names the principal."""

    tenant: str | None = None
    address: str | None = None

    def principal(self, named: PrincipalMessage | None) -> Principal | None:
        """Whom the message names."""
        if named is None or not named.subject:
            return None
        return Principal(
            named.subject,
            named.tenant or DEFAULT_TENANT,
            tuple(named.roles),
            named.token_id or None,
            named.session or None,
            named.expires_at or None,
        )


class Nobody:
    """Came without a token."""

    tenant: str | None = ""

    def __init__(self, address: str = "") -> None:
        self.address: str | None = address

    def principal(self, named: PrincipalMessage | None) -> Principal | None:  # noqa: ARG002 - not believed
        """Nobody."""
        return None


class Client:
    """Came with its own token.

    Args:
        principal: what the token says.
        ends_s: when the token ends.
        now_s: seconds since the epoch.
        revoked: whether the token was revoked.
        address: where it is.
    """

    def __init__(
        self,
        principal: Principal,
        ends_s: float,
        now_s: Callable[[], float],
        revoked: Callable[[], bool],
        address: str = "",
    ) -> None:
        self._principal = principal
        self._ends_s = ends_s
        self._now_s = now_s
        self._revoked = revoked
        self.tenant: str | None = principal.tenant
        self.address: str | None = address

    def principal(self, named: PrincipalMessage | None) -> Principal | None:  # noqa: ARG002 - not believed
        """What the token says, as long as it has neither ended nor been revoked."""
        if self._now_s() >= self._ends_s:
            reason = "expired"
            raise TokenRejected(reason)
        if self._revoked():
            reason = "revoked"
            raise TokenRejected(reason)
        return self._principal


class SocketTrust:
    """A Unix socket that only its owner can open: every caller is a gateway."""

    def caller(self, metadata: Mapping[str, Any], peer: Peer | None = None) -> Caller:  # noqa: ARG002 - nothing to prove
        """The gateway."""
        return Gateway()


class TokenTrust:
    """TCP: a shared token for gateways, a JWT for anybody else.

    Args:
        gateway_token: the shared token; None: no gateway can be trusted here.
        verify: the claims of an acceptable JWT at a moment, and the `kid` of the key that verified it; raises
            TokenRejected.
        now_s: seconds since the epoch.
        revocations: what is asked about every acceptable JWT.
        gateways: host names of certificates that make a gateway, none for all that were verified; None: no certificate
            does.
    """

    def __init__(
        self,
        gateway_token: bytes | None,
        verify: Callable[[bytes, float], tuple[Mapping[str, Any], str | None]],
        now_s: Callable[[], float],
        revocations: Revocations,
        gateways: frozenset[str] | None = None,
    ) -> None:
        self._gateway_token = gateway_token
        self._verify = verify
        self._now_s = now_s
        self._revocations = revocations
        self._gateways = gateways

    def caller(self, metadata: Mapping[str, Any], peer: Peer | None = None) -> Caller:
        """Who a call's metadata and its connection prove it is.

        Raises:
            Unauthenticated: a token that is not acceptable.
        """
        shown = metadata.get(GATEWAY_TOKEN)
        if shown is not None:
            if self._gateway_token is None or not hmac.compare_digest(str(shown).encode(), self._gateway_token):
                reason = "gateway_token"
                raise TokenRejected(reason)
            return Gateway()
        credentials = metadata.get("authorization")
        if credentials is None:
            return Gateway() if self._is_gateway(peer) else Nobody(_address_of(peer))
        scheme, token = str(credentials)[: len(_BEARER)], str(credentials)[len(_BEARER) :]
        if scheme.lower() != _BEARER:
            raise Unauthenticated(code="invalid_token")
        claims, key_id = self._verify(token.encode(), self._now_s())
        principal = principal_of(claims)
        issued_at = claims.get("iat")
        revoked = partial(
            self._revocations.revokes,
            subject=principal.subject,
            tenant=principal.tenant,
            token_id=principal.token_id,
            session=principal.session,
            key_id=key_id,
            issued_at=None if issued_at is None else math.floor(issued_at),
        )
        client = Client(principal, float(claims["exp"]), self._now_s, revoked, _address_of(peer))
        client.principal(None)
        return client

    def _is_gateway(self, peer: Peer | None) -> bool:
        """Whether the connection's certificate, which the handshake has verified, is a gateway's."""
        if self._gateways is None or peer is None:
            return False
        certificate = peer.cert()
        if not certificate:
            return False
        names = {name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"}
        return not self._gateways or not self._gateways.isdisjoint(names)


def _address_of(peer: Peer | None) -> str:
    found = None if peer is None else peer.addr()
    return str(found[0]) if isinstance(found, tuple) and found else ""


def principal_of(claims: Mapping[str, Any]) -> Principal:
    """The principal that verified claims describe, arrays being tuples.

    Raises:
        TokenRejected: `roles` or `tenant` have a shape that grants nothing.
    """
    roles, tenant = claims.get("roles", ()), claims.get("tenant", DEFAULT_TENANT)
    if not isinstance(roles, tuple) or not all(isinstance(role, str) for role in roles) or not isinstance(tenant, str):
        reason = "invalid_roles"
        raise TokenRejected(reason)
    token_id, session = claims.get("jti"), claims.get("sid")
    return Principal(
        str(claims["sub"]),
        tenant,
        roles,
        token_id if isinstance(token_id, str) else None,
        session if isinstance(session, str) else None,
        math.floor(claims["exp"]) if "exp" in claims else None,
    )


class Trust(Protocol):
    """Decides who a caller is; one for each kind of listener."""

    def caller(self, metadata: Mapping[str, Any], peer: Peer | None = None) -> Caller:
        """Who a call's metadata and its connection prove it is. Raises Unauthenticated."""
        ...
