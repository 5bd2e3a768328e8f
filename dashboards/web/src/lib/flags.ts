/** Facts with a step, as flags above the heatmap; neighbours on screen become one flag. */

import type { AlertFace, AttemptFace, EventFace } from "./schema";
import * as f from "./format";

export type FlagKind = "alert" | "pending" | "healed" | "restart" | "checkpoint" | "failed" | "mark";

export interface Flag {
  step: number;
  kind: FlagKind;
  text: string;
}

export interface Cluster extends Flag {
  x: number;
  more: string[];
}

/** Kinds from loud to quiet: a cluster shows its loudest. */
const RANK: FlagKind[] = ["alert", "pending", "failed", "restart", "mark", "healed", "checkpoint"];
const QUIET = new Set(["start", "phase", "finish"]);

/** The run ended before anything healed: the alert is over, its cause is not. */
export function unhealed(alert: AlertFace): boolean {
  return alert.state === "resolved" && alert.reason === "run_finished";
}

/** Firing before pending, pages before tickets, and the first one is nearest to the cause. */
export function byWeight(a: AlertFace, b: AlertFace): number {
  const state = ["firing", "pending", "resolved"];
  const severity = ["page", "ticket", "note"];
  return (
    state.indexOf(a.state) - state.indexOf(b.state) ||
    severity.indexOf(a.severity) - severity.indexOf(b.severity) ||
    a.id - b.id
  );
}

export function alertStep(alert: AlertFace): number | null {
  const step = Number(alert.annotations.step ?? NaN);
  return Number.isFinite(step) ? step : null;
}

export function flags(alerts: AlertFace[], attempts: AttemptFace[], events: EventFace[]): Flag[] {
  const out: Flag[] = [];
  for (const alert of alerts) {
    const step = alertStep(alert);
    if (step === null) continue;
    const over = alert.state === "resolved" && !unhealed(alert);
    const loud = alert.state !== "pending" && alert.severity === "page";
    const kind = over ? "healed" : loud ? "alert" : "pending";
    out.push({ step, kind, text: `${alert.alertname} (${alert.state})` });
  }
  for (const attempt of attempts) {
    if (attempt.ordinal > 1 && attempt.first_step !== null) {
      out.push({ step: attempt.first_step, kind: "restart", text: `attempt ${attempt.ordinal} begins` });
    }
  }
  for (const event of events) {
    if (event.step === null || QUIET.has(event.kind)) continue;
    const failed = event.kind === "checkpoint" && event.data?.ok === false;
    const kind = event.kind === "checkpoint" ? (failed ? "failed" : "checkpoint") : "mark";
    out.push({ step: event.step, kind, text: event.text || event.kind });
  }
  return out;
}

/** Flags inside [from, to), at their pixel, those closer than `apart` pixels joined. */
export function clusters(list: Flag[], from: number, to: number, width: number, apart = 12): Cluster[] {
  const out: Cluster[] = [];
  for (const flag of list.filter((g) => g.step >= from && g.step < to).sort((a, b) => a.step - b.step)) {
    const x = ((flag.step + 0.5 - from) / (to - from)) * width;
    const words = `${flag.text}, step ${f.step(flag.step)}`;
    const near = out[out.length - 1];
    if (!near || x - near.x >= apart) {
      out.push({ ...flag, x, more: [words] });
      continue;
    }
    near.more.push(words);
    if (RANK.indexOf(flag.kind) < RANK.indexOf(near.kind)) near.kind = flag.kind;
  }
  return out;
}
