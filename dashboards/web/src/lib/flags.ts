/** Facts with a step, as flags beside the heatmap; neighbours on screen become one flag. */

import type { AlertFace, AttemptFace, EventFace } from "./schema";
import * as f from "./format";

export type FlagKind =
  | "alert" | "pending" | "healed" | "restart" | "restored" | "good" | "checkpoint" | "failed" | "mark";

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
const RANK: FlagKind[] = [
  "alert", "pending", "failed", "restart", "restored", "mark", "healed", "good", "checkpoint",
];
/** What is told of a run's lives, under the heatmap: from where it could go on, and where it did. */
const LIVES = new Set<FlagKind>(["restart", "restored", "good", "checkpoint", "failed"]);
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

/** Alerts, and what the loop or the guard says that it changed. */
export function flags(alerts: AlertFace[], events: EventFace[]): Flag[] {
  const out: Flag[] = [];
  for (const alert of alerts) {
    const step = alertStep(alert);
    if (step === null) continue;
    const over = alert.state === "resolved" && !unhealed(alert);
    const loud = alert.state !== "pending" && alert.severity === "page";
    const kind = over ? "healed" : loud ? "alert" : "pending";
    out.push({ step, kind, text: `${alert.alertname} (${alert.state})` });
  }
  return [...out, ...events.map(told).filter((flag) => flag !== null && !LIVES.has(flag.kind))] as Flag[];
}

/** Checkpoints saved, refused and gone back to, and where attempts begin; `good` is the last good one's step. */
export function lives(attempts: AttemptFace[], events: EventFace[], good: number | null): Flag[] {
  const out: Flag[] = attempts
    .filter((attempt) => attempt.ordinal > 1)
    .map((attempt) => ({ step: attempt.first_step, kind: "restart", text: `attempt ${attempt.ordinal} begins` }));
  const known = new Set<string>();
  for (const event of events) {
    const flag = told(event);
    if (!flag || !LIVES.has(flag.kind)) continue;
    // One save may be told of twice; a path that is written over is another save.
    const key = `${flag.kind} ${flag.step} ${flag.text}`;
    if (known.has(key)) continue;
    known.add(key);
    const last = flag.kind === "checkpoint" && flag.step === good;
    out.push(last ? { ...flag, kind: "good", text: `last good ${flag.text}` } : flag);
  }
  return out;
}

function told(event: EventFace): Flag | null {
  if (QUIET.has(event.kind)) return null;
  const saved = Number(event.data.saved_step ?? event.step);
  if (event.kind === "checkpoint") {
    const refused = event.data.ok === false;
    if ("verified" in event.data && !refused) return null; // a later look at a file, and no save
    return { step: saved, kind: refused ? "failed" : "checkpoint", text: `checkpoint ${event.text}` };
  }
  if (event.kind === "guard" && event.data.action === "rollback") {
    return { step: Number(event.data.step ?? event.step), kind: "restored", text: `restored: ${event.data.reason ?? "by the guard"}` };
  }
  return { step: event.step, kind: "mark", text: event.text || event.kind };
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
