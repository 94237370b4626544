"""What every resource carries: identities, who made it and when."""

import uuid
from datetime import datetime, timedelta, timezone

from local_azureml import identifiers


def now(later: float = 0) -> str:
    """Return the time, or that so many seconds later, as Azure writes it."""
    return (datetime.now(timezone.utc) + timedelta(seconds=later)).isoformat(timespec="microseconds")


def identity(asked: dict | None) -> dict | None:
    """Return the identity of a resource with the ids that Azure gives it."""
    if asked is None:
        return None
    system = {"principalId": "00000000-0000-0000-0000-000000000004", "tenantId": identifiers.TENANT}
    given = {**asked, **(system if "SystemAssigned" in asked["type"] else {})}
    if users := asked.get("userAssignedIdentities"):
        given["userAssignedIdentities"] = {user: _ids_of_user(user) for user in users}
    return given


def _ids_of_user(identity: str) -> dict:
    """Return the ids of an identity that a user assigns: the same wherever it is named."""
    names = ("principalId", "clientId")
    return {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} of {identity.lower()}")) for name in names}


def system_data(before: dict | None = None) -> dict:
    """Return who made and changed a resource, and when; `before` is its document so far."""
    return {
        "createdAt": before["systemData"]["createdAt"] if before else now(),
        "createdBy": "you",
        "createdByType": "User",
        "lastModifiedAt": now(),
        "lastModifiedBy": "you",
        "lastModifiedByType": "User",
    }


def merged(document: dict, changes: dict) -> dict:
    """Return a document with what a PATCH changes of it, at whatever depth."""
    inner = {
        key: merged(document[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(document.get(key), dict)
    }
    return {**document, **changes, **inner}
