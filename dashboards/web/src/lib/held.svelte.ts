/**
 * What was done with one tap: shown as done at once, sent a few seconds later, so that a slip of
 * the thumb can be taken back. When the page goes away, what is held is sent then.
 */

/** An `ApiError`, or any other error: what can be said of it. */
export interface Refusal {
  message: string;
  detail?: string;
  requestId?: string | null;
}

export interface Deed {
  /** What it is about, such as "ack:42"; a second deed of the same key replaces the first. */
  key: string;
  /** Said while it can be taken back: "Acknowledged NonFiniteGradient". */
  words: string;
  send: () => Promise<unknown>;
  /** After it was sent and accepted. */
  done?: () => void;
}

export interface HeldDeed extends Deed {
  error: Refusal | null;
  /** It is on its way, or has arrived: too late to take back. */
  sent: boolean;
}

export const SECONDS = 5;

export class Held {
  list = $state.raw<HeldDeed[]>([]);
  #timers = new Map<string, ReturnType<typeof setTimeout>>();

  has(key: string): boolean {
    return this.list.some((deed) => deed.key === key && !deed.error);
  }

  do(deed: Deed): void {
    this.undo(deed.key);
    this.list = [...this.list, { ...deed, error: null, sent: false }];
    this.#timers.set(deed.key, setTimeout(() => void this.#send(deed.key), SECONDS * 1000));
  }

  /** Take it back; also the way to put a failure away. */
  undo(key: string): void {
    clearTimeout(this.#timers.get(key));
    this.#timers.delete(key);
    this.list = this.list.filter((deed) => deed.key !== key);
  }

  retry(key: string): void {
    this.#change(key, { error: null });
    void this.#send(key);
  }

  /** Send all that waits, now. */
  flush(): void {
    for (const key of [...this.#timers.keys()]) void this.#send(key);
  }

  async #send(key: string): Promise<void> {
    clearTimeout(this.#timers.get(key));
    this.#timers.delete(key);
    const deed = this.list.find((one) => one.key === key);
    if (!deed || deed.sent) return;
    this.#change(key, { sent: true });
    try {
      await deed.send();
      deed.done?.();
      // Stays for as long as lists take to know it, so that nothing flickers back.
      setTimeout(() => this.undo(key), 4000);
    } catch (cause) {
      this.#change(key, { error: cause as Refusal, sent: false });
    }
  }

  #change(key: string, patch: Partial<HeldDeed>): void {
    this.list = this.list.map((deed) => (deed.key === key ? { ...deed, ...patch } : deed));
  }
}

export const held = new Held();

if (typeof document !== "undefined") {
  addEventListener("pagehide", () => held.flush());
  document.addEventListener("visibilitychange", () => document.hidden && held.flush());
}
