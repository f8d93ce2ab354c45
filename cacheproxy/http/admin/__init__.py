"""The admin listener, apart from the data port so that no data path can reach it."""

from cacheproxy.http.admin.app import create_admin_app

__all__ = ["create_admin_app"]
