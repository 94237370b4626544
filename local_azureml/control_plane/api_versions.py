"""The versions of Azure's API that there were."""

import re

from fastapi import Request

from local_azureml import identifiers
from local_azureml.errors import AzureError

KNOWN = [
    "2018-03-01-preview",
    "2018-11-19",
    "2019-05-01",
    "2019-06-01",
    "2019-11-01",
    "2020-01-01",
    "2020-02-18-preview",
    "2020-03-01",
    "2020-04-01",
    "2020-04-01-preview",
    "2020-05-01-preview",
    "2020-05-15-preview",
    "2020-06-01",
    "2020-08-01",
    "2020-09-01-preview",
    "2021-01-01",
    "2021-03-01-preview",
    "2021-04-01",
    "2021-07-01",
    "2021-10-01",
    "2021-10-01-dataplanepreview",
    "2022-01-01-preview",
    "2022-02-01-preview",
    "2022-05-01",
    "2022-05-01-privatepreview",
    "2022-06-01-preview",
    "2022-10-01",
    "2022-10-01-preview",
    "2022-12-01-preview",
    "2023-02-01-preview",
    "2023-04-01",
    "2023-04-01-preview",
    "2023-06-01-preview",
    "2023-08-01-preview",
    "2023-10-01",
    "2024-01-01-preview",
    "2024-04-01",
    "2024-04-01-preview",
    "2024-07-01-preview",
    "2024-10-01",
    "2024-10-01-preview",
    "2025-01-01-preview",
    "2025-04-01",
    "2025-04-01-preview",
    "2025-06-01",
    "2025-07-01-preview",
    "2025-09-01",
    "2025-10-01-preview",
    "2025-12-01",
]  # of Microsoft.MachineLearningServices
DATED = re.compile(r"\d{4}-\d\d-\d\d(-preview)?")  # of other providers, such as a resource group's


def check(request: Request) -> None:
    """Refuse a request to Azure Resource Manager that names no version, or one that never was."""
    if not request.url.path.startswith(("/subscriptions/", "/mferp/")):
        return
    given = request.query_params.get("api-version")
    if not given:
        message = "The api-version query parameter (?api-version=) is required for all requests."
        raise AzureError(400, "MissingApiVersionParameter", message)
    ours = f"/{identifiers.PROVIDER}/" in request.url.path
    if not (given.lower() in KNOWN if ours else DATED.fullmatch(given)):
        message = f"there is no api-version {given!r}; there is: {', '.join(KNOWN)}"
        raise AzureError(400, "InvalidApiVersionParameter", message)
