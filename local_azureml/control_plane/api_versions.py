"""The version of Azure's API that a request names: any date, so that the next SDK works too."""

import re

from fastapi import Request

from local_azureml.errors import AzureError

DATED = re.compile(r"20\d\d-(0\d|1[0-2])-([0-2]\d|3[01])(-\w*preview)?")


async def check(request: Request) -> None:  # which FastAPI gives no thread
    """Refuse a request to Azure Resource Manager that names no version, or one that is no date."""
    if not request.url.path.startswith(("/subscriptions/", "/mferp/")):
        return
    given = request.query_params.get("api-version")
    if not given:
        message = "The api-version query parameter (?api-version=) is required for all requests."
        raise AzureError(400, "MissingApiVersionParameter", message)
    if not DATED.fullmatch(given):
        message = f"the api-version {given!r} is not a date such as 2025-12-01 or 2025-10-01-preview"
        raise AzureError(400, "InvalidApiVersionParameter", message)
