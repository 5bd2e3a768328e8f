/** Is the service there, and how old is what is shown? One answer for the whole page. */

import { clock } from "./clock.svelte";

const DELAYED_MS = 30_000;

class Live {
  /** When something last arrived, in milliseconds since the epoch; 0 before the first. */
  at = $state(0);
  /** The last try did not reach the service. */
  lost = $state(false);

  readonly state = $derived.by<"connecting" | "live" | "delayed" | "offline">(() => {
    if (this.lost) return "offline";
    if (!this.at) return "connecting";
    return clock.now - this.at > DELAYED_MS ? "delayed" : "live";
  });

  heard(): void {
    this.at = Date.now();
    this.lost = false;
  }
}

export const live = new Live();
