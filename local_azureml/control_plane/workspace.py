"""The workspace: one, with its resource group and the addresses of its services."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from local_azureml import cloud
from local_azureml.control_plane import queries

router = APIRouter(dependencies=[Depends(cloud.check_group)])
public = APIRouter()  # read without a token
DEPENDENCIES = {  # what a workspace leans on, named and not played
    "storageAccount": "Microsoft.Storage/storageAccounts",
    "keyVault": "Microsoft.KeyVault/vaults",
    "applicationInsights": "Microsoft.Insights/components",
    "containerRegistry": "Microsoft.ContainerRegistry/registries",
}


@router.get(cloud.GROUP_PATH)
def group(subscription: str, group: str) -> dict:
    """Return the resource group."""
    identifier = cloud.GROUP_PATH.format(subscription=subscription, group=group)
    properties = {"provisioningState": "Succeeded"}
    return {"id": identifier, "name": group, "location": cloud.LOCATION, "properties": properties}


@router.get(cloud.WORKSPACE_PATH)
def show(request: Request, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return the workspace, with the address of its tracking server and of its other services."""
    local = cloud.current(request)
    host = local.origin.removeprefix("https://")
    group = identifier.partition("/providers/")[0]
    return {
        "id": identifier,
        "name": cloud.WORKSPACE,
        "type": f"{cloud.PROVIDER}/workspaces",
        "location": cloud.LOCATION,
        "kind": "Default",
        "sku": {"name": "Basic", "tier": "Basic"},
        "identity": cloud.identity({"type": "SystemAssigned"}),
        "tags": {},
        "systemData": local.state.get(identifier)["systemData"],
        "properties": {
            "friendlyName": cloud.WORKSPACE,
            "description": "A local stand-in for an Azure Machine Learning workspace.",
            "workspaceId": "00000000-0000-0000-0000-000000000003",
            "discoveryUrl": f"{local.origin}/discovery/workspaces/{cloud.WORKSPACE}",
            "mlFlowTrackingUri": f"azureml://{host}/mlflow/v1.0{identifier}",
            "provisioningState": "Succeeded",
            "publicNetworkAccess": "Enabled",
            "hbiWorkspace": False,
            "tenantId": cloud.TENANT,
            **{name: f"{group}/providers/{kind}/{cloud.WORKSPACE}" for name, kind in DEPENDENCIES.items()},
        },
    }


@public.get("/discovery/workspaces/{workspace}")
def discovery(request: Request, workspace: str) -> dict:
    """Return the addresses of the workspace's services."""
    origin = cloud.current(request).origin
    services = ("api", "history", "experimentation", "modelmanagement", "notebooks", "studio", "pipelines")
    return dict.fromkeys(services, origin)


@router.get(f"{cloud.GROUP_PATH}/providers/{cloud.PROVIDER}/workspaces")
@router.get(f"/subscriptions/{{subscription}}/providers/{cloud.PROVIDER}/workspaces")
def list_all(request: Request) -> JSONResponse:
    """Return the one workspace there is."""
    return queries.answer(request, "workspaces", [show(request, cloud.WORKSPACE_ID)])
