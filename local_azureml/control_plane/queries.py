"""Lists: what a request asks of one, found in the state a page at a time."""

import json
import re
from collections.abc import Callable, Iterable

from fastapi import Request
from fastapi.responses import JSONResponse

from local_azureml.context import current
from local_azureml.control_plane import shapes
from local_azureml.errors import not_played, user_error
from local_azureml.state import Query, Where, archived, equal, has, holds, one_of

LONGEST = 100  # documents on a page; Azure doesn't tell how many it sends
MOST_CONDITIONS = 100  # SQLite takes no thousand
VIEWS = {"ActiveOnly": [archived(False)], "ArchivedOnly": [archived(True)], "All": []}
ORDER_BY = re.compile(r"(created|modified)time( asc| desc)?", re.IGNORECASE)
ORDER_STRINGS = {
    f"{name}At{down}": (order, down == "Desc")
    for name, order in (("Created", "created"), ("Updated", "modified"))
    for down in ("Desc", "Asc")
}
Filter = Callable[[Query, str], None]


def _word(name: str, value: str, known: Iterable[str]) -> str:
    """Return the word that `value` is, in Azure's capitals, or refuse it."""
    for word in known:
        if word.lower() == value.lower():
            return word
    raise user_error(f"{name} {value!r} is not one of {', '.join(known)}")


def _most(query: Query, value: str) -> None:
    if not re.fullmatch("[1-9][0-9]{0,9}", value):
        raise user_error(f"{value!r} is not a number of results: that is a whole number from 1 on")
    query.most = min(int(value), LONGEST)


def _view(query: Query, value: str) -> None:
    value = value.removeprefix("ListViewType.").replace("_", "")  # the SDK's own name for it, of registries
    query.where += VIEWS[_word("listViewType", value, VIEWS)]


def _where(condition: Callable[[str], Where]) -> Filter:
    """Return the filter of the documents of which a condition is true that the value makes."""
    return lambda query, value: query.where.append(condition(value))


def _pairs(path: str) -> Filter:
    """Return the filter of the documents that have all keys, or keys with values: "tag1,tag2=value2"."""

    def filtered(query: Query, value: str) -> None:
        for pair in value.split(","):
            key, equals, wanted = pair.partition("=")
            query.where.append(has(path, key, wanted if equals else None))

    return filtered


def _is_default(query: Query, value: str) -> None:
    if _word("isDefault", value, ["true", "false"]) == "true":
        query.where.append(equal("properties.isDefault", True))


def _order_by(query: Query, value: str) -> None:
    if not (asked := ORDER_BY.fullmatch(value)):
        raise user_error(f"$orderBy {value!r} is not createdtime or modifiedtime, with asc or desc behind it")
    query.order, query.descending = asked[1].lower(), (asked[2] or "").lower() == " desc"


def _order_string(query: Query, value: str) -> None:
    query.order, query.descending = ORDER_STRINGS[_word("orderBy", value, ORDER_STRINGS)]


def _order_property(query: Query, value: str) -> None:
    query.order = _word("orderBy", value, ["createdtime", "modifiedtime", "name"]).removesuffix("time")


def _ascending(query: Query, value: str) -> None:
    query.descending = _word("orderByAsc", value, ["true", "false"]) == "false"


def _token(query: Query, value: str) -> None:
    try:
        place, number = json.loads(bytes.fromhex(value))
        if isinstance(number, int) and abs(number) < 2**63 and isinstance(place, str | float):
            str(place).encode()
            query.after = (place, number)
            return
    except (TypeError, ValueError, RecursionError):
        pass
    raise user_error("invalid $skip token; start the list again without it")


ORDERED = {"$orderBy": _order_by, "$top": _most}
VIEWED = {"listViewType": _view}
NAME = _where(lambda value: one_of("name", value))
JOB_TYPE = _where(lambda value: equal("properties.jobType", _word("jobType", value, shapes.JOB_TYPES)))
HASH = _where(lambda value: equal("properties.properties.hash_sha256", value))
STAGE = _where(lambda value: equal("properties.stage", value))  # the SDK's; Microsoft's description lacks it
TAGS, PROPERTIES = _pairs("properties.tags"), _pairs("properties.properties")
MODELS = {**ORDERED, **VIEWED, "version": NAME, "tags": TAGS, "properties": PROPERTIES}
FILTERS: dict[str, dict[str, Filter]] = {  # of each list, by the last segments of its address
    "workspaces": {"kind": _where(lambda value: one_of("kind", *value.split(",")))},
    "computes": {},
    "jobs": {
        **VIEWED,
        "jobType": JOB_TYPE,
        "tag": _where(lambda key: has("properties.tags", key)),
        "properties": PROPERTIES,
    },
    "datastores": {
        "count": _most,
        "isDefault": _is_default,
        "names": _where(lambda value: one_of("name", *value.split(","))),
        "searchText": _where(lambda value: holds("name", value)),
        "orderBy": _order_property,
        "orderByAsc": _ascending,
    },
    "onlineEndpoints": {
        "name": NAME,
        "count": _most,
        "tags": _pairs("tags"),
        "properties": PROPERTIES,
        "orderBy": _order_string,
    },
    "deployments": ORDERED,
    "models": {**VIEWED, "count": _most},
    "data": VIEWED,
    "environments": VIEWED,
    "components": VIEWED,
    "codes": {},
    "models/versions": {**MODELS, "stage": STAGE},
    "data/versions": {**ORDERED, **VIEWED, "$tags": TAGS},
    "environments/versions": {**ORDERED, **VIEWED},
    "components/versions": {**ORDERED, **VIEWED},
    "codes/versions": {**ORDERED, "hash": HASH, "hashVersion": lambda *_: None},  # there is one algorithm
    "registries/models/versions": MODELS,
    "registries/components/versions": ORDERED,
    "registries/environments/versions": {**ORDERED, **VIEWED},
    "runs/children": {"$top": _most},
}
"""What Microsoft's description has and these lack is not played, and refused by name."""


def answer(
    request: Request,
    kind: str,
    of: str | list[dict],
    shown: Callable[[dict], dict] = dict,
    where: tuple[Where, ...] = (),
    **unasked,
) -> JSONResponse:
    """Return a page of the documents below an id, or of those given, each as it is `shown`.

    `kind` chooses what may be asked of the list; `unasked` is how it is seen and ordered otherwise. What
    follows the page is at the answer's `nextLink`.
    """
    context = current(request)
    query = _query(request, kind, **unasked)
    query.where += where
    with context.state.locked():
        found, last = context.state.page(of, query)
        body = {"value": [shown(document) for document in found]}
    if last:
        there = request.url.include_query_params(**{"$skip": json.dumps(last).encode().hex()})
        body["nextLink"] = f"{context.origin}{there.path}?{there.query}"
    return JSONResponse(body)


def _query(request: Request, kind: str, view: str = "ActiveOnly", descending: bool = True) -> Query:
    takes = {"$skip": _token, **FILTERS.get(kind, {})}
    query = Query(descending=descending, most=LONGEST)
    asked = [(name, value) for name, value in request.query_params.multi_items() if name != "api-version"]
    if "listViewType" in takes and "listViewType" not in request.query_params:
        asked.append(("listViewType", view))
    for name, value in asked:
        if name not in takes:
            there = ", ".join(sorted(takes))
            raise not_played(f"{name!r} of a list of {kind}", f"there is: {there}")
        takes[name](query, value)
    if len(query.where) > MOST_CONDITIONS:
        raise user_error(
            f"a list is filtered by at most {MOST_CONDITIONS} conditions, not {len(query.where)}"
        )
    return query
