"""The workspace: one, with its resource group and the addresses of its services."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from local_azureml import identifiers, resource
from local_azureml.access import nothing, opens
from local_azureml.context import current
from local_azureml.control_plane import queries
from local_azureml.errors import AzureError

KNOWN = (  # what a path may name, the code that says that it is another, and the words
    ("subscription", identifiers.SUBSCRIPTION, "SubscriptionNotFound", "The subscription {!r}"),
    ("group", identifiers.GROUP, "ResourceGroupNotFound", "Resource group {!r}"),
    ("workspace", identifiers.WORKSPACE, "ResourceNotFound", "The workspace {!r}"),
)


async def check(request: Request) -> None:  # which FastAPI gives no thread
    """Refuse a path that names another subscription, resource group or workspace than the one there is."""
    for name, there, code, words in KNOWN:
        asked = request.path_params.get(name, there)
        if asked.lower() != there:
            raise AzureError(404, code, f"{words.format(asked)} could not be found; there is: {there}")


router = APIRouter()
public = APIRouter()  # read without a token
DEPENDENCIES = {  # what a workspace leans on, named and not played
    "storageAccount": "Microsoft.Storage/storageAccounts",
    "keyVault": "Microsoft.KeyVault/vaults",
    "applicationInsights": "Microsoft.Insights/components",
    "containerRegistry": "Microsoft.ContainerRegistry/registries",
}


@router.get(identifiers.GROUP_PATH)
def group(subscription: str, group: str) -> dict:
    """Return the resource group."""
    identifier = identifiers.GROUP_PATH.format(subscription=subscription, group=group)
    properties = {"provisioningState": "Succeeded"}
    return {"id": identifier, "name": group, "location": identifiers.LOCATION, "properties": properties}


@router.get(identifiers.WORKSPACE_PATH)
def show(request: Request) -> dict:
    """Return the workspace, with the address of its tracking server and of its other services."""
    context = current(request)
    host = context.origin.removeprefix("https://")
    group = identifiers.WORKSPACE_ID.partition("/providers/")[0]
    return {
        "id": identifiers.WORKSPACE_ID,
        "name": identifiers.WORKSPACE,
        "type": f"{identifiers.PROVIDER}/workspaces",
        "location": identifiers.LOCATION,
        "kind": "Default",
        "sku": {"name": "Basic", "tier": "Basic"},
        "identity": resource.identity({"type": "SystemAssigned"}),
        "tags": {},
        "systemData": context.state.get(identifiers.WORKSPACE_ID)["systemData"],
        "properties": {
            "friendlyName": identifiers.WORKSPACE,
            "description": "A local emulator for an Azure Machine Learning workspace.",
            "workspaceId": "00000000-0000-0000-0000-000000000003",
            "discoveryUrl": f"{context.origin}/discovery/workspaces/{identifiers.WORKSPACE}",
            "mlFlowTrackingUri": f"azureml://{host}/mlflow/v1.0{identifiers.WORKSPACE_ID}",
            "provisioningState": "Succeeded",
            "publicNetworkAccess": "Enabled",
            "hbiWorkspace": False,
            "tenantId": identifiers.TENANT,
            **{
                name: f"{group}/providers/{kind}/{identifiers.WORKSPACE}"
                for name, kind in DEPENDENCIES.items()
            },
        },
    }


@public.get("/discovery/workspaces/{workspace}")
@opens(nothing, "addresses; the SDK asks without a token")
def discovery(request: Request, workspace: str) -> dict:
    """Return the addresses of the workspace's services."""
    origin = current(request).origin
    services = ("api", "history", "experimentation", "modelmanagement", "notebooks", "studio", "pipelines")
    return dict.fromkeys(services, origin)


@router.get(f"{identifiers.GROUP_PATH}/providers/{identifiers.PROVIDER}/workspaces")
@router.get(f"/subscriptions/{{subscription}}/providers/{identifiers.PROVIDER}/workspaces")
def list_all(request: Request) -> JSONResponse:
    """Return the one workspace there is."""
    return queries.answer(request, "workspaces", [show(request)])
