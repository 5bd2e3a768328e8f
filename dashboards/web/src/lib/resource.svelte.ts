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
      this.data = data;
      this.error = null;
      this.at = Date.now();
    } catch (cause) {
      if (abort.signal.aborted) return;
      this.#key = null;
      this.error =
        cause instanceof ApiError
          ? cause
          : new ApiError(0, "The answer could not be read", String(cause), null);
    }
  }

  stop(): void {
    this.#abort?.abort();
    this.#key = null;
  }
}

/** Call `tick` now and every `ms` while the page is visible; returns the way to stop. */
export function poll(ms: number, tick: () => Promise<void> | void): () => void {
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
  void run();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", visible);
  };
}
