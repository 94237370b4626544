"""The private certificate authority that lets clients speak https with localhost."""

from pathlib import Path

import certifi
import trustme


class Certificates:
    """The files of one authority and one server certificate, made once for each folder."""

    def __init__(self, folder: Path):
        self.bundle = folder / "bundle.pem"  # certifi's roots plus our authority, for the clients
        self.chain = folder / "server.pem"  # certificate and key, for the server
        if not self.bundle.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make()

    def _make(self) -> None:
        authority = trustme.CA(organization_name="local_azureml")
        server = authority.issue_cert("localhost", "127.0.0.1", "::1")
        write_private(self.chain, server.private_key_and_cert_chain_pem.bytes())
        roots = Path(certifi.where()).read_bytes()
        write_private(self.bundle, roots + b"\n" + authority.cert_pem.bytes())


def write_private(file: Path, content: bytes) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.touch(mode=0o600)
    part.write_bytes(content)
    part.replace(file)
