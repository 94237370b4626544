"""Who gets in: what is asked of a request before its body is read, and how much it may send."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_azureml import identifiers, storage
from local_azureml.data_plane import artifacts, blobs, browser_sessions, identity, scoring, tracking
from local_azureml.errors import AzureError, answer

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Door:
    """A kind of routes: what they ask for, why it is not the token, and how many bytes they take."""

    methods: str
    path: str
    asks: Callable[[Request], None]
    reason: str = ""  # of a door that opens without a token
    most: int = 4 * MIB  # what Azure Resource Manager takes

    def __post_init__(self):
        object.__setattr__(self, "_pattern", compile_path(self.path)[0])

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """Return the names in the path of a request that comes to this door; None for any other."""
        found = self._pattern.match(path) if method in self.methods.split() else None
        return found and found.groupdict()


def nothing(request: Request) -> None:
    """Let everybody in."""


ACCOUNT = f"/{storage.ACCOUNT}.blob.{identifiers.STORAGE_SUFFIX}"
BLOBS = f"{ACCOUNT}/{{container}}"
READ, WRITE, ALL = "GET HEAD", "PUT POST PATCH DELETE", "GET HEAD OPTIONS PUT POST PATCH DELETE"
ARTIFACTS = f"{tracking.PREFIX}/{{api}}/2.0/mlflow-artifacts/artifacts/{{path:path}}"
ONLY_SEEDS = "what ships with the emulator, as public as on the hub"
SIGNED = "the storage library sends a signature, which opens one container for a time"
PAGE = "a browser has no token; it reads with the cookie that a job's link gave it"
OPEN = (  # the first that matches counts
    Door(READ, "/metadata/endpoints", nothing, "addresses, read to learn where tokens are given out"),
    Door(READ, "/identity/token", identity.check_header, "gives the token, for the secret of the start"),
    Door(READ, "/discovery/workspaces/{workspace}", nothing, "addresses; the SDK asks without a token"),
    Door(
        READ, "/runs/{name}", browser_sessions.check_link, "a browser has no token; a job's link has a ticket"
    ),
    Door(READ, "/api/datasets", nothing, ONLY_SEEDS),
    Door(READ, "/api/datasets/{rest:path}", nothing, ONLY_SEEDS),
    Door(READ, "/datasets/{rest:path}", nothing, ONLY_SEEDS),
    Door("POST", "/api/datasets/{rest:path}", nothing, ONLY_SEEDS, most=MIB),
    Door(READ, ACCOUNT, storage.check_signature, SIGNED),
    Door(ALL, BLOBS, storage.check_signature, SIGNED),
    Door(ALL, f"{BLOBS}/{{name:path}}", storage.check_signature, SIGNED, most=blobs.BLOCK_LIMIT),
    Door(
        "POST",
        "/endpoints/{endpoint}/score",
        scoring.check_key,
        "a client of an endpoint has its key",
        16 * MIB,
    ),
    Door(
        READ, "/endpoints/{endpoint}/swagger.json", scoring.check_key, "a client of an endpoint has its key"
    ),
    Door("POST", f"{tracking.PREFIX}/graphql", browser_sessions.check_reader, PAGE, most=64 * KIB),
    Door("PUT", f"{ARTIFACTS}/MLmodel", browser_sessions.check_reader, PAGE, most=artifacts.LONGEST_MODEL),
    Door("PUT", ARTIFACTS, browser_sessions.check_reader, PAGE, most=5000 * MIB),
    Door(ALL, f"{tracking.PREFIX}/{{path:path}}", browser_sessions.check_reader, PAGE, most=16 * MIB),
)
TOKEN = Door(ALL, "/{path:path}", identity.check_token)  # all that is not named above


class AccessMiddleware:
    """Asks each request who it is before its body is read, and lets no more of the body in than the door."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        door, names = find(scope["method"], scope["path"])
        body, started = Body(receive, door.most), False

        async def passed_on(message: Message) -> None:
            nonlocal started
            started = started or not body.refused
            if started:
                await send(message)

        try:
            door.asks(Request({**scope, "path_params": names}))
            body.check_length(Request(scope).headers.get("content-length", ""))
        except AzureError as error:
            return await answer(error)(scope, receive, send)
        try:
            await self.app(scope, body.receive, passed_on)
        except Exception:
            if not body.is_cut_off:
                raise
        if body.refused and not started:
            await answer(body.refused)(scope, receive, send)


def find(method: str, path: str) -> tuple[Door, dict[str, str]]:
    for door in OPEN:
        if (names := door.match(method, path)) is not None:
            return door, names
    return TOKEN, {}


class Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._left, self._most = receive, most, most
        self._complete = False
        self.is_cut_off = False  # by its sender, or since it is too long
        self.refused: AzureError | None = None

    def check_length(self, declared: str) -> None:
        """Refuse a body that says that it will be too long."""
        if len(declared) > 18 or (declared.isdecimal() and int(declared) > self._most):
            raise self._too_long()

    def _too_long(self) -> AzureError:
        return AzureError(413, "RequestBodyTooLarge", f"at most {self._most} bytes in one request here")

    async def receive(self) -> Message:
        """Return the next piece; raise ClientDisconnect where the body ends too early or too late."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.refused = self._too_long()
        if self._left < 0 or (message["type"] == "http.disconnect" and not self._complete):
            self.is_cut_off = True
            raise ClientDisconnect
        self._complete = not message.get("more_body", False)
        return message
