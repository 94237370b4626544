"""Names, addresses and paths of the one cloud that there is."""

from pathlib import Path

NAME = "LocalAzureML"
PORTAL = "https://portal.azure.local/"
AUDIENCE = "https://ml.azure.local"  # what the SDK derives from the portal's address
STORAGE_SUFFIX = "storage.local"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
GROUP = "local"
WORKSPACE = "local"
LOCATION = "eastus"
LIFETIME = 24 * 3600  # seconds that a token and a storage signature are valid
TENANT = "00000000-0000-0000-0000-000000000001"
PROVIDER = "Microsoft.MachineLearningServices"
SEEDS = Path(__file__).parent / "seeds"
SMALL_MODEL = SEEDS / "base_model"  # what stands in for the registry's models unless a checkpoint is given
GROUP_PATH = "/subscriptions/{subscription}/resourceGroups/{group}"
WORKSPACE_PATH = f"{GROUP_PATH}/providers/{PROVIDER}/workspaces/{{workspace}}"
WORKSPACE_ID = WORKSPACE_PATH.format(subscription=SUBSCRIPTION, group=GROUP, workspace=WORKSPACE)
JOBS = f"{WORKSPACE_ID}/jobs"  # below it, the documents of all jobs
