/** The people side of the HTTP contract: one `get`, and problem documents as errors. */

import { live } from "./live.svelte";
import type { RunFace, SeriesColumns } from "./schema";
import { ask } from "./transport";

export type Health = RunFace["health"];
/** JSON has no NaN: the service writes non-finite numbers as words. */
export type Num = RunFace["loss"] | SeriesColumns["last"][number];

/** A failed call, told in the service's own words where it gave any (RFC 9457). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    title: string,
    readonly detail: string,
    readonly requestId: string | null,
  ) {
    super(title);
  }
}

async function call(path: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await ask(path, init);
  } catch (cause) {
    if (init.signal?.aborted) throw cause;
    live.lost = true;
    throw new ApiError(0, "The service does not answer", "Is `gradwarden serve` running?", null);
  }
  live.heard();
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new ApiError(
    response.status,
    problem.title ?? `HTTP ${response.status}`,
    problem.detail ?? "",
    problem.request_id ?? null,
  );
}

/** A path under /v1 with its query; empty values are left out. */
export function v1(path: string, query: Record<string, string | number | null | undefined> = {}) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") search.set(key, String(value));
  }
  const text = search.toString();
  return `/v1/${path}${text ? `?${text}` : ""}`;
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await call(path, { signal })).json();
}

export async function getBytes(path: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  return (await call(path, { signal })).arrayBuffer();
}

/** A call that changes something; its answer as JSON, null where there is none. */
export async function send<T>(method: "POST" | "PUT" | "PATCH" | "DELETE", path: string, body?: unknown): Promise<T> {
  const headers: HeadersInit = body === undefined ? {} : { "content-type": "application/json" };
  const response = await call(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await response.text();
  return (text ? JSON.parse(text) : null) as T;
}

export async function login(token: string): Promise<void> {
  await send("POST", "/v1/session", { token });
}

export async function logout(): Promise<void> {
  await send("DELETE", "/v1/session");
}

/** The number, with the words for non-finite values turned back; null stays null. */
export function num(value: Num | undefined): number | null {
  return value === null || value === undefined ? null : Number(value);
}
