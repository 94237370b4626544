"""Errors as Azure Resource Manager writes them on the wire."""

import errno

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse


class AzureError(Exception):
    """An answer of `status` whose body is Azure's error envelope."""

    def __init__(self, status: int, code: str, message: str, detail: str = "", headers: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.detail = detail or code  # the envelope's inner, more exact code
        self.headers = headers or {}

    def body(self) -> dict:
        """Return the envelope: code, message, one detail, where it comes from."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "details": [{"code": self.detail, "message": self.message, "details": []}],
                "additionalInfo": [{"type": "ComponentName", "info": {"value": "managementfrontend"}}],
            }
        }


def not_found(kind: str, name: str, known: list[str]) -> AzureError:
    """Return the 404 for a resource that is not there; `known` are the names that are."""
    return AzureError(404, "ResourceNotFound", f"no {kind} named {name!r}; {there_is(sorted(known))}")


def there_is(known: list[str]) -> str:
    """Return the words that tell which names there are, the last twenty of many."""
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"there is: {', '.join(known[-20:]) or 'none'}{more}"


def user_error(message: str, detail: str = "BadArgument") -> AzureError:
    """Return the 400 for a request that breaks a rule of the service."""
    return AzureError(400, "UserError", message, detail)


def unfit(found: list[dict], whose: str = "") -> AzureError:
    """Return the 400 that names the first place of those that pydantic found unfit."""
    return user_error(f"{whose}{'.'.join(map(str, found[0]['loc']))}: {found[0]['msg']}")


def not_played(what: str, instead: str = "") -> AzureError:
    """Return the 501 for what exists on Azure and not here; `instead` names what there is."""
    there = instead and f"; {instead}"
    return not_implemented(f"{what} is not part of the emulator{there}")


def not_implemented(message: str) -> AzureError:
    """Return the 501 that says in other words why something is not done here."""
    return AzureError(501, "NotImplemented", message)


def answer(error: AzureError) -> JSONResponse:
    """Return `error` as a response."""
    return JSONResponse(
        error.body(), error.status, headers={"x-ms-error-code": error.detail, **error.headers}
    )


def on_azure_error(request: Request, error: AzureError) -> JSONResponse:
    """Turn a raised AzureError into its response."""
    return answer(error)


def full_disk(error: BaseException) -> str | None:
    """Return the sentence for an error that says in any words that the disk is full; None for others."""
    words = ("No space left on device", "Disk quota exceeded", "disk is full")  # of C, and of SQLite
    told = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if not told and not any(word in str(error) for word in words):
        return None
    return (
        "No space left on device: free some, or keep the emulator's data elsewhere with --data-dir or TMPDIR"
    )


def on_any_error(request: Request, error: Exception) -> JSONResponse:
    """Turn a full disk into a 507, which clients do not try again; raise what is a defect."""
    if sentence := full_disk(error):
        return answer(AzureError(507, "InsufficientStorage", sentence))
    raise error


def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """Turn a route that is not there, or not with that method, into a 501."""
    if error.status_code in (404, 405):
        return answer(not_played(f"{request.method} {request.url.path}"))
    return answer(AzureError(error.status_code, "RequestFailed", str(error.detail)))
