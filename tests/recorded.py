"""The emulator as a program of the same options; it writes what the SDK asks and is answered to a file."""

import json
import os
import sys
from pathlib import Path

FILE = "RECORDED_ANSWERS"  # the environment variable that names the file
SDK = "azsdk-python-"  # in what the SDK says of itself; raw requests may be wrong on purpose
EMULATOR = [sys.executable, "-X", "faulthandler", __file__]  # in place of python -m local_azureml
PATHS = ("/subscriptions/", "/mferp/", "/history/", "/registrymanagement/")


class Recorder:
    """Appends a line of JSON for each exchange with the SDK about resources."""

    def __init__(self, app, file: Path):
        self.app, self.file = app, file

    async def __call__(self, scope, receive, send) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        asked_by = headers.get("user-agent", "")
        if scope["type"] != "http" or not scope["path"].startswith(PATHS) or SDK not in asked_by:
            return await self.app(scope, receive, send)
        sent, answered, start = bytearray(), bytearray(), {}

        async def heard() -> dict:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def noted(message: dict) -> None:
            start.update({key: message[key] for key in ("status", "headers") if key in message})
            answered.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                exchange = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "sent": _json(sent),
                    "status": start["status"],
                    "headers": {name.decode().lower(): value.decode() for name, value in start["headers"]},
                    "answer": _json(answered),
                }
                with self.file.open("a") as stream:
                    stream.write(json.dumps(exchange) + "\n")
            await send(message)

        await self.app(scope, heard, noted)


def variables(file: Path) -> dict[str, str]:
    """Return what must be set for an emulator that writes to `file`."""
    return {"PYTHONPATH": str(Path(__file__).parents[1]), FILE: str(file)}


def _json(content: bytes):
    return json.loads(content) if content else None


def recording(create_app, file: Path):
    """Return a `create_app` whose applications write to `file`."""

    def create(context):
        app = create_app(context)
        app.add_middleware(Recorder, file=file)
        return app

    return create


if __name__ == "__main__":
    from local_azureml import app
    from local_azureml import cli as command_line

    app.create_app = recording(app.create_app, Path(os.environ[FILE]))
    command_line.program()
