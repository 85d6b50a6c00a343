"""An HTTP session for OTLP that asks the environment once, and not for every request.

`requests` looks for a `.netrc` file, proxies and certificates each time it sends: a fifth of what
an export of one span takes, twice a second in every process.
"""

from typing import Any

import requests
from requests.auth import AuthBase
from requests.utils import get_netrc_auth


class _Unchanged(AuthBase):
    """Adds nothing; keeps `requests` from looking for a `.netrc` file again."""

    def __call__(self, request: Any) -> Any:
        return request


class OtlpSession(requests.Session):
    """Goes on with what the environment said about the address of the first request."""

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Prepare one request, as `requests.Session.prepare_request` does."""
        if self.trust_env:
            url = str(request.url)
            said = self.merge_environment_settings(url, {}, None, None, None)
            self.proxies, self.verify = said["proxies"], said["verify"]
            self.auth = self.auth or get_netrc_auth(url) or _Unchanged()
            self.trust_env = False
        return super().prepare_request(request)
