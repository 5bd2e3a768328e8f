/** The people side of the HTTP contract: shapes, one `get`, and problem documents as errors. */

export type Health = "ok" | "warn" | "crit" | "silent";
/** JSON has no NaN: the service writes non-finite numbers as words. */
export type Num = number | "NaN" | "Infinity" | "-Infinity" | null;

export interface Session {
  authenticated: boolean;
  project: string | null;
  scope: string | null;
  login_required: boolean;
  projects: string[];
  version: string;
}

export interface RunSummary {
  run: string;
  name: string | null;
  project: string;
  owner: string | null;
  training_job: string | null;
  environment: string | null;
  status: string;
  health: Health;
  /** Health in words: "healthy (partly watched)" where few detectors are armed. */
  verdict: string;
  reason: string | null;
  attempt: number | null;
  step: number | null;
  loss: Num;
  spark: Num[];
  worst_layer: string | null;
  alerts: { pending: number; firing: number };
  world_size: number | null;
  started_at: string;
  last_seen_at: string;
  ended_at: string | null;
}

export interface Parameter {
  i: number;
  name: string;
  layer: string;
  block: string;
  kind: string;
  params: number;
  dtype: string;
}

export interface Attempt {
  ordinal: number;
  attempt: string;
  status: string;
  first_step: number | null;
  last_step: number | null;
  superseded_after: number | null;
}

export interface Rank {
  rank: number;
  group: number | null;
  host: string | null;
  place: Record<string, unknown> | null;
  last_step: number | null;
  last_seen_at: string | null;
  ended: boolean;
}

export interface Coverage {
  alert: string;
  state: "armed" | "waiting" | "blind";
  detail: string | null;
}

export interface RunDetail extends RunSummary {
  layers: Parameter[];
  attempts: Attempt[];
  ranks: Rank[];
  steps: [number, number] | null;
  coverage: Coverage[];
  config: Record<string, unknown> | null;
}

export interface SeriesKey {
  min: Num[];
  max: Num[];
  last: Num[];
  nonfinite: (number | null)[];
}

export interface Series {
  step: number[];
  time_ns: (number | null)[];
  keys: Record<string, SeriesKey>;
  /** Every series that is no layer's, asked for or not. */
  reported: string[];
}

export interface RunEvent {
  step: number | null;
  time_ns: number;
  rank: number | null;
  attempt: number | string | null;
  kind: string;
  text: string | null;
  data: Record<string, unknown> | null;
}

export interface Alert {
  id: number;
  alertname: string;
  severity: string;
  state: "pending" | "firing" | "resolved";
  labels: Record<string, string>;
  annotations: Record<string, string>;
  active_at: string;
  fired_at: string | null;
  resolved_at: string | null;
  reason: string;
}

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}

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
    response = await fetch(path, { credentials: "same-origin", ...init });
  } catch (cause) {
    if (init.signal?.aborted) throw cause;
    throw new ApiError(0, "The service does not answer", "Is `gradwarden serve` running?", null);
  }
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

export async function login(token: string): Promise<void> {
  const headers = { "content-type": "application/json" };
  await call("/v1/session", { method: "POST", headers, body: JSON.stringify({ token }) });
}

export async function logout(): Promise<void> {
  await call("/v1/session", { method: "DELETE" });
}

/** The number, with the words for non-finite values turned back; null stays null. */
export function num(value: Num | undefined): number | null {
  return value === null || value === undefined ? null : Number(value);
}
