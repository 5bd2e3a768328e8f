/** The numbers beside the pages' names: what fires, what is silenced. */

import { getJson, v1 } from "./api";
import { follow } from "./stream";
import type { PageName } from "./router.svelte";
import type { AlertList, SilenceList } from "./schema";

const EVERY_MS = 10_000;
const MOST = 100;

class Nav {
  counts = $state.raw<Partial<Record<PageName, string>>>({});

  /** Keep counting for `project`; returns the way to stop. */
  watch(project: string | null): () => void {
    const count = async () => {
      try {
        const [alerts, silences] = await Promise.all([
          getJson<AlertList>(v1("alerts", { project, state: "firing", limit: MOST })),
          getJson<SilenceList>(v1("silences", { project, state: "active" })),
        ]);
        const loud = alerts.items.filter((alert) => !alert.muted && !alert.acknowledged_at);
        this.counts = { oncall: shown(loud.length, !!alerts.next_cursor), silences: shown(silences.items.length) };
      } catch {
        // The dot in the header says so; the last counts stay.
      }
    };
    return follow(project, "alerts", EVERY_MS, count, (news) => {
      if (news.event !== "alert.update") return;
      this.counts = { ...this.counts, oncall: shown(news.data.counts.firing) };
    });
  }
}

function shown(n: number, more = false): string {
  return n ? `${n}${more ? "+" : ""}` : "";
}

export const nav = new Nav();
