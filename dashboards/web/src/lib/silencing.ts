/** What a silence is made of, apart from how it is drawn. */

import type { AlertFace, MaintenanceFace, SilenceFace, WeeklyBody } from "./schema";

export type Op = "=" | "!=" | "=~" | "!~";
export const OPS: Op[] = ["=", "!=", "=~", "!~"];
/** Labels that alerts have; others can be typed. */
export const LABELS = [
  "alertname", "run", "run_name", "severity", "owner", "team", "training_job", "environment", "cluster", "queue",
];
export const HOUR = 3600;
/** From here on a second confirmation is asked for: the next shift does not know of it. */
export const LONG = 24 * HOUR;

export interface Row {
  label: string;
  op: Op;
  value: string;
}

const MATCHER = /^([A-Za-z_][A-Za-z0-9_]*)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"$/;

/** A matcher as the service writes it, in its parts; null where it is none. */
export function parseMatcher(text: string): Row | null {
  const found = MATCHER.exec(text.trim());
  if (!found) return null;
  return { label: found[1], op: found[2] as Op, value: found[3].replace(/\\(.)/g, "$1") };
}

export function writeMatcher(row: Row): string {
  return `${row.label}${row.op}"${row.value.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
}

/** Rows that say something; a row being typed is left out. */
export function matchers(rows: Row[]): string[] {
  return rows.filter((row) => row.label && row.value).map(writeMatcher);
}

/** The rows that cover one alert on its run, and those of its labels that could narrow or widen. */
export function rowsOf(alert: AlertFace): { rows: Row[]; more: Row[] } {
  const all = Object.entries(alert.labels).map(([label, value]): Row => ({ label, op: "=", value }));
  const own = new Set(["alertname", "run"]);
  return { rows: all.filter((row) => own.has(row.label)), more: all.filter((row) => !own.has(row.label) && row.label !== "project") };
}

export const DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] as const;

/** A silence or planned work, as one row of one page. */
export interface Hush {
  /** What an alert says of itself while this holds it back. */
  muted: string;
  path: string;
  state: "pending" | "active" | "expired";
  matchers: string[];
  starts: string | null;
  ends: string | null;
  /** When it comes back, in words; empty where it does not. */
  repeat: string;
  extends: boolean;
  author: string;
  comment: string;
}

export function silenced(one: SilenceFace): Hush {
  const { id, state, matchers, starts_at, ends_at, author, comment } = one;
  const row = { state, matchers, starts: starts_at, ends: ends_at, author, comment };
  return { ...row, muted: `silence ${id}`, path: `silences/${id}`, repeat: "", extends: true };
}

export function planned(one: MaintenanceFace): Hush {
  const { id, matchers, author, comment } = one;
  const state = ({ scheduled: "pending", active: one.open ? "active" : "pending", ended: "expired" } as const)[one.state];
  const window = (state === "active" ? one.open : state === "pending" ? one.next : null) ?? one;
  const repeat = one.weekly ? weekly(one.weekly) : "";
  const row = { state, matchers, starts: window.starts_at, ends: window.ends_at, repeat, author, comment };
  return { ...row, muted: `maintenance ${id}`, path: `maintenance/${id}`, extends: false };
}

function weekly(one: WeeklyBody): string {
  return `every ${one.days.join(", ")} at ${one.at} ${one.time_zone ?? "UTC"}`;
}

/** The alerts that a silence holds back now, by the silence's number. */
export function held(alerts: AlertFace[]): Map<string, AlertFace[]> {
  const out = new Map<string, AlertFace[]>();
  for (const alert of alerts) {
    if (!alert.muted) continue;
    const list = out.get(alert.muted) ?? [];
    list.push(alert);
    out.set(alert.muted, list);
  }
  return out;
}

/** What `<input type=datetime-local>` shows for a moment, in this browser's zone. */
export function localInput(at: number): string {
  const date = new Date(at - new Date(at).getTimezoneOffset() * 60_000);
  return date.toISOString().slice(0, 16);
}
