"""The workspace: one, with its resource group and the addresses of its services."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from local_azureml import identifiers, resource
from local_azureml.context import current
from local_azureml.control_plane import queries
from local_azureml.errors import AzureError, not_found


def check_group(request: Request) -> None:
    """Refuse a path that names another subscription or resource group than the one there is."""
    subscription = request.path_params.get("subscription", identifiers.SUBSCRIPTION)
    group = request.path_params.get("group", identifiers.GROUP)
    if subscription.lower() != identifiers.SUBSCRIPTION:
        message = (
            f"The subscription {subscription!r} could not be found; there is: {identifiers.SUBSCRIPTION}"
        )
        raise AzureError(404, "SubscriptionNotFound", message)
    if group.lower() != identifiers.GROUP:
        message = f"Resource group {group!r} could not be found; there is: {identifiers.GROUP}"
        raise AzureError(404, "ResourceGroupNotFound", message)


def workspace_id(request: Request, subscription: str, group: str, workspace: str) -> str:
    """Return the id of the workspace that the request's path names, which must be there."""
    check_group(request)
    asked = identifiers.WORKSPACE_PATH.format(subscription=subscription, group=group, workspace=workspace)
    missing = "workspace-missing" in current(request).faults
    if missing or asked.lower() != identifiers.WORKSPACE_ID.lower():
        known = [] if missing else [f"{identifiers.GROUP}/{identifiers.WORKSPACE}"]
        raise not_found("workspace", f"{group}/{workspace}", known)
    return identifiers.WORKSPACE_ID


router = APIRouter(dependencies=[Depends(check_group)])
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
def show(request: Request, identifier: str = Depends(workspace_id)) -> dict:
    """Return the workspace, with the address of its tracking server and of its other services."""
    context = current(request)
    host = context.origin.removeprefix("https://")
    group = identifier.partition("/providers/")[0]
    return {
        "id": identifier,
        "name": identifiers.WORKSPACE,
        "type": f"{identifiers.PROVIDER}/workspaces",
        "location": identifiers.LOCATION,
        "kind": "Default",
        "sku": {"name": "Basic", "tier": "Basic"},
        "identity": resource.identity({"type": "SystemAssigned"}),
        "tags": {},
        "systemData": context.state.get(identifier)["systemData"],
        "properties": {
            "friendlyName": identifiers.WORKSPACE,
            "description": "A local emulator for an Azure Machine Learning workspace.",
            "workspaceId": "00000000-0000-0000-0000-000000000003",
            "discoveryUrl": f"{context.origin}/discovery/workspaces/{identifiers.WORKSPACE}",
            "mlFlowTrackingUri": f"azureml://{host}/mlflow/v1.0{identifier}",
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
def discovery(request: Request, workspace: str) -> dict:
    """Return the addresses of the workspace's services."""
    origin = current(request).origin
    services = ("api", "history", "experimentation", "modelmanagement", "notebooks", "studio", "pipelines")
    return dict.fromkeys(services, origin)


@router.get(f"{identifiers.GROUP_PATH}/providers/{identifiers.PROVIDER}/workspaces")
@router.get(f"/subscriptions/{{subscription}}/providers/{identifiers.PROVIDER}/workspaces")
def list_all(request: Request) -> JSONResponse:
    """Return the one workspace there is."""
    return queries.answer(request, "workspaces", [show(request, identifiers.WORKSPACE_ID)])
