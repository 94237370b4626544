"""Who gets in: what is asked of a request before its body is read, and how much it may send."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_azureml.errors import AzureError, answer

KIB, MIB = 1024, 1024 * 1024


class Rule(NamedTuple):
    """What some requests are asked for in place of the token, why, and how many bytes they may send."""

    check: Callable[[Request], None]
    reason: str
    most: int = 4 * MIB  # what Azure Resource Manager takes


class Opened(NamedTuple):
    """The requests that a rule is for."""

    methods: set[str]
    path: re.Pattern[str]
    rule: Rule

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """Return the names in the path of a request that the rule is for; None for any other."""
        found = self.path.fullmatch(path) if method in self.methods else None
        return found and found.groupdict()


def too_large(most: int) -> AzureError:
    """Return the 413 for a body of more than `most` bytes."""
    return AzureError(413, "RequestBodyTooLarge", f"at most {most} bytes in one request here")


def nothing(request: Request) -> None:
    """Let everybody in."""


def opens(check: Callable[[Request], None], reason: str, most: int = Rule._field_defaults["most"]):
    """Return the decorator of a route that asks for something else than the token."""

    def marked(handler: Callable) -> Callable:
        handler.access = Rule(check, reason, most)
        return handler

    return marked


def opened(routes: Iterable[BaseRoute]) -> list[Opened]:
    """Return the rules that stand at routes."""
    marked = [route for route in routes if hasattr(getattr(route, "endpoint", None), "access")]
    return [Opened(route.methods, route.path_regex, route.endpoint.access) for route in marked]


class AccessMiddleware:
    """Asks each request who it is before its body is read, and lets in no more of the body than its rule."""

    def __init__(self, app: ASGIApp, rules: list[Opened], token: Callable[[Request], None]):
        self.app, self.rules, self.token = app, rules, Rule(token, "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        rule, names = self.find(scope["method"], scope["path"])
        body, started = Body(receive, rule.most), False

        async def passed_on(message: Message) -> None:
            nonlocal started
            started = started or not body.refused
            if started:
                await send(message)

        try:
            rule.check(Request({**scope, "path_params": {**scope.get("path_params", {}), **names}}))
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

    def find(self, method: str, path: str) -> tuple[Rule, dict[str, str]]:
        """Return the first rule for a request, by default that of the token, and the names in its path."""
        for opened in self.rules:
            if (names := opened.match(method, path)) is not None:
                return opened.rule, names
        return self.token, {}


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
            raise too_large(self._most)

    async def receive(self) -> Message:
        """Return the next piece; raise ClientDisconnect where the body ends too early or too late."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.refused = too_large(self._most)
        if self._left < 0 or (message["type"] == "http.disconnect" and not self._complete):
            self.is_cut_off = True
            raise ClientDisconnect
        self._complete = not message.get("more_body", False)
        return message
