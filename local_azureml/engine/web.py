"""What jobs and deployments name on the web: fetched by the child that needs it, which can be ended."""

import ipaddress
import shutil
import socket
import tempfile
import time
from pathlib import Path

import httpx

from local_azureml.engine.processes import UserError

LARGEST = 100 * 2**30  # bytes
LONGEST = 3600.0  # seconds


def fetch(address: str, file: Path) -> None:
    """Write what the web has at an address to a file, in place of the one that there was.

    What can't be had, is too large or takes too long is a UserError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(), "part")  # goes with the child, if that is ended meanwhile
    until = time.monotonic() + LONGEST
    asked = {"headers": {"accept-encoding": "identity"}, "follow_redirects": True}
    try:
        with (
            httpx.Client(timeout=60, event_hooks={"request": [Redirects(address)]}) as client,
            client.stream("GET", address, **asked) as answer,
            part.open("wb") as stream,
        ):
            answer.raise_for_status()
            for piece in answer.iter_raw():
                stream.write(piece)
                if stream.tell() > LARGEST or time.monotonic() > until:
                    limits = f"{LARGEST // 2**30} GiB or {LONGEST / 60:.0f} minutes"
                    raise UserError(f"{address} can't be downloaded: it takes more than {limits}")
        shutil.move(part, file)
    except httpx.HTTPStatusError as error:
        raise UserError(f"{address} is answered with {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{address} can't be downloaded: {str(error) or type(error).__name__}") from None


class Redirects:
    """Lets no server of the web lead a request to this machine or its network, which its client can reach."""

    def __init__(self, address: str):
        self._own = httpx.URL(address).netloc

    def __call__(self, request: httpx.Request) -> None:
        if request.url.netloc != self._own and _is_near(request.url.host):
            words = f"it leads to {request.url}, which is not on the web: give that address itself"
            raise httpx.RequestError(words, request=request)


def _is_near(host: str) -> bool:
    try:
        found = {place[0].partition("%")[0] for *_, place in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return not all(ipaddress.ip_address(place).is_global for place in found)
