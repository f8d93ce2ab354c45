"""Policies, seen, tried, changed and rolled back while traffic flows. Every request sees one whole policy or the next.

A category is told, replaced and patched together with its threshold and floor for the encoder in use, as keys of it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post, put
from litestar.params import FromPath

from cacheproxy.errors import InvalidRequest, NotFound
from cacheproxy.govern.book import Order
from cacheproxy.http.admin.asked import MAX_DEPTH, actor_of, body_of, is_dry_run
from cacheproxy.http.admin.document import GUARDED, refusals, told
from cacheproxy.http.admin.trial import ProbeTold, Problem, tried
from cacheproxy.policy.edit import Difference, category_tree, merged, no_longer_kept, with_category, without_category
from cacheproxy.policy.edit import differences as differing
from cacheproxy.policy.loader import pack_tree
from cacheproxy.policy.pack import Category, Pack, Threshold
from cacheproxy.query.canonical import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.govern.book import Change, PolicyBook
    from cacheproxy.http.admin.house import Operated

_POLICIES = "/admin/v1/policies"
_CATEGORY = f"{_POLICIES}/categories/{{name:str}}"
_LONGEST_REASON = 500
_SAID = frozenset({"dry_run", "reason"})


class CategoryForm(Category, frozen=True, kw_only=True):
    """A category, and what the encoder in use needs of it: the threshold, and the floor that load may lower it to."""

    threshold: Threshold | None = None
    floor: Threshold | None = None


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What came into force, or with `dry_run` would: the version, each changed key, the categories whose entries go."""

    version: int
    etag: str
    dry_run: bool
    changed: list[Difference]
    dropped: list[str]


class VersionTold(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the policy."""

    version: int
    at: str
    actor: str
    action: str
    reason: str
    in_force: bool


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """The versions that are kept, newest first."""

    versions: list[VersionTold]


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which version to have again."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    reason: Annotated[str, msgspec.Meta(max_length=_LONGEST_REASON)] = ""


class ValidateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole pack, as `GET /admin/v1/policies` tells it."""

    pack: dict[str, Any]


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a pack; where that is nothing, what the probes on disk say of it and what it would change."""

    problems: list[Problem]
    probes: list[ProbeTold]
    changed: list[Difference]
    dropped: list[str]


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of policies."""
    return [*_whole(house.book), *_categories(house.book), *_history(house.book)]


def _whole(book: PolicyBook) -> list[HTTPRouteHandler]:
    @get(_POLICIES, sync_to_thread=False, responses=refusals(401), security=GUARDED)
    def policies() -> Response[Pack]:
        policy = book()
        return Response(policy.pack, headers={"etag": policy.etag})

    @put(_POLICIES, responses=refusals(400, 401, 412, 413, 503), security=GUARDED, operation_class=told(Pack))
    async def replace_policies(request: Request[Any, Any, Any]) -> Response[Changed]:
        tree = decode(await request.body(), MAX_DEPTH)
        return _answer(await book.activate(tree, _order(request, "policies.replace")), request)

    @post(
        f"{_POLICIES}/validate",
        status_code=200,
        responses=refusals(400, 401, 413, 503),
        security=GUARDED,
        operation_class=told(ValidateRequest),
    )
    async def validate_policies(request: Request[Any, Any, Any]) -> Validation:
        tree = body_of(await request.body(), ValidateRequest, "validate").pack
        problems, proposed = await book.propose(tree)
        if proposed is None:
            told_problems = [Problem(key=key, problem=problem) for key, problem in problems]
            return Validation(problems=told_problems, probes=[], changed=[], dropped=[])
        now = book().pack
        found, probes = await tried(book, proposed.pack)
        return Validation(
            problems=found,
            probes=probes,
            changed=differing(pack_tree(now), pack_tree(proposed.pack)),
            dropped=list(no_longer_kept(now, proposed.pack)),
        )

    return [policies, replace_policies, validate_policies]


def _categories(book: PolicyBook) -> list[HTTPRouteHandler]:
    @get(_CATEGORY, sync_to_thread=False, responses=refusals(401, 404), security=GUARDED)
    def category(name: FromPath[str]) -> Response[CategoryForm]:
        policy = book()
        form = msgspec.convert(category_tree(policy.pack, _known(policy.pack, name), book.epoch), CategoryForm)
        return Response(form, headers={"etag": policy.etag})

    @put(
        _CATEGORY,
        responses=refusals(400, 401, 412, 413, 503),
        security=GUARDED,
        operation_class=told(CategoryForm),
    )
    async def replace_category(name: FromPath[str], request: Request[Any, Any, Any]) -> Response[Changed]:
        body = decode(await request.body(), MAX_DEPTH)
        return await change(
            request, name, "categories.replace", lambda pack: with_category(pack, name, body, book.epoch)
        )

    @patch(
        _CATEGORY,
        responses=refusals(400, 401, 404, 412, 413, 503),
        security=GUARDED,
        operation_class=told(CategoryForm, "application/merge-patch+json"),
    )
    async def patch_category(name: FromPath[str], request: Request[Any, Any, Any]) -> Response[Changed]:
        body = decode(await request.body(), MAX_DEPTH)

        def patched(pack: Pack) -> dict[str, Any]:
            now = category_tree(pack, _known(pack, name), book.epoch)
            return with_category(pack, name, merged(now, body), book.epoch)

        return await change(request, name, "categories.patch", patched)

    @delete(_CATEGORY, status_code=200, responses=refusals(400, 401, 404, 412, 503), security=GUARDED)
    async def delete_category(name: FromPath[str], request: Request[Any, Any, Any]) -> Response[Changed]:
        return await change(request, name, "categories.delete", lambda pack: without_category(pack, _known(pack, name)))

    async def change(
        request: Request[Any, Any, Any], name: str, action: str, edit: Callable[[Pack], dict[str, Any]]
    ) -> Response[Changed]:
        return _answer(await book.change(edit, _order(request, action, name)), request)

    return [category, replace_category, patch_category, delete_category]


def _history(book: PolicyBook) -> list[HTTPRouteHandler]:
    @get(f"{_POLICIES}/versions", responses=refusals(401, 503), security=GUARDED)
    async def policy_versions() -> Response[Versions]:
        policy, found = book(), await book.versions()
        listed = [
            VersionTold(
                version=version.n,
                at=datetime.fromtimestamp(version.at_s, UTC).isoformat(timespec="milliseconds"),
                actor=version.actor,
                action=version.action,
                reason=version.reason,
                in_force=version.n == policy.version,
            )
            for version in found
        ]
        return Response(Versions(versions=listed), headers={"etag": policy.etag})

    @post(
        f"{_POLICIES}/rollback",
        status_code=200,
        responses=refusals(400, 401, 404, 412, 413, 503),
        security=GUARDED,
        operation_class=told(RollbackRequest),
    )
    async def roll_back(request: Request[Any, Any, Any]) -> Response[Changed]:
        asked = body_of(await request.body(), RollbackRequest, "rollback")
        order = _order(request, "policies.rollback", f"version {asked.version}", asked.reason)
        return _answer(await book.rollback(asked.version, order), request)

    return [policy_versions, roll_back]


def _known(pack: Pack, name: str) -> str:
    if name not in pack.categories:
        raise NotFound(f"there is no category {name[:64]!r}; known: {', '.join(pack.categories)}", param="name")
    return name


def _order(request: Request[Any, Any, Any], action: str, target: str = "", reason: str = "") -> Order:
    """Return the order that a request gives. Raises InvalidRequest: a misspelt dry_run must not do it for real."""
    if unknown := sorted(set(request.query_params) - _SAID):
        raise InvalidRequest(f"unknown query parameter {unknown[0][:64]!r}; known: dry_run, reason", param="query")
    return Order(
        actor=actor_of(request),
        action=action,
        target=target,
        reason=(reason or str(request.query_params.get("reason", "")))[:_LONGEST_REASON],
        if_match=request.headers.get("if-match"),
        dry_run=is_dry_run(request),
    )


def _answer(change: Change, request: Request[Any, Any, Any]) -> Response[Changed]:
    policy = change.policy
    body = Changed(
        version=policy.version,
        etag=policy.etag,
        dry_run=is_dry_run(request),
        changed=list(change.differences),
        dropped=list(change.dropped),
    )
    return Response(body, headers={} if body.dry_run else {"etag": policy.etag})
