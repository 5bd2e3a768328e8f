"""One HTTP POST to a receiver: guarded, without redirects, its answer read as an outcome."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from gradwarden_server.notify.guard import Refused, Resolve, Unresolved, admit, system_resolve
from gradwarden_server.notify.message import Failed, Outcome, Sent

# Both write whole URLs and headers into the log, and a receiver's may be credentials.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

T = TypeVar("T")
MOST_READ = 64 * 1024
RETRIED = frozenset({408, 425, 429})


class Poster:
    """Posts to one URL. Of an answer's body a person is told no more than ``read`` picks out."""

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
        return self.ask(body, headers, lambda response: read_answer(response, now_ns))

    def ask(
        self,
        body: bytes,
        headers: Mapping[str, str],
        read: Callable[[httpx.Response], T],
        path: str = "",
    ) -> T | Failed:
        """Make one try, and let ``read`` make sense of the answer while it is open.

        Args:
            body: JSON, unless ``headers`` say otherwise.
            headers: In addition to our own.
            read: May read the body with ``bounded``.
            path: Behind the URL.
        """
        try:
            target = admit(self._url + path, self._allow_private, self._resolve)
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
            try:
                return read(response)
            finally:
                response.close()
        except Refused as refused:
            return Failed(f"refused: {refused}", retry=False)
        except Unresolved as unresolved:
            return Failed(str(unresolved), retry=True)
        except httpx.TimeoutException as error:
            return Failed(f"no answer in time ({type(error).__name__})", retry=True)
        except httpx.HTTPError as error:
            return Failed(self._redacted(f"{type(error).__name__}: {error}"), retry=True)

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


def bounded(response: httpx.Response) -> bytes:
    """The beginning of an answer's body: whoever answers may be no friend."""
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) >= MOST_READ:
            break
    return body[:MOST_READ]


def json_object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object that an answer holds; an empty one where it holds none."""
    try:
        document = json.loads(bounded(response))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def printable(value: object, longest: int = 200) -> str:
    """A text of the far end, made fit to be shown."""
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else " " for c in text[:longest])
