/** Alerts as an on-call person counts them: one incident per run and cause, effects folded in. */

import { byWeight } from "./flags";
import * as f from "./format";
import type { AlertFace, ImpactFace, NotifiedFace } from "./schema";

export interface Incident {
  /** The alert that stands for all: the heaviest, oldest one. */
  lead: AlertFace;
  /** More of the same alert on the same run (other layers, ranks). */
  more: AlertFace[];
  /** Alerts of the run that the service keeps quiet because of this one. */
  effects: AlertFace[];
  silenced: boolean;
}

const INHIBITED = "inhibited by ";

/** The name of the alert that keeps this one quiet, or null. */
export function cause(alert: AlertFace): string | null {
  return alert.muted?.startsWith(INHIBITED) ? alert.muted.slice(INHIBITED.length) : null;
}

/** Held back by a person: a silence or a maintenance window, not by its cause. */
export function isSilenced(alert: AlertFace): boolean {
  return Boolean(alert.muted) && cause(alert) === null;
}

export function incidents(alerts: AlertFace[]): Incident[] {
  const found = new Map<string, Incident>();
  const at = (alert: AlertFace, name: string) => `${alert.labels.run ?? ""}\n${name}`;
  for (const alert of [...alerts].sort(byWeight)) {
    if (cause(alert)) continue;
    const key = at(alert, alert.alertname);
    const known = found.get(key);
    if (known) known.more.push(alert);
    else found.set(key, { lead: alert, more: [], effects: [], silenced: isSilenced(alert) });
  }
  for (const alert of [...alerts].sort(byWeight)) {
    const name = cause(alert);
    if (!name) continue;
    const known = found.get(at(alert, name));
    // An effect that outlived its cause still stands for itself.
    if (known) known.effects.push(alert);
    else found.set(at(alert, alert.alertname), { lead: alert, more: [], effects: [], silenced: false });
  }
  return [...found.values()].sort(
    (a, b) =>
      Number(a.silenced) - Number(b.silenced) ||
      byWeight(a.lead, b.lead) ||
      Number(Boolean(a.lead.acknowledged_at)) - Number(Boolean(b.lead.acknowledged_at)),
  );
}

/** Matchers, as people write them, that cover one alert on its run and nothing else. */
export function matchersOf(alert: AlertFace): string[] {
  const quote = (text: string) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const out = [`alertname=${quote(alert.alertname)}`];
  if (alert.labels.run) out.push(`run=${quote(alert.labels.run)}`);
  return out;
}

/** The run page around the alert's step, drawn against each row's own past. */
export function evidence(alert: AlertFace): string | null {
  if (!alert.labels.run) return null;
  const path = `/runs/${encodeURIComponent(alert.labels.run)}`;
  const step = Number(alert.annotations.step ?? NaN);
  if (!Number.isFinite(step)) return path;
  return `${path}?mode=base&from=${Math.max(0, step - 50)}&to=${step + 50}`;
}

/** What an incident cost, as people say it: "64 GPUs, 6.4 GPU-hours since the first bad step". */
export function cost(impact: ImpactFace): string {
  const [one, many] = impact.devices === "GPU" ? ["GPU", "GPUs"] : ["process", "processes"];
  const hours = impact.gpu_hours;
  const minutes = Math.round(hours * 60);
  const much =
    hours >= 1 ? `${f.value(hours)} ${one}-hours` : minutes >= 1 ? `${minutes} ${one}-minutes` : `less than a ${one}-minute`;
  return `${f.step(impact.gpus)} ${impact.gpus === 1 ? one : many}, ${much} since the first bad step`;
}

/** Who was told, each once, with what went wrong. */
export function told(notified: NotifiedFace[]): { good: string[]; bad: string[] } {
  const good = new Set<string>();
  const bad = new Set<string>();
  for (const one of notified) {
    if (one.ok) good.add(one.receiver);
    else if (one.ok === false || one.state === "dead") bad.add(`${one.receiver} (${one.state})`);
  }
  return { good: [...good], bad: [...bad] };
}
