"""Puts the policy packs and the Flower app into the standard wheel as data.

An editable install must not carry a copy: a stale copy in site-packages would shadow the checkout's.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PackDataHook(BuildHookInterface):
    """Adds `policies/` and `federated/` under `cacheproxy/_policies` and `_federated`, for `version == "standard"`."""

    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        """Extend hatchling's force-include table for a standard build."""
        if version == "standard":
            include = build_data["force_include"]
            assert isinstance(include, dict)
            include["policies"] = "cacheproxy/_policies"
            include["federated"] = "cacheproxy/_federated"
