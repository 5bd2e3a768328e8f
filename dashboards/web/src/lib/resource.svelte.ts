/**
 * Something fetched, kept while it is refetched. A failure keeps the last good data and says
 * how old it is; a newer request aborts an older one; nothing polls while the page is hidden.
 */

import { ApiError } from "./api";

export class Resource<T> {
  data = $state.raw<T | null>(null);
  error = $state.raw<ApiError | null>(null);
  /** When `data` arrived, in milliseconds since the epoch. */
  at = $state(0);
  #abort: AbortController | null = null;
  #key: string | null = null;

  constructor(readonly load: (path: string, signal: AbortSignal) => Promise<T>) {}

  /** Nothing yet and nothing wrong yet. */
  get waiting(): boolean {
    return this.data === null && this.error === null;
  }

  /** Fetch `path`. Unless `again`, a path that is here or under way is not asked for twice. */
  async fetch(path: string, again = false): Promise<void> {
    if (!again && path === this.#key) return;
    this.#key = path;
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    try {
      const data = await this.load(path, abort.signal);
      if (abort.signal.aborted) return;
      this.take(data);
    } catch (cause) {
      if (abort.signal.aborted) return;
      this.#key = null;
      this.error =
        cause instanceof ApiError
          ? cause
          : new ApiError(0, "The answer could not be read", String(cause), null);
    }
  }

  /**
   * Fetch `path` and join it to what is held. False where there is nothing to join it to, or
   * where they do not belong together: then all of it has to be fetched.
   */
  async extend(path: string, join: (held: T, more: T) => T | null): Promise<boolean> {
    const held = this.data;
    if (held === null) return false;
    try {
      const more = await this.load(path, new AbortController().signal);
      if (this.data !== held) return true; // something newer came meanwhile
      const joined = join(held, more);
      if (joined === null) return false;
      this.take(joined);
    } catch (cause) {
      this.error = cause instanceof ApiError ? cause : new ApiError(0, "The answer could not be read", String(cause), null);
    }
    return true;
  }

  /** Data that came another way: it is as new as what a fetch brings. */
  take(data: T): void {
    this.data = data;
    this.error = null;
    this.at = Date.now();
  }

  stop(): void {
    this.#abort?.abort();
    this.#key = null;
  }
}

/** Call `tick` now, unless told not to, and every `ms` while the page is visible; returns the way to stop. */
export function poll(ms: number, tick: () => Promise<void> | void, now = true): () => void {
  let timer = 0;
  let stopped = false;
  const run = async () => {
    clearTimeout(timer);
    if (!document.hidden) await tick();
    clearTimeout(timer);
    if (!stopped) timer = window.setTimeout(run, ms);
  };
  const visible = () => {
    if (!document.hidden) void run();
  };
  document.addEventListener("visibilitychange", visible);
  if (now) void run();
  else timer = window.setTimeout(run, ms);
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", visible);
  };
}
