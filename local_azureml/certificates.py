"""The private certificate authority that lets clients speak https with localhost."""

import os
from contextlib import suppress
from pathlib import Path

import certifi


class Certificates:
    """The files of one authority and one server certificate, made once for each folder.

    The bundle, with which jobs fetch packages too, is made at each start: the caller's own roots are in it.
    """

    def __init__(self, folder: Path):
        self.bundle = folder / "bundle.pem"  # for the clients
        self.chain = folder / "server.pem"  # certificate and key, for the server
        self._authority = folder / "authority.pem"
        if not self._authority.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make()
        write_private(self.bundle, b"\n".join([*_roots(self.bundle), self._authority.read_bytes()]))

    def _make(self) -> None:
        import trustme  # needed once for each folder, and slow

        authority = trustme.CA(organization_name="local_azureml")
        server = authority.issue_cert("localhost", "127.0.0.1", "::1")
        write_private(self.chain, server.private_key_and_cert_chain_pem.bytes())
        write_private(self._authority, authority.cert_pem.bytes())


def _roots(bundle: Path) -> list[bytes]:
    """Return certifi's roots and those that the caller's variables name, unless that is an earlier bundle."""
    variables = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT")
    named = {os.environ.get(name) for name in variables} - {None, "", str(bundle)}
    roots = [Path(certifi.where()).read_bytes()]
    for file in sorted(named):
        with suppress(OSError):
            roots.append(Path(file).read_bytes())
    return roots


def write_private(file: Path, content: bytes) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.touch(mode=0o600)
    part.write_bytes(content)
    part.replace(file)
