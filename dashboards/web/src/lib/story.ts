/** An alert's life as lines and bands: changes of state, messages, words of people, in time order. */

import type { AlertDetail, TimelineFace } from "./schema";

/** How a ticked step of a runbook begins among the notes. */
export const TICK = "Done: ";

export interface Line {
  at: string | null;
  /** Chooses the mark and the colour. */
  kind: TimelineFace["kind"];
  text: string;
  detail: string;
  /** Something that went wrong: a message that nobody got. */
  bad: boolean;
}

export interface Band {
  from: number;
  to: number;
  kind: "pending" | "firing" | "muted";
}

const REASONS: Record<string, string> = {
  condition: "the condition holds",
  cleared: "the condition no longer holds",
  run_finished: "the run ended; nothing healed",
  no_data: "no data",
};

function words(line: TimelineFace): string {
  switch (line.kind) {
    case "notified":
      return line.ok ? `told ${line.who}` : `${line.who} was not told`;
    case "acknowledged":
      return `taken care of by ${line.who ?? "somebody"}`;
    case "note":
      return line.text?.startsWith(TICK) ? `${line.who ?? "somebody"} ticked a step` : `note of ${line.who ?? "somebody"}`;
    case "muted":
      return "held back";
    case "unmuted":
      return "told again";
    case "enriched":
      return "more is known";
    default:
      return line.from && line.to && line.from !== line.to ? `${line.from} → ${line.to}` : line.kind;
  }
}

export function lines(alert: AlertDetail): Line[] {
  return alert.timeline.map((line) => ({
    at: line.at,
    kind: line.kind,
    text: words(line),
    detail: line.text ?? REASONS[line.reason] ?? line.reason.replaceAll("_", " "),
    bad: line.ok === false,
  }));
}

/** Stretches of one state each, in milliseconds, from the first change until the end or `now`. */
export function bands(alert: AlertDetail, now: number): Band[] {
  const out: Band[] = [];
  let state: "pending" | "firing" | null = null;
  let muted = false;
  let since = 0;
  const close = (at: number) => {
    if (state && at > since) out.push({ from: since, to: at, kind: muted && state === "firing" ? "muted" : state });
  };
  for (const line of alert.timeline) {
    if (!line.at || !["pending", "firing", "reopened", "resolved", "muted", "unmuted"].includes(line.kind)) continue;
    const at = Date.parse(line.at);
    close(at);
    since = at;
    if (line.kind === "muted") muted = true;
    else if (line.kind === "unmuted") muted = false;
    else if (line.kind === "resolved") state = null;
    else {
      state = line.kind === "pending" ? "pending" : "firing";
      muted = Boolean(line.text) && line.kind === "firing";
    }
  }
  close(now);
  return out;
}
