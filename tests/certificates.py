"""Certificates for tests of TLS between gateway and daemon: authorities that are made up, and what they sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """Someone who signs, and a folder for what it signs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA()
        self._folder = folder
        self._count = 0
        self.file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def sign(self, *names: str) -> tuple[Path, Path]:
        """A certificate for these names, and its key."""
        self._count += 1
        issued = self._authority.issue_cert(*names)
        certificate, key = self._folder / f"{self._count}.pem", self._folder / f"{self._count}.key"
        for blob in issued.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        issued.private_key_pem.write_to_path(key)
        return certificate, key


def tls(authority: Path | None, signed: tuple[Path, Path] | None) -> dict[str, str]:
    """The settings of one side, without their prefix."""
    settings = {"grpc_tls": "true"}
    if authority is not None:
        settings["grpc_ca_file"] = str(authority)
    if signed is not None:
        settings |= {"grpc_cert_file": str(signed[0]), "grpc_key_file": str(signed[1])}
    return settings
