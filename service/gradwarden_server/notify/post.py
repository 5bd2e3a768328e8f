"""One HTTP POST to a receiver: guarded, without redirects, its answer read as an outcome."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from gradwarden_server.notify.guard import Refused, Resolve, Unresolved, admit, system_resolve
from gradwarden_server.notify.message import Failed, Outcome, Sent

# Both write whole URLs and headers into the log, and a receiver's may be credentials.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

RETRIED = frozenset({408, 425, 429})


class Poster:
    """Posts to one URL. The answer's body is never read: nothing in it may reach a person."""

    def __init__(
        self,
        url: str,
        *,
        allow_private: bool,
        timeout_seconds: float,
        client: httpx.Client | None = None,
        resolve: Resolve = system_resolve,
    ) -> None:
        self._url = url
        self._allow_private = allow_private
        self._timeout = timeout_seconds
        self._resolve = resolve
        # No proxy from the environment: it would resolve the name again, past the guard.
        self._client = client or httpx.Client(trust_env=False, follow_redirects=False)

    def post(self, body: bytes, headers: Mapping[str, str], now_ns: int) -> Outcome:
        """Make one try. ``now_ns`` gives a Retry-After date its meaning."""
        try:
            target = admit(self._url, self._allow_private, self._resolve)
            request = self._client.build_request(
                "POST",
                target.url,
                content=body,
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": "gradwarden",
                    **headers,
                    "Host": target.host_header,
                },
                timeout=self._timeout,
                extensions={"sni_hostname": target.sni},
            )
            response = self._client.send(request, stream=True, follow_redirects=False)
        except Refused as refused:
            return Failed(f"refused: {refused}", retry=False)
        except Unresolved as unresolved:
            return Failed(str(unresolved), retry=True)
        except httpx.TimeoutException as error:
            return Failed(f"no answer in time ({type(error).__name__})", retry=True)
        except httpx.HTTPError as error:
            return Failed(self._redacted(f"{type(error).__name__}: {error}"), retry=True)
        try:
            return read_answer(response, now_ns)
        finally:
            response.close()

    def _redacted(self, text: str) -> str:
        url = httpx.URL(self._url)
        for part in (self._url, url.raw_path.decode("ascii", "replace")):
            if len(part) > 1:
                text = text.replace(part, "<redacted>")
        return text


def read_answer(response: httpx.Response, now_ns: int) -> Outcome:
    """2xx took it; 408, 425, 429 and 5xx may be asked again; everything else is final."""
    status = response.status_code
    detail = f"HTTP {status}"
    if response.is_success:
        return Sent(detail)
    if status in RETRIED or status >= 500:
        wait = retry_after_seconds(response.headers.get("Retry-After"), now_ns)
        return Failed(detail, retry=True, retry_after_seconds=wait)
    if status == 410:
        detail += ": the endpoint is gone; remove it from the receivers file"
    elif response.is_redirect:
        detail += ": redirects are not followed; give the final URL"
    return Failed(detail, retry=False)


def retry_after_seconds(value: str | None, now_ns: int) -> float | None:
    """The wait that a Retry-After header asks for, in either of its two forms."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - now_ns / 1e9)
